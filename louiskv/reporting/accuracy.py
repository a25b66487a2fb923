"""How good against how much: scores and KL divergence over what is moved and what lies on the device."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes

from louiskv.evaluation.summary import Row, summarise
from louiskv.reporting.axes import bytes_axis, log_axis
from louiskv.reporting.content import Figure, Section, origins
from louiskv.reporting.drawing import FAINT, INK, drawing
from louiskv.reporting.records import Measured, comparable
from louiskv.reporting.styles import LOSSLESS, YARDSTICKS, style_of

Value = Callable[[Row], float]

MOVED = "bytes fetched per output token"
HELD = "bytes on the device, index included, as share of full attention's"
ALIKE = (
    "A line is a method over its budgets, a larger marker a larger budget. The stepped line joins the points that no "
    "other beats in both, points beside it are paler; full attention and the oracle are measures, and not among them."
)


@dataclass(frozen=True)
class _Goal:
    """What is wanted, and in which direction."""

    title: str
    name: str
    of: Value
    sign: int


def accuracy(model: Measured) -> Section | None:
    """Fronts of score and of KL divergence."""
    asked, partly_asked = comparable(model.of("task"))
    fed, partly_fed = comparable(model.of("fidelity"))
    rows, lost = summarise(asked), [row for row in summarise(fed) if _loses(row)]
    parts = []
    if rows:
        goal = _Goal("Mean task score", "mean task score", lambda row: row.mean_score, 1)
        note = f"Up and to the left is better. {ALIKE}{_missing(partly_asked)}"
        parts.append(Figure(_moved(goal, rows, lambda row: row.fetched), note, origins(asked)))
        parts.append(Figure(_held(goal, rows, lambda row: row.device), note, origins(asked)))
    if lost:
        goal = _Goal("KL divergence", "KL divergence from full attention", lambda row: row.kl or 0, -1)
        note = f"Down and to the left is better. {ALIKE}{_missing(partly_fed)}"
        parts.append(Figure(_moved(goal, lost, lambda row: row.fed_fetched), note, origins(fed)))
        parts.append(Figure(_held(goal, lost, lambda row: row.fed_device), note, origins(fed)))
    told = (
        "What a method answers, and how far its next token is from full attention's, against what it costs. Methods "
        "that move nothing stand at 0 bytes."
    )
    return Section("accuracy", "Accuracy against memory and traffic", told, list(parts)) if parts else None


def _loses(row: Row) -> bool:
    """Whether it has a place on a logarithmic axis."""
    return row.name.split(" ")[0] not in LOSSLESS and (row.kl or 0) > 0


def _missing(names: list[str]) -> str:
    return f" Not shown, for lack of runs that the others have: {', '.join(names)}." if names else ""


def front(points: list[tuple[float, float]], sign: int) -> list[tuple[float, float]]:
    """The points that no other beats: less of the first, more (`sign` 1) or less (-1) of the second."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not best or sign * y > sign * best[-1][1]:
            best.append((x, y))
    return best


def _moved(goal: _Goal, rows: list[Row], cost: Value) -> str:
    with drawing(f"{goal.title}, by what is moved", MOVED, goal.name) as drawn:
        _points(drawn.axes, goal, rows, cost)
        bytes_axis(drawn.axes, [cost(row) for row in rows])
    return drawn.svg


def _held(goal: _Goal, rows: list[Row], cost: Value) -> str:
    with drawing(f"{goal.title}, by what lies on the device", HELD, goal.name) as drawn:
        _points(drawn.axes, goal, rows, cost)
        drawn.axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        drawn.axes.set_xlim(left=0)
    return drawn.svg


def _points(axes: Axes, goal: _Goal, rows: list[Row], cost: Value) -> None:
    compared = [row for row in rows if row.name.split(" ")[0] not in YARDSTICKS]
    best = front([(cost(row), goal.of(row)) for row in compared], goal.sign)
    if goal.sign < 0:
        log_axis(axes, list(map(goal.of, rows)))
    else:
        axes.set_ylim(-0.04, 1.04)
    for row in rows:
        if row.name in ("full", "sdpa"):
            axes.axhline(goal.of(row), color=INK, linewidth=1, linestyle=(0, (4, 3)), label="full attention")
    budgets = sorted({row.budget or 0 for row in rows})
    for name in dict.fromkeys(row.name for row in rows if row.name not in ("full", "sdpa")):
        own, style = sorted((row for row in rows if row.name == name), key=lambda row: row.budget or 0), style_of(name)
        axes.plot(list(map(cost, own)), list(map(goal.of, own)), color=style.color, alpha=0.35, linewidth=1.1, zorder=2)
        axes.plot([], [], linestyle="", label=name, **style.point)
        for row in own:
            point = cost(row), goal.of(row)
            axes.plot(
                *point,
                **style.point,
                alpha=1 if point in best or row not in compared else 0.4,
                markersize=6 + 4 * budgets.index(row.budget or 0) / len(budgets),
                zorder=3,
                clip_on=False,
            )
    if best:
        # As far as the axes go: more of it gives no more.
        right = max(cost(row) for row in rows)
        x, y = [*(point[0] for point in best), right], [*(point[1] for point in best), best[-1][1]]
        axes.plot(x, y, color=INK, alpha=0.55, linewidth=1.2, drawstyle="steps-post", zorder=1)
    axes.grid(color=FAINT)
