"""What is reached over what it costs: each method a line over its budgets, and the points that no other beats."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes

from louiskv.reporting.axes import bytes_axis, log_axis
from louiskv.reporting.content import Figure, Origin
from louiskv.reporting.drawing import FAINT, INK, drawing
from louiskv.reporting.styles import LOSSLESS, YARDSTICKS, style_of

MOVED = "bytes fetched per output token"
HELD = "bytes on the device, index included, as share of full attention's"
ALIKE = (
    "A line is a method over its budgets, a larger marker a larger budget. The stepped line joins the points that no "
    "other beats in both, points beside it are paler; full attention and the oracle are measures, and not among them."
)


@dataclass(frozen=True)
class Goal:
    """What is wanted, and in which direction: `sign` 1 for more, -1 for less, which is drawn logarithmically."""

    title: str
    name: str
    sign: int


@dataclass(frozen=True)
class Point:
    """A method at a budget: what it reaches, the bytes that it moves for a token, and its share of the device."""

    name: str
    budget: int | None
    reached: float
    moved: float
    held: float


Cost = Callable[[Point], float]


def fronts(goal: Goal, points: list[Point], note: str, made: list[Origin]) -> list[Figure]:
    """What is reached over what is moved, and over what lies on the device; nothing without a point.

    Args:
        goal: What is reached.
        points: Methods at their budgets; of what is lost, those that lose nothing have no place.
        note: What the captions end with.
        made: What made the points.
    """
    shown = [point for point in points if goal.sign > 0 or _loses(point)]
    caption = f"{'Up' if goal.sign > 0 else 'Down'} and to the left is better. {ALIKE}{note}"
    return [Figure(draw(goal, shown), caption, made) for draw in (_moved, _held)] if shown else []


def front(points: list[tuple[float, float]], sign: int) -> list[tuple[float, float]]:
    """The points that no other beats: less of the first, more (`sign` 1) or less (-1) of the second."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not best or sign * y > sign * best[-1][1]:
            best.append((x, y))
    return best


def _loses(point: Point) -> bool:
    """Whether it has a place on a logarithmic axis."""
    return point.name.split(" ")[0] not in LOSSLESS and point.reached > 0


def _moved(goal: Goal, points: list[Point]) -> str:
    with drawing(f"{goal.title}, by what is moved", MOVED, goal.name) as drawn:
        _draw(drawn.axes, goal, points, lambda point: point.moved)
        bytes_axis(drawn.axes, [point.moved for point in points])
    return drawn.svg


def _held(goal: Goal, points: list[Point]) -> str:
    with drawing(f"{goal.title}, by what lies on the device", HELD, goal.name) as drawn:
        _draw(drawn.axes, goal, points, lambda point: point.held)
        drawn.axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        drawn.axes.set_xlim(left=0)
    return drawn.svg


def _draw(axes: Axes, goal: Goal, points: list[Point], cost: Cost) -> None:
    compared = [point for point in points if point.name.split(" ")[0] not in YARDSTICKS]
    best = front([(cost(point), point.reached) for point in compared], goal.sign)
    if goal.sign < 0:
        log_axis(axes, [point.reached for point in points])
    else:
        axes.set_ylim(-0.04, 1.04)
    for point in points:
        if point.name in ("full", "sdpa"):
            axes.axhline(point.reached, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="full attention")
    budgets = sorted({point.budget or 0 for point in points})
    for name in dict.fromkeys(point.name for point in points if point.name not in ("full", "sdpa")):
        own, style = (
            sorted((each for each in points if each.name == name), key=lambda each: each.budget or 0),
            style_of(name),
        )
        x, y = list(map(cost, own)), [each.reached for each in own]
        axes.plot(x, y, color=style.color, alpha=0.35, linewidth=1.1, zorder=2)
        axes.plot([], [], linestyle="", label=name, **style.point)
        for each in own:
            axes.plot(
                cost(each),
                each.reached,
                **style.point,
                alpha=1 if (cost(each), each.reached) in best or each not in compared else 0.4,
                markersize=6 + 4 * budgets.index(each.budget or 0) / len(budgets),
                zorder=3,
                clip_on=False,
            )
    if best:
        # As far as the axes go: more of it gives no more.
        right = max(map(cost, points))
        x, y = [*(x for x, _ in best), right], [*(y for _, y in best), best[-1][1]]
        axes.plot(x, y, color=INK, alpha=0.55, linewidth=1.2, drawstyle="steps-post", zorder=1)
    axes.grid(color=FAINT)
