"""Attention from inside: where methods retrieved, what they attended to, recall and error of each layer and KV head."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from louiskv.evaluation.summary import device_share, mean
from louiskv.reporting.axes import bars_axis, whole_axis
from louiskv.reporting.content import Figure, Fold, Part, Section, origins
from louiskv.reporting.drawing import INK, SMALL, Drawing, drawing, image
from louiskv.reporting.fronts import Goal, Point, fronts
from louiskv.reporting.records import Measured, Record, by_budget, grouped
from louiskv.reporting.scores import curve
from louiskv.reporting.styles import PALETTE, style_of

BARS = {
    "recall": "Share of full attention's mass on the tokens that a method attends to; higher is better.",
    "error": "Difference of the output of attention from full attention's, as a share of its size; lower is better.",
    "overlap": "Share of the tokens attended to that were so before as well (Jaccard), sinks and window left out.",
}
ERROR = Goal("Error of attention", "error of the output of attention", -1)
# More borders than these would cover what is between them.
MAX_BORDERS = 24


def inside(model: Measured) -> Section | None:
    """Figures of probes, for each length of prompt."""
    records = model.of("probe")
    parts: list[Part] = []
    lengths = sorted(grouped(records, lambda record: record["prompt"]).items())
    for length, own in lengths:
        behind = f" behind {length:,} tokens" if len(lengths) > 1 else ""
        parts += [Figure(_bars(name, behind, own), caption, origins(own)) for name, caption in BARS.items()]
        parts += fronts(replace(ERROR, title=f"{ERROR.title}{behind}"), _points(own), "", origins(own))
        parts.append(_cosine(own[0], behind))
        parts += _curves(own, behind)
        parts += _folds(own, behind)
    told = (
        "All methods see the queries of full attention, and none of their outputs goes on through the model: errors "
        "of layers do not mix."
    )
    return Section("inside", "Attention from inside", told, parts) if parts else None


def _points(records: list[Record]) -> list[Point]:
    """Each method at each budget, means over its records."""
    by_method = grouped(records, lambda record: (record["method"], record["budget"]))
    return [
        Point(
            name,
            budget,
            reached=mean([_mean(record["error"]) for record in own]),
            moved=mean([record["fetched_per_token"] for record in own]),
            held=mean(list(map(device_share, own))),
        )
        for (name, budget), own in by_method.items()
    ]


def _folds(records: list[Record], behind: str) -> Iterator[Fold]:
    maps: dict[str, Callable[[Record], Figure | None]] = {
        "Where it retrieved": _retrieved,
        "What it attended to": _attended,
        "Recall by layer and KV head": lambda record: _by_head(record, "recall", 1),
        "Error by layer and KV head": lambda record: _by_head(record, "error", worst),
    }
    worst = max((value for record in records for row in record["error"] for value in row if value), default=1.0)
    for title, draw in maps.items():
        figures = [figure for figure in map(draw, records) if figure is not None]
        if figures:
            yield Fold(f"{title}{behind}: {len(figures)} maps", list(figures), open=len(figures) <= 6)


def _bars(name: str, behind: str, records: list[Record]) -> str:
    means = {record["label"]: _mean(record[name]) for record in records}
    told = {label: value for label, value in means.items() if not math.isnan(value)}
    height = 1.3 + 0.26 * max(3, len(told))
    with drawing(f"{name.capitalize()}{behind}", f"mean {name}", "", (5.8, height)) as drawn:
        colors = [style_of(label).color for label in told]
        bars = drawn.axes.barh(list(told), list(told.values()), color=colors, height=0.7)
        drawn.axes.bar_label(bars, fmt="%.3f", padding=3, color=INK, fontsize=9)
        bars_axis(drawn.axes, len(told))
    return drawn.svg


def _cosine(record: Record, behind: str) -> Figure:
    """Quantiles of each layer, means over its KV heads."""
    by_layer = [[sum(column) / len(column) for column in zip(*heads, strict=True)] for heads in record["cosine"]]
    low, lower, middle, upper, high = zip(*by_layer, strict=True)
    layers, blue = record["layers"], PALETTE[4]
    with drawing(f"Cosine of neighbouring queries{behind}", "layer", "cosine") as drawn:
        whole_axis(drawn.axes)
        drawn.axes.fill_between(layers, low, high, color=blue, alpha=0.2, linewidth=0, label="5 % to 95 %")
        drawn.axes.fill_between(layers, lower, upper, color=blue, alpha=0.4, linewidth=0, label="25 % to 75 %")
        drawn.axes.plot(layers, middle, color=blue, label="median")
    return Figure(
        drawn.svg,
        "How alike the queries of neighbouring steps are in each layer: quantiles over steps, means over KV heads.",
        origins([record]),
    )


def _curves(records: list[Record], behind: str) -> Iterator[Figure]:
    for at, own in by_budget(records):
        for name in ("recall", "error"):
            with drawing(f"{name.capitalize()} over the output{behind}{at}", "output token", name) as drawn:
                for record in own:
                    x, y = curve([record], name)
                    every = max(1, len(x) // 8)
                    drawn.axes.plot(x, y, markevery=every, label=record["method"], **style_of(record["method"]).line)
            yield Figure(drawn.svg, f"{BARS[name]} Means over layers, KV heads and steps.", origins(own))


def _retrieved(record: Record) -> Figure | None:
    rows, layers = record["retrieved"], record["layers"]
    if not any(map(any, rows)):
        return None
    with drawing(record["label"], "step", "layer", SMALL) as drawn:
        image(drawn, rows, "share of KV heads that retrieved", 0, 1, [0, len(rows[0]), -0.5, len(layers) - 0.5])
        _name_layers(drawn, layers)
    rate = f"{record['retrieval_rate']:.0%}"
    told = f"Yellow: all KV heads of the layer retrieved at this step, dark: none. {rate} of all in the layers that do."
    return Figure(drawn.svg, told, origins([record]))


def _attended(record: Record) -> Figure:
    seen = record["attended"]
    by_position = [list(column) for column in zip(*seen["share"], strict=True)]
    steps, end = len(seen["share"]), len(by_position) * seen["bin"]
    last = min(end, record["prompt"] + steps)
    with drawing(record["label"], "step", "position", SMALL) as drawn:
        image(drawn, by_position, "share attended to", 0, 1, [0, steps, 0, end])
        drawn.axes.set_ylim(0, last)
        drawn.axes.axhline(record["prompt"], color="#FFFFFF", linewidth=0.8, linestyle=(0, (3, 3)))
        _borders(drawn, seen, last)
    borders = len(seen["boundaries"])
    told = f" Orange {'lines' if borders <= MAX_BORDERS else 'ticks above'}: it retrieved." if borders else ""
    return Figure(
        drawn.svg,
        f"Layer {seen['layer']}, KV head {seen['head']}: how much of each run of {seen['bin']} positions was attended "
        f"to. Dashed: the prompt ends.{told}",
        origins([record]),
    )


def _borders(drawn: Drawing, seen: dict[str, Any], top: int) -> None:
    """Where it retrieved: through the map where these are few, and above it always."""
    borders = seen["boundaries"]
    if len(borders) <= MAX_BORDERS:
        drawn.axes.vlines(borders, 0, top, color=PALETTE[5], linewidth=0.8, alpha=0.8)
    drawn.axes.plot(borders, [top] * len(borders), "|", color=PALETTE[5], clip_on=False, markersize=5)


def _by_head(record: Record, name: str, high: float) -> Figure:
    rows = [[math.nan if value is None else value for value in row] for row in record[name]]
    layers = record["layers"]
    with drawing(record["label"], "KV head", "layer", SMALL) as drawn:
        image(drawn, rows, name, 0, high, [-0.5, len(rows[0]) - 0.5, -0.5, len(layers) - 0.5])
        _name_layers(drawn, layers)
        drawn.axes.set_xticks(range(0, len(rows[0]), -(-len(rows[0]) // 8)))
    return Figure(drawn.svg, f"{name.capitalize()}, mean over steps. {_mean(rows):.3f} over all.", origins([record]))


def _name_layers(drawn: Drawing, layers: list[int]) -> None:
    """Rows are the layers that are managed: there may be others between them."""
    every = -(-len(layers) // 8)
    drawn.axes.set_yticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])


def _mean(rows: list[list[float | None]] | list[list[float]]) -> float:
    told = [value for row in rows for value in row if value is not None and not math.isnan(value)]
    return sum(told) / len(told) if told else math.nan
