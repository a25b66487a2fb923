"""How the shapes of large models look in a terminal."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from rich.console import Console

from louiskv.bench.runner import Record
from louiskv.bench.scenarios import end_to_end, speed_ups
from louiskv.cli.bench_tables import print_origin
from louiskv.cli.tables import Shown, number, percent, print_tables
from louiskv.telemetry import format_bytes

# What a step of retrieval methods is made of beside the model and attention.
RETRIEVAL = ("selection", "fetch")


def print_large(console: Console, records: list[Record]) -> None:
    """Print a table of each shape, and what tasks take from end to end."""
    for (model, kind, context, batch, chunk), group in groupby(records, key=_place):
        found, by = list(group), "" if chunk is None else f", {chunk} at once"
        console.print(f"{model}: {kind} of {batch} x {context} tokens{by}", style="bold", highlight=False)
        # A long output has rows of one name, told apart by their tokens.
        kept = 2 if kind == "growth" else 1
        print_tables(console, _TABLES[kind]([each for each in found if "left_out" not in each]), kept)
        for each in found:
            if "left_out" in each:
                console.print(f"{each['method']} is left out: {each['left_out']}.", highlight=False, markup=False)
        console.print()
    tasks = speed_ups(end_to_end(records))
    if tasks:
        console.print("from end to end: the first token, and so many steps", style="bold")
        for (name, sizes, batch), group in groupby(sorted(tasks, key=_task), key=_task):
            console.print(f"{name} ({sizes}), {batch} at once", highlight=False)
            print_tables(console, _tasks(group))
        console.print()
    print_origin(console, [each for each in records if "left_out" not in each])


def _place(record: Record) -> tuple[Any, ...]:
    kind = record["kind"].removeprefix("large ")
    return record["model"], kind, record["context"], record["batch"], record.get("chunk")


def _task(record: Record) -> tuple[str, str, int]:
    return record["scenario"], f"{record['prompt']} + {record['output']} tokens", record["batch"]


def _decode(records: list[Record]) -> Shown:
    columns = ["", "ms/step", "tokens/s", "steps", "retrieval", "fires", "hits", "MiB/token", "peak device", "how"]
    rows = []
    for each in records:
        phases = each["phases"]
        share = sum(phases.get(phase, 0.0) for phase in RETRIEVAL) / sum(phases.values()) if phases else None
        row = [
            each["method"],
            f"{each['ms_per_token']:.2f}",
            f"{each['tokens_per_second']:.0f}",
            str(each["timed_steps"]),
            percent(share),
            number(each.get("retrieval_rate")),
            number(each.get("hit_rate")),
            number(each["fetched_per_token"] / 2**20 if "fetched_per_token" in each else None),
            format_bytes(each["cuda_peak_bytes"]) if each["cuda_peak_bytes"] is not None else "-",
            "graph" if each["eager"] is None else "step by step",
        ]
        rows.append(row)
    return columns, rows


def _prefill(records: list[Record]) -> Shown:
    columns, rows = ["", "seconds", "against full", "all in place", "clustering", "offload", "peak device"], []
    base = {each["method"]: each["first_token_seconds"] for each in records}.get("full")
    for each in records:
        seconds = each["first_token_seconds"]
        row = [
            each["method"],
            f"{seconds:.3f}",
            "-" if base is None else f"{seconds / base - 1:+.1%}",
            f"{each['ready_seconds']:.3f}",
            f"{each['clustering_seconds']:.3f}",
            f"{each['offload_seconds']:.3f}",
            format_bytes(each["cuda_peak_bytes"]) if each["cuda_peak_bytes"] is not None else "-",
        ]
        rows.append(row)
    return columns, rows


def _growth(records: list[Record]) -> Shown:
    columns, rows = ["", "tokens", "ms/step", "device", "host", "peak device"], []
    for each in records:
        part = each["steps"] // len(each["held"])
        for place, held in enumerate(each["held"], 1):
            peak, device, host = (held[name] for name in ("cuda_peak_bytes", "device_bytes", "host_bytes"))
            sizes = ("-" if size is None else format_bytes(size) for size in (device, host, peak))
            rows.append([each["method"], str(place * part), f"{held['ms_per_token']:.2f}", *sizes])
    return columns, rows


def _tasks(tasks: Iterable[Record]) -> Shown:
    columns, rows = ["", "first token", "decoding", "seconds", "over full", "over rival"], []
    for each in tasks:
        rival = "-" if each["over_rival"] is None else f"{each['over_rival']:.2f}x {each['rival']}"
        row = [
            each["method"],
            f"{each['first_token_seconds']:.2f}",
            f"{each['decode_seconds']:.2f}",
            f"{each['seconds']:.2f}",
            "-" if each["over_full"] is None else f"{each['over_full']:.2f}x",
            rival,
        ]
        rows.append(row)
    return columns, rows


_TABLES = {"decode": _decode, "prefill": _prefill, "growth": _growth}
