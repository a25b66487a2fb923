"""One part of LouisKV exchanged: families beside each other at equal retrieval rates and at equal bytes."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from louiskv.evaluation.summary import Row, summarise
from louiskv.reporting.axes import bytes_axis, log_axis
from louiskv.reporting.content import Cell, Figure, Origin, Part, Section, Table, number, origins, text
from louiskv.reporting.drawing import drawing
from louiskv.reporting.records import Measured, comparable
from louiskv.reporting.styles import style_at
from louiskv.telemetry import format_bytes

Points = list[tuple[float, float]]

RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class _Compared:
    """A figure of families: what is on its axes.

    Attributes:
        goal: What is told.
        cost: At equal what.
        of: The goal of a row.
        at: The cost of a row.
        form: How the goal is written.
        bytes: Whether the cost is in bytes.
        logarithmic: Whether the goal is told on a logarithmic axis.
    """

    goal: str
    cost: str
    of: Callable[[Row], float]
    at: Callable[[Row], float]
    form: str
    bytes: bool
    logarithmic: bool


RATE, FETCHED = "retrieval rate", "bytes fetched per output token"
FED = (
    _Compared("KL divergence", RATE, lambda row: row.kl or 0, lambda row: row.fed_rate, ".4f", False, True),
    _Compared("KL divergence", FETCHED, lambda row: row.kl or 0, lambda row: row.fed_fetched, ".4f", True, True),
)
ASKED = (
    _Compared("mean task score", RATE, lambda row: row.mean_score, lambda row: row.rate, ".2f", False, False),
    _Compared("mean task score", FETCHED, lambda row: row.mean_score, lambda row: row.fetched, ".2f", True, False),
)
TITLES = {
    "trigger": (
        "When to retrieve",
        "The trigger is exchanged, all other parts are LouisKV's. A late trigger selects for the next step at every "
        "step as well, and its rate counts corrections alone: compare it at equal bytes.",
    ),
    "units": ("What to retrieve", "Units and their summaries are exchanged, with a retrieval at every step."),
}


def compared(model: Measured, group: str) -> Section | None:
    """Families of a comparison."""
    asked, fed = model.of("task", group=group), model.of("fidelity", group=group)
    parts: list[Part] = []
    for records, figures in ((fed, FED), (asked, ASKED)):
        for budget in sorted({record["budget"] for record in records}):
            own, _ = comparable(record for record in records if record["budget"] == budget)
            rows = summarise(own)
            # Where all retrieve at every step, a rate tells nothing.
            meant = [each for each in figures if each.bytes or _spread(map(each.at, rows)) > 0.01]
            families = [(each, _families(each, rows)) for each in meant]
            parts += [_figure(each, points, budget, origins(own)) for each, points in families]
            tables = [_table(each, points, budget) for each, points in families]
            parts += [table for table in tables if len(table.columns) > 1]
    title, told = TITLES[group]
    return Section(group, title, told, parts) if parts else None


def between(points: Points, cost: float, *, logarithmic: bool) -> float | None:
    """The goal at a cost, on a straight line between the two measured points beside it, over the logarithm of the cost.

    Args:
        points: Cost and goal of each; costs of 0 are passed over.
        cost: Where it is asked for.
        logarithmic: Whether the line is straight over the logarithm of the goal.

    Returns:
        None outside of what was measured.
    """
    measured = sorted(point for point in points if point[0] > 0)
    for x, y in measured:
        if math.isclose(x, cost, rel_tol=1e-6):
            return y
    for (x0, y0), (x1, y1) in pairwise(measured):
        if x0 < cost < x1:
            part = (math.log(cost) - math.log(x0)) / (math.log(x1) - math.log(x0))
            if logarithmic and min(y0, y1) > 0:
                return math.exp((1 - part) * math.log(y0) + part * math.log(y1))
            return (1 - part) * y0 + part * y1
    return None


def _sizes(low: float, high: float) -> list[float]:
    """At most five powers of two between two sizes, or of a root of it, if these are near to each other."""
    for parts in (1, 2, 4, 8):
        powers = range(math.ceil(parts * math.log2(low)), math.floor(parts * math.log2(high)) + 1)
        if len(powers) > 2:
            break
    return [2.0 ** (power / parts) for power in powers[:: max(1, -(-len(powers) // 5))]]


def _spread(values: Iterable[float]) -> float:
    known = list(values)
    return max(known) - min(known)


def _families(each: _Compared, rows: list[Row]) -> dict[str, Points]:
    families: dict[str, Points] = {}
    for row in rows:
        families.setdefault(str(row.family), []).append((each.at(row), each.of(row)))
    return families


def _figure(each: _Compared, families: dict[str, Points], budget: int, made: list[Origin]) -> Figure:
    better = "Lower" if each.logarithmic else "Higher"
    caption = f"{better} is better; a line is a family, its points are its settings. Budget {budget}."
    title = f"{each.goal} at equal {'bytes' if each.bytes else 'rates'}, budget {budget}"
    with drawing(title[0].upper() + title[1:], each.cost, each.goal) as drawn:
        for place, (family, points) in enumerate(families.items()):
            x, y = zip(*sorted(points), strict=True)
            drawn.axes.plot(x, y, label=family, **style_at(place).line)
        if each.logarithmic:
            log_axis(drawn.axes, [goal for points in families.values() for _, goal in points])
        if each.bytes:
            bytes_axis(drawn.axes, [cost for points in families.values() for cost, _ in points])
        else:
            drawn.axes.set_xlim(left=0)
    return Figure(drawn.svg, caption, made)


def _table(each: _Compared, families: dict[str, Points], budget: int) -> Table:
    costs = [cost for points in families.values() for cost, _ in points if cost > 0]
    low, high = min(costs, default=1), max(costs, default=1)
    asked = _sizes(low, high) if each.bytes else [rate for rate in RATES if low <= rate <= high]
    told = {
        cost: [between(points, cost, logarithmic=each.logarithmic) for points in families.values()] for cost in asked
    }
    told = {cost: goals for cost, goals in told.items() if any(goal is not None for goal in goals)}
    named = [format_bytes(cost).replace(".0 ", " ") if each.bytes else f"rate {cost:g}" for cost in told]
    rows: list[list[Cell]] = [
        [text(family), *(number(goals[place], each.form) for goals in told.values())]
        for place, family in enumerate(families)
    ]
    title = f"{each.goal[0].upper()}{each.goal[1:]} at equal {'bytes' if each.bytes else 'rates'}, budget {budget}"
    return Table(
        title,
        ["family", *named],
        rows,
        "Interpolated between the two measured points beside it, straight over the logarithm of "
        f"{'the bytes' if each.bytes else 'the rate'}{' and of KL' if each.logarithmic else ''}; - outside of what was "
        "measured.",
        wide=False,
    )
