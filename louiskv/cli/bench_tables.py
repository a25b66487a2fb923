"""How benchmarks look in a terminal: tables, and a bar of what one decode step is made of."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import wrap
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from louiskv.bench.decode import BESIDE
from louiskv.bench.ladder import PER_TOKEN
from louiskv.bench.runner import SDPA, Record
from louiskv.cli.tables import Shown, number, percent, print_tables, short_time, significant
from louiskv.evaluation.summary import index_share
from louiskv.telemetry import format_bytes

HEADS = {None: "decode", "ladder": "part by part", "units": "units"}
# Speeds are told against these, where they were measured as well.
YARDSTICKS = (SDPA, "full", PER_TOKEN)
# Of the processors, what others may take without being told of.
QUIET = 0.05
# Each phase has a letter of its own, so that bars can be read without colours.
BAR_WIDTH = 48
# Letters of a line of seconds.
EACH_WIDTH = 20
COLOURS = {
    "model": ("m", "blue"),
    "attention": ("a", "green"),
    "selection": ("s", "yellow"),
    "fetch": ("f", "red"),
    "offload": ("o", "magenta"),
    "clustering": ("c", "cyan"),
    "prefill": ("p", "white"),
}


def print_decode(console: Console, records: list[Record], refused: dict[str, str] | None = None) -> None:
    """Print tables of each context and batch, and where the figures come from.

    Args:
        console: Where to print.
        records: Of decoding.
        refused: Rungs of the ladder of parts that cannot run here, and why.
    """
    for group in _grouped(records):
        context, batch, real, steps = (group[0][name] for name in ("context", "batch", "num_real", "steps"))
        made = "all real text" if real == context else f"{real} of real text, the rest repeated"
        sequences = "" if batch == 1 else f"{batch} x "
        what = HEADS[group[0]["group"]]
        if group[0]["group"] == "units":
            what += f" ({group[0]['family']})"
        head = f"{what} at {sequences}{context} tokens ({made}), {steps} steps"
        rungs = (refused or {}) if group[0]["group"] == "ladder" else {}
        if not group[0]["interleaved"]:
            head += "; one after another, for not all fit into memory at once"
        console.print(head, style="bold", highlight=False)
        for shown in (_speed(group, rungs), _memory(group), _phases(group)):
            print_tables(console, shown)
        console.print(_bars(group), highlight=False)
        for name, why in rungs.items():
            console.print(f"{name}: cannot run here: {why}.", highlight=False, markup=False)
        console.print()
    print_origin(console, records)


def print_prefill(console: Console, records: list[Record]) -> None:
    """Print a table of each length, and where the figures come from."""
    for group in _grouped(records):
        head = f"time to first token at {group[0]['context']} tokens, median of {group[0]['rounds']}"
        console.print(head, style="bold", highlight=False)
        columns, rows = ["", "seconds", "each", "against sdpa", "against full", "clustering"], []
        base = {record["method"]: record["first_token_seconds"] for record in group}
        for record in group:
            seconds = record["first_token_seconds"]
            against = (f"{seconds / base[name] - 1:+.1%}" if name in base else "-" for name in (SDPA, "full"))
            each = "\n".join(wrap(" ".join(f"{value:.1f}" for value in record["all_seconds"]), EACH_WIDTH))
            clustering = f"{record['clustering_seconds']:.2f} s"
            rows.append([record["method"], f"{seconds:.2f}", each, *against, clustering])
        print_tables(console, (columns, rows))
    print_origin(console, records)


def print_operations(console: Console, records: list[Record]) -> None:
    """Print a table of operations at each context and batch, and what the machine could do at best."""
    for group in _grouped(records):
        context, batch, budget = (group[0][name] for name in ("context", "batch", "budget"))
        head = f"operations of one layer, {batch} x {context} tokens, budget {budget}"
        console.print(head, style="bold", highlight=False)
        console.print(_operations(group), highlight=False)
    console.print(_machine([record["peaks"] for record in records]), highlight=False)
    others = statistics.mean(record["others"] or 0 for record in records)
    if others > QUIET:
        told = f"not quiet: others took {others:.0%} of the processors meanwhile, for which threads wait"
        console.print(told, highlight=False, style="yellow")
    if any(record["timed_by"] == "stream" for record in records):
        console.print("* called from Python, gaps between launches included; the others in a CUDA graph")
    print_origin(console, records)


def _operations(records: list[Record]) -> Table:
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for place, column in enumerate(("", "impl", "time", "+-", "faster", "rate", "of roofline")):
        shown.add_column(column, justify="right" if place > 1 else "left", no_wrap=place > 0, overflow="fold")
    cases: dict[str, list[Record]] = {}
    for record in records:
        cases.setdefault(record["method"], []).append(record)
    for own in cases.values():
        op = own[0]["class"]
        names = [op, own[0]["method"].removeprefix(op).replace(" ", "  ", 1)]
        # The second line of a name stands beside the second implementation, if there is one.
        names = names if len(own) > 1 else ["\n".join(names).rstrip()]
        for place, record in enumerate(own):
            low, high = record["quartiles"]
            star = "*" if record["timed_by"] == "stream" else ""
            share = "" if record["share"] is None else f"{record['share']:.0%} "
            shown.add_row(
                names[place] if place < len(names) else "",
                record["impl"],
                short_time(record["microseconds"] / 1e6) + star,
                f"{(high - low) / 2 / record['microseconds']:.0%}",
                f"{significant(record['faster'])}x",
                _rate(record),
                f"{share}{record['limit']}",
            )
    return shown


def _rate(record: Record) -> str:
    """What holds it back, a second: products, or else bytes."""
    if record["limit"] == "compute":
        return f"{significant(record['flops_per_second'] / 1e9)} GFLOP/s"
    return f"{significant(record['bytes_per_second'] / 1e9)} GB/s"


def _machine(peaks: list[Record]) -> str:
    """The roofline in a line: the least and the greatest that was measured."""

    def told(name: str, form: Callable[[float], str] = lambda rate: significant(rate / 1e9)) -> str:
        return " to ".join(dict.fromkeys(form(bound(each[name] for each in peaks)) for bound in (min, max)))

    bus = [f"to the {end} {told(f'to_{end}')}" for end in ("device", "host") if peaks[0][f"to_{end}"] is not None]
    rates = ", ".join([f"read {told('read')}", f"copied {told('copy')}", *bus])
    call, cache = told("call", short_time), format_bytes(peaks[0]["cache"])
    return f"machine: {rates} GB/s; products {told('matmul')} GFLOP/s; a call {call}; cache {cache}"


def print_origin(console: Console, records: list[Record]) -> None:
    """Print settings, model, machine and versions; what several records share stands once."""
    for line in dict.fromkeys([*map(_settings, records), *map(_origin, records)]):
        if line:
            console.print(line, highlight=False, markup=False, style="dim")


def _settings(record: Record) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in record["settings"].items())
    # Those of ladders are told by their names; the file has all of them.
    return f"{record['method']}: {settings}" if settings and record["group"] is None else ""


def _origin(record: Record) -> str:
    where, model = record["provenance"], Path(record["model"]).name
    machine = f"{where['processor']}, {where['threads']} threads, {where['device']}"
    commit = where["commit"] or where["louiskv"]
    versions = f"torch {where['torch']}, transformers {where['transformers']}, louiskv {commit}"
    return f"{model} ({record['dtype']}); {machine}; {versions}; run of {record['run'][:16]}"


def _grouped(records: list[Record]) -> Iterable[list[Record]]:
    """What stands in one table; of units, those that are retrieved at the same time."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        shared = [record["context"], record.get("batch"), record["group"]]
        groups.setdefault((*shared, record["family"] if record["group"] == "units" else None), []).append(record)
    return groups.values()


def _name(record: Record) -> str:
    """The name in a table, which does not repeat the family in its heading."""
    return str(record["method"]).removeprefix(f"{record['family']} ")


def _speed(records: list[Record], rungs: dict[str, str]) -> Shown:
    """What took how long."""
    unit = "ms per token" if records[0]["batch"] == 1 else "ms per step"
    times = {record["method"]: record["ms_per_token"] for record in records}
    bases = [name for name in YARDSTICKS if name in times]
    against = [f"against {name}" for name in bases]
    columns, rows = ["", unit, "quartiles", "tokens a second", *against], []
    for record in records:
        time = record["ms_per_token"]
        low, high = record["ms_quartiles"]
        speeds = [f"{times[name] / time:.2f}x" for name in bases]
        figures = f"{time:.1f}", f"{low:.1f} - {high:.1f}", f"{record['tokens_per_second']:.1f}"
        rows.append([_name(record), *figures, *speeds])
    rows += [[name, *["-"] * (3 + len(bases))] for name in rungs]
    return columns, rows


def _memory(records: list[Record]) -> Shown:
    """What lay and moved where."""
    # Records that were written before this was told have none.
    late = any(record.get("ahead_rate") is not None for record in records)
    columns = ["", "device", "of full", "index", "host", "fetched a token", "retrievals"]
    columns, rows = [*columns, *(["ahead"] if late else []), "hits", "their time"], []
    for record in records:
        row = [
            _name(record),
            format_bytes(record["device_bytes"]),
            f"{record['device_bytes'] / record['full_bytes']:.1%}",
            percent(index_share(record)),
            format_bytes(record["host_bytes"]),
            format_bytes(record["fetched_per_token"]),
            f"{record['retrieval_rate']:.2f}",
            *([number(record.get("ahead_rate"), ".2f")] if late else []),
            number(record["hit_rate"], ".0%"),
            f"{record['retrieval_share']:.1%}",
        ]
        rows.append(row)
    return columns, rows


def _phases(records: list[Record]) -> Shown:
    """What a mean step is made of, in ms."""
    spent, beside = _spent(records), any(record["phases"].get(BESIDE) for record in records)
    columns, rows = ["ms of a step", *spent, *(["beside it"] if beside else []), "all"], []
    for record in records:
        phases = record["phases"]
        cells = [f"{phases[phase]:.1f}" if phase in phases else "-" for phase in spent]
        cells += [f"{phases.get(BESIDE, 0):.1f}"] if beside else []
        rows.append([_name(record), *cells, f"{_length(record):.1f}"])
    return columns, rows


def _bars(records: list[Record]) -> Group:
    """The same as bars, as long as the steps."""
    spent, longest = _spent(records), max(map(_length, records))
    shown = Table.grid(padding=(0, 2))
    for record in records:
        shown.add_row(_name(record), _bar(record["phases"], spent, longest))
    letters = (Text(f"{COLOURS[name][0]} {name}", style=COLOURS[name][1]) for name in spent)
    return Group(shown, Text("  ").join(letters))


def _spent(records: list[Record]) -> list[str]:
    """The phases in which time was spent."""
    return [phase for phase in COLOURS if any(record["phases"].get(phase) for record in records)]


def _length(record: Record) -> float:
    return float(sum(time for phase, time in record["phases"].items() if phase != BESIDE))


def _bar(phases: dict[str, float], spent: list[str], longest: float) -> Text:
    bar, end, drawn = Text(no_wrap=True), 0.0, 0
    for phase in spent:
        end += max(0.0, phases.get(phase, 0))
        width = round(end / longest * BAR_WIDTH) - drawn
        letter, colour = COLOURS[phase]
        bar.append(letter * width, style=f"{colour} reverse")
        drawn += width
    return bar
