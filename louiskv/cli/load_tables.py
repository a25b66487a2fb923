"""How a load test looks in a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from louiskv.bench.runner import Record
from louiskv.cli.bench_tables import print_origin
from louiskv.cli.tables import Shown, number, print_tables, seconds
from louiskv.telemetry import format_bytes

BAR_WIDTH = 30


def print_load(console: Console, records: list[Record]) -> None:
    """Print tables of each load, what comes in a second as bars, and where the figures come from."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_head(record), []).append(record)
    for head, group in groups.items():
        console.print(head, style="bold", highlight=False)
        for shown in (_times(group), _memory(group)):
            print_tables(console, shown)
        for record in group:
            if record["failed"]:
                told = ", ".join(f"{count} with {status}" for status, count in record["failed"].items())
                console.print(
                    f"{record['method']}: not answered: {told}", highlight=False, markup=False, style="yellow"
                )
    console.print("output tokens a second", style="bold", highlight=False)
    console.print(_bars(records), highlight=False)
    console.print()
    print_origin(console, records)


def _head(record: Record) -> str:
    """What was asked."""
    mixed = " and ".join(map(str, record["prompts"]))
    what = f"{record['requests']} requests of {mixed} tokens, {record['output']} tokens each"
    limit = record["device_memory"]
    at_most = "" if limit is None else f", {format_bytes(limit)} of device memory"
    return f"{load_of(record)}: {what}; {record['rows']} rows{at_most}"


def load_of(record: Record) -> str:
    """How many asked, or how often."""
    if record["clients"] is None:
        return f"{record['rate']:g} requests a second"
    return f"{record['clients']} client{'' if record['clients'] == 1 else 's'}"


def _times(records: list[Record]) -> Shown:
    """What clients have noted."""
    columns = [
        "",
        "tokens a second",
        "with prompts",
        "CPU time",
        "first p50",
        "first most",
        "between p50",
        "between p99",
    ]
    rows = []
    for record in records:
        first, between = (record[name] or {} for name in ("first_token_seconds", "between_seconds"))
        row = [
            record["method"],
            number(record["tokens_per_second"], ".1f"),
            number(record["all_tokens_per_second"], ".0f"),
            seconds(record["processor_seconds"]),
            *(seconds(first.get(name)) for name in ("p50", "most")),
            *(seconds(between.get(name)) for name in ("p50", "p99")),
        ]
        rows.append(row)
    return columns, rows


def _memory(records: list[Record]) -> Shown:
    """What lay where at the most, and what was moved."""
    columns = ["", "at once", "slowest / median", "device peak", "host peak", "fetched a token", "retrievals"]
    rows = []
    for record in records:
        fetched = _fetched(record)
        row = [
            record["method"],
            str(record["most_at_once"]),
            number(record["slowest_over_median"], ".2f"),
            format_bytes(record["peak_device_bytes"]),
            format_bytes(record["peak_host_bytes"]),
            "-" if fetched is None else format_bytes(fetched),
            number(record["retrieval_rate"], ".2f"),
        ]
        rows.append(row)
    return columns, rows


def _fetched(record: Record) -> float | None:
    """Bytes for each token that the engine has decoded, of answers that failed as well; None where that is unknown."""
    # Records that were written before this was told have none; where nothing failed, the clients have all of them.
    decoded = record.get("decoded_tokens", None if record["failed"] else record["output_tokens"])
    return record["fetched_bytes"] / decoded if decoded else None


def _bars(records: list[Record]) -> Table:
    most = max(record["tokens_per_second"] for record in records) or 1.0
    shown = Table.grid(padding=(0, 2))
    for record in records:
        rate = record["tokens_per_second"]
        bar = Text("#" * round(rate / most * BAR_WIDTH), no_wrap=True, style="blue")
        shown.add_row(load_of(record), record["method"], bar, f"{rate:.1f}")
    return shown
