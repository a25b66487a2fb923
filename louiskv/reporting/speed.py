"""How fast: time per token, time to the first token, throughput, and where a decode step's time goes."""

from collections.abc import Callable, Iterator, Sequence

from louiskv.evaluation.summary import index_share
from louiskv.reporting.axes import bars_axis, doubling_axis, log_axis
from louiskv.reporting.content import Figure, Fold, Part, Section, Table, number, origins, size, text
from louiskv.reporting.drawing import INK, drawing
from louiskv.reporting.records import Measured, Record, by_budget, grouped, machine
from louiskv.reporting.styles import GREY, PALETTE, style_of

# The phase that runs beside a step and takes none of its time.
AHEAD = "ahead"
LADDERS = {
    "ladder": ("Parts added one by one", "From top to bottom, a part of LouisKV is added in each bar."),
    "units": ("What is retrieved", "Units and their summaries are exchanged, all other parts are the same."),
}


def speed(model: Measured) -> Section | None:
    """Figures of benchmarks, for each machine."""
    kinds = [model.of("decode"), model.of("prefill"), *(model.of("decode", group=group) for group in LADDERS)]
    records = [record for kind in kinds for record in kind]
    machines = [_parts(own) for own in grouped(records, machine).values()]
    parts = machines[0] if len(machines) == 1 else []
    if len(machines) > 1:
        names = grouped(records, machine)
        parts = [Fold(name, own, open=True) for name, own in zip(names, machines, strict=True)]
    told = "Sdpa is transformers' own cache and attention."
    by_size = grouped(records, lambda record: tuple(record.get(name) for name in ("kind", "context", "batch", "group")))
    of_one_run = all(len({record["run"] for record in own}) == 1 for own in by_size.values())
    if of_one_run and all(record.get("interleaved", True) for record in records):
        told = f"Methods took turns on the same machine. {told}"
    return Section("speed", "Speed", told, parts) if parts else None


def _parts(records: list[Record]) -> list[Part]:
    """Figures of one machine."""

    def of(kind: str, group: str | None = None) -> list[Record]:
        return [record for record in records if record["kind"] == kind and record["group"] == group]

    decoded, prefilled, parts = of("decode"), of("prefill"), list[Part]()
    if decoded:
        single = [record for record in decoded if record["batch"] == min(each["batch"] for each in decoded)]
        parts += [_decode(at, own) for at, own in by_budget(single)]
        parts += _throughput(decoded)
        parts += _breakdown(single)
    if prefilled:
        parts += [_prefill(at, own) for at, own in by_budget(prefilled)]
    for group, (title, tells) in LADDERS.items():
        parts += _ladder(of("decode", group), title, tells)
    parts += [_first_tokens(prefilled)] if prefilled else []
    for title, shown in [("Decoding", decoded), *((title, of("decode", each)) for each, (title, _) in LADDERS.items())]:
        parts += [_bytes(f"{title} in figures", shown)] if shown else []
    return parts


def _decode(at: str, records: list[Record]) -> Figure:
    batch = records[0]["batch"]
    with drawing(f"Time per output token{at}", "context, in tokens", "ms per token") as drawn:
        for label, own in _lines(records):
            x, y = [record["context"] for record in own], [record["ms_per_token"] for record in own]
            low = [max(0.0, record["ms_per_token"] - record["ms_quartiles"][0]) for record in own]
            high = [max(0.0, record["ms_quartiles"][1] - record["ms_per_token"]) for record in own]
            drawn.axes.errorbar(x, y, [low, high], capsize=2, elinewidth=0.8, label=label, **style_of(label).line)
        doubling_axis(drawn.axes, [record["context"] for record in records])
        log_axis(drawn.axes, [record["ms_per_token"] for record in records])
    real = max(record["num_real"] for record in records)
    made_up = " What is longer repeats it with noise." if any(each["context"] > real for each in records) else ""
    told = f"Median over the steps, with quartiles; lower is faster. Batch {batch}. Up to {real:,} tokens of real text."
    return Figure(drawn.svg, told + made_up, origins(records))


def _prefill(at: str, records: list[Record]) -> Figure:
    with drawing(f"Time to the first token{at}", "context, in tokens", "seconds") as drawn:
        for label, own in _lines(records):
            x, y = [record["context"] for record in own], [record["first_token_seconds"] for record in own]
            drawn.axes.plot(x, y, label=label, **style_of(label).line)
        doubling_axis(drawn.axes, [record["context"] for record in records])
        log_axis(drawn.axes, [record["first_token_seconds"] for record in records])
    rounds = max(record["rounds"] for record in records)
    return Figure(drawn.svg, f"Median of {rounds} rounds; lower is faster.", origins(records))


def _throughput(records: list[Record]) -> Iterator[Figure]:
    by_context = sorted(grouped(records, lambda record: record["context"]).items())
    for context, at, shown in ((context, *each) for context, own in by_context for each in by_budget(own)):
        batches = {record["batch"] for record in shown}
        if len(batches) > 1:
            title = f"Throughput at {context:,} tokens{at}"
            with drawing(title, "batch", "output tokens per second") as drawn:
                for label, own in _lines(shown, "batch"):
                    x, y = [record["batch"] for record in own], [record["tokens_per_second"] for record in own]
                    drawn.axes.plot(x, y, label=label, **style_of(label).line)
                doubling_axis(drawn.axes, list(batches))
                drawn.axes.set_ylim(bottom=0)
            yield Figure(drawn.svg, "Tokens of all sequences of the batch together; higher is faster.", origins(shown))


def _breakdown(records: list[Record]) -> Iterator[Figure]:
    """Phases of a step at the longest context."""
    longest = max(record["context"] for record in records)
    shown = [record for record in records if record["context"] == longest]
    # Of a cache that is not ours nothing more is known.
    spent = [record["phases"] or {"model": record["ms_per_token"]} for record in shown]
    known = dict.fromkeys(phase for each in spent for phase in each)
    phases = [phase for phase in known if phase not in ("model", AHEAD) and any(each.get(phase) for each in spent)]
    if phases:
        tells = "Where the time of a step goes; model: all but the cache. What runs ahead beside it is left out."
        with drawing(f"One decode step at {longest:,} tokens", "ms per step", "", _tall(shown)) as drawn:
            labels, left = [record["label"] for record in shown], [0.0] * len(shown)
            for phase, color in zip(["model", *phases], [GREY, *PALETTE, *PALETTE], strict=False):
                widths = [each.get(phase, 0.0) for each in spent]
                drawn.axes.barh(labels, widths, left=left, color=color, label=phase, height=0.7)
                left = [start + width for start, width in zip(left, widths, strict=True)]
            bars_axis(drawn.axes, len(shown))
        yield Figure(drawn.svg, tells, origins(shown))


def _ladder(records: list[Record], title: str, tells: str) -> Iterator[Figure]:
    for context, own in sorted(grouped(records, lambda record: record["context"]).items()):
        with drawing(f"{title}, at {context:,} tokens", "ms per token", "", _tall(own)) as drawn:
            values = [record["ms_per_token"] for record in own]
            several = len({record["batch"] for record in own}) > 1
            places = [f"{record['label']}, batch {record['batch']}" if several else record["label"] for record in own]
            colors = [PALETTE[1] if record["base"] != "sdpa" else GREY for record in own]
            bars = drawn.axes.barh(places, values, color=colors, height=0.7)
            drawn.axes.bar_label(bars, fmt="%.1f", padding=3, color=INK, fontsize=9)
            bars_axis(drawn.axes, len(own))
        yield Figure(drawn.svg, f"{tells} Median ms per token; shorter is faster.", origins(own))


def _first_tokens(records: list[Record]) -> Table:
    columns = ["method", "budget", "context", "seconds", "least", "most", "clustering"]
    rows = [
        [
            text(record["method"]),
            text(record["budget"]),
            text(record["context"]),
            number(record["first_token_seconds"]),
            number(min(record["all_seconds"])),
            number(max(record["all_seconds"])),
            number(record["clustering_seconds"]),
        ]
        for record in records
    ]
    return Table("Time to the first token in figures", columns, rows, "Median, least and most.", origins(records))


def _bytes(title: str, records: list[Record]) -> Table:
    late = any(record.get("ahead_rate") is not None for record in records)
    columns = ["method", "budget", "context", "batch", "ms a token", "tokens a second", "device", "peak", "host"]
    columns += ["of full", "index", "fetched a token", "retrievals", *(["ahead"] if late else [])]
    columns += ["hits", "retrieval's time", "implementation"]
    rows = [
        [
            text(record["method"]),
            text(record["budget"]),
            text(record["context"]),
            text(record["batch"]),
            number(record["ms_per_token"]),
            number(record["tokens_per_second"], ".1f"),
            size(record["device_bytes"]),
            size(record["peak_device_bytes"]),
            size(record["host_bytes"]),
            number(record["device_bytes"] / record["full_bytes"], ".1%") if record["full_bytes"] else text(None),
            number(index_share(record), ".1%"),
            size(record["fetched_per_token"]),
            number(record["retrieval_rate"]),
            *([number(record.get("ahead_rate"))] if late else []),
            number(record["hit_rate"]),
            number(record["retrieval_share"], ".0%"),
            text(record["impl"]),
        ]
        for record in records
    ]
    caption = (
        "Device: resident sets and index; of full and index: shares of full attention's keys and values. Retrieval's "
        "time: scoring, selection and fetch as a share of a step."
    )
    return Table(title, columns, rows, caption, origins(records))


def _lines(records: Sequence[Record], along: str = "context") -> Iterator[tuple[str, list[Record]]]:
    """The points of each method, in order."""
    place: Callable[[Record], float] = lambda record: record[along]  # noqa: E731
    for label, own in grouped(records, lambda record: record["method"]).items():
        yield label, sorted(own, key=place)


def _tall(records: list[Record]) -> tuple[float, float]:
    return 5.8, 1.3 + 0.28 * max(3, len(records))
