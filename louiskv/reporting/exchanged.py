"""LouisKV+ with each of its parts taken away or exchanged: what each part is worth."""

from dataclasses import replace

from matplotlib.axes import Axes

from louiskv.evaluation.summary import Row, summarise
from louiskv.reporting.accuracy import missing
from louiskv.reporting.axes import bytes_axis, log_axis
from louiskv.reporting.content import Figure, Part, Section, Table, origins, text
from louiskv.reporting.drawing import drawing
from louiskv.reporting.fronts import MOVED
from louiskv.reporting.records import Measured, Record, comparable, grouped
from louiskv.reporting.scores import fidelity_table, scores_table
from louiskv.reporting.styles import style_at, style_of

# The comparison, and its family in which nothing is exchanged.
GROUP = PLUS = "plus"
SIZE = (5.8, 5.0)
# What a number takes, across and up, in the dots of a drawing.
NEAR = (15, 11)
TOLD = (
    "One part of LouisKV+ is taken away or exchanged, all others stay as they are. “Whole units” takes clusters whole, "
    "and not the best tokens of the best ones; “neither” does so and estimates nothing. In “plus”, hold alone is "
    "another: by so many nats a token must beat a resident one, to take its place."
)
CAPTION = (
    "Down and to the left is better. The line is LouisKV+ over its hold, a point has one part exchanged; numbers are "
    "places in the table, which is sorted by KL divergence."
)


def exchanged(model: Measured) -> Section | None:
    """KL divergence over what is moved, and tables, at each budget."""
    fed, asked = (_by_budget(model.of(kind, group=GROUP)) for kind in ("fidelity", "task"))
    figures = [_figure(budget, *comparable(records)) for budget, records in fed]
    tables = [_table(budget, comparable(records)[0]) for budget, records in fed]
    scores = [scores_table(f"Scores, budget {budget}", comparable(records)[0]) for budget, records in asked]
    parts: list[Part] = [*figures, *tables, *scores]
    return Section(GROUP, "What LouisKV+ is made of", TOLD, parts) if parts else None


def _by_budget(records: list[Record]) -> list[tuple[int, list[Record]]]:
    return sorted(grouped(records, lambda record: record["budget"]).items())


def _ranked(records: list[Record]) -> list[Row]:
    return sorted(summarise(records), key=lambda row: row.kl or 0)


def _table(budget: int, records: list[Record]) -> Table:
    """A table whose places are the numbers in the figure."""
    table = fidelity_table(f"Fidelity, budget {budget}", _ranked(records), origins(records))
    numbered = [[text(place), *cells] for place, cells in enumerate(table.rows, 1)]
    return replace(table, columns=["place", *table.columns], rows=numbered)


def _figure(budget: int, records: list[Record], lacking: list[str]) -> Figure:
    drawn = _drawn(_ranked(records), f"KL divergence with one part exchanged, budget {budget}")
    return Figure(drawn, f"{CAPTION}{missing(lacking)}", origins(records))


def _drawn(rows: list[Row], title: str) -> str:
    """Each row with its place; what loses nothing has none on a logarithmic axis."""
    places = {place: (row.fed_fetched, row.kl) for place, row in enumerate(rows, 1) if row.kl and row.kl > 0}
    families: dict[str, list[tuple[float, float]]] = {}
    for place, at in places.items():
        families.setdefault(str(rows[place - 1].family), []).append(at)
    line = sorted(families.pop(PLUS, []))
    with drawing(title, MOVED, "KL divergence from full attention", SIZE) as drawn:
        if line:
            style = style_of("louiskv_plus").line
            drawn.axes.plot(*zip(*line, strict=True), label=PLUS, markersize=9, zorder=3, **style)
        for number, (family, points) in enumerate(sorted(families.items())):
            style = style_at(number).point
            drawn.axes.plot(*zip(*points, strict=True), label=family, linestyle="", zorder=2, **style)
        log_axis(drawn.axes, [kl for _, kl in places.values()])
        bytes_axis(drawn.axes, [moved for moved, _ in places.values()])
        _number(drawn.axes, places)
    return drawn.svg


def _number(axes: Axes, places: dict[int, tuple[float, float]]) -> None:
    """Write its place beside each point, once where several would cover each other."""
    # A point is told where it stands only when the axes know how far they go.
    axes.autoscale_view()
    written: dict[tuple[float, float], list[int]] = {}
    for place, at in places.items():
        x, y = axes.transData.transform(at)
        beside = (own for own in written if abs(own[0] - x) < NEAR[0] and abs(own[1] - y) < NEAR[1])
        written.setdefault(next(beside, (x, y)), []).append(place)
    for own in written.values():
        right = max(places[place] for place in own)
        axes.annotate(runs_of(own), right, (6, 2), textcoords="offset points", fontsize=7.5)


def runs_of(places: list[int]) -> str:
    """Ascending numbers, those that follow each other as a run: 3, 5-7."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
