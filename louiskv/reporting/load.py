"""A server under load: what comes in a second, and how long clients wait."""

from collections.abc import Callable, Iterator

from louiskv.reporting.axes import doubling_axis, log_axis
from louiskv.reporting.content import Cell, Figure, Fold, Part, Section, Table, number, origins, size, text
from louiskv.reporting.drawing import drawing
from louiskv.reporting.records import Measured, Record, grouped, machine
from louiskv.reporting.styles import style_of

# What decides over a load beside how many ask.
ASKED = ("prompts", "output", "requests", "rows", "prefill_chunk", "host_memory", "device_memory", "queue", "seed")
TELLS = (
    "Times are the clients', of whole answers. Slowest: to the first token, over the median of prompts of the same "
    "length. At once: answers that were decoded together. Device: the most that resident sets and indices took "
    "together, prompts on their way included. CPU: of the server, all its threads together."
)


def load(model: Measured) -> Section | None:
    """Figures of load tests, for each machine and for all that was asked alike."""
    records = model.of("serve")
    alike = grouped(records, lambda record: (machine(record), *(str(record[name]) for name in ASKED)))
    parts: list[Part] = [Fold(_title(own[0]), list(_parts(own)), open=True) for own in alike.values()]
    told = "A server for each method in turn; its clients read answers as streams, and ask anew when one has ended."
    return Section("load", "Under load", told, parts) if parts else None


def _title(record: Record) -> str:
    lengths = " and ".join(map(str, record["prompts"]))
    return f"{record['requests']} requests of {lengths} tokens, {record['output']} tokens each, {record['rows']} rows"


def _parts(records: list[Record]) -> Iterator[Part]:
    several = [record for record in records if record["clients"] is not None]
    if len({record["clients"] for record in several}) > 1:
        yield _lines("Output tokens a second", "tokens per second", several, lambda record: record["tokens_per_second"])
        waited = [record for record in several if record["first_token_seconds"] is not None]
        if waited:
            yield _lines(
                "Median time to the first token",
                "seconds",
                waited,
                lambda record: record["first_token_seconds"]["p50"],
                logarithmic=True,
            )
    yield _table(records)


def _lines(
    title: str, unit: str, records: list[Record], of: Callable[[Record], float], logarithmic: bool = False
) -> Figure:
    with drawing(title, "clients", unit) as drawn:
        for label, own in grouped(records, lambda record: record["label"]).items():
            points = sorted((record["clients"], of(record)) for record in own)
            drawn.axes.plot(*zip(*points, strict=True), label=label, **style_of(label.split(":")[0]).line)
        doubling_axis(drawn.axes, [record["clients"] for record in records])
        if logarithmic:
            log_axis(drawn.axes, [of(record) for record in records])
        else:
            drawn.axes.set_ylim(bottom=0)
    return Figure(drawn.svg, f"{'Lower' if logarithmic else 'Higher'} is better.", origins(records))


def _table(records: list[Record]) -> Table:
    columns = [
        "method",
        "budget",
        "clients",
        "requests a second",
        "answered",
        "tokens a second",
        "with prompts",
        "CPU seconds",
    ]
    columns += ["first p50", "first p90", "first p99", "slowest", "between p50", "between p99", "answer p50"]
    columns += ["at once", "device", "host", "fetched", "retrievals"]
    rows = [
        [
            text(record["method"]),
            text(record["budget"]),
            text(record["clients"]),
            number(record["rate"], "g"),
            text(record["answered"]),
            number(record["tokens_per_second"], ".1f"),
            number(record["all_tokens_per_second"], ".1f"),
            number(record["processor_seconds"], ".1f"),
            *(_share(record, "first_token_seconds", name) for name in ("p50", "p90", "p99")),
            number(record["slowest_over_median"]),
            *(_share(record, "between_seconds", name) for name in ("p50", "p99")),
            _share(record, "answer_seconds", "p50"),
            text(record["most_at_once"]),
            size(record["peak_device_bytes"]),
            size(record["peak_host_bytes"]),
            size(record["fetched_bytes"]),
            number(record["retrieval_rate"]),
        ]
        for record in records
    ]
    return Table("Under load, in figures", columns, rows, TELLS, origins(records))


def _share(record: Record, name: str, share: str) -> Cell:
    return number(None if record[name] is None else record[name][share])
