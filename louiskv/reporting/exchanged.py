"""LouisKV+ with each of its parts taken away or exchanged: what each part is worth."""

from dataclasses import replace

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
        for place, at in places.items():
            drawn.axes.annotate(str(place), at, (4, 2), textcoords="offset points", fontsize=7.5)
        log_axis(drawn.axes, [kl for _, kl in places.values()])
        bytes_axis(drawn.axes, [moved for moved, _ in places.values()])
    return drawn.svg
