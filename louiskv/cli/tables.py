"""How figures look in a terminal."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from louiskv.telemetry import Report

# Letters of names that are never wrapped.
LEAST_WRAPPED = 24

# Columns of a table, the first with names, and its rows.
Shown = tuple[list[str], list[list[str]]]


def table(*columns: str) -> Table:
    """An empty table; numbers go into the columns after the first, to the right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place == 0 else "right", overflow="fold", no_wrap=place == 0)
    return made


def tables(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, kept: int = 2) -> Iterator[Table]:
    """As many tables as `width` letters ask for: each has the first `kept` columns and a part of the others."""
    # Names wrap between their words, figures do not; three letters lie between columns, and one at either end.
    rows = [[_wrapped(row[0], max(LEAST_WRAPPED, width // 3)), *row[1:]] for row in rows]
    names = [columns[0], *(max(name.split(), key=len) for name in columns[1:])]
    widths = [
        3 + max(len(line) for cell in cells for line in cell.split("\n")) for cells in zip(names, *rows, strict=True)
    ]
    room = width + 1 - sum(widths[:kept])
    start = kept
    while start < len(columns):
        end = start + 1
        while end < len(columns) and sum(widths[start : end + 1]) <= room:
            end += 1
        made, spare = table(), room - sum(widths[start:end])
        for place in (*range(kept), *range(start, end)):
            # Wrapped here and not by the table, which would also break figures to find room for a name.
            more = max(0, min(spare, len(columns[place]) + 3 - widths[place])) if place >= kept else 0
            spare -= more
            head = "\n".join(wrap(columns[place], widths[place] - 3 + more)) if place else columns[place]
            made.add_column(head, justify="left" if place == 0 else "right", no_wrap=True)
        for row in rows:
            made.add_row(*row[:kept], *row[start:end])
        yield made
        start = end


def _wrapped(name: str, width: int) -> str:
    """A name in lines of `width` letters where it has places to break: behind spaces, colons and commas."""
    lines = [""]
    for part in re.split(r"(?<=[ :,])", name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def print_tables(console: Console, shown: Shown, kept: int = 1) -> None:
    """Print columns and rows as the tables that the console has room for, each with the first `kept` columns."""
    columns, rows = shown
    for each in tables(columns, rows, console.width, kept):
        console.print(each, highlight=False)


def pairs(rows: list[tuple[str, str]]) -> Table:
    """Names and what is said of them, the latter wrapped under itself."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, text in rows:
        made.add_row(name, text)
    return made


def print_records(
    records: list[dict[str, Any]], show: Callable[[Console, list[dict[str, Any]]], None], output: Path, as_json: bool
) -> None:
    """Print what a call found as one JSON list, or as `show` shows it and where it lies."""
    if as_json:
        print(json.dumps(records))
        return
    console = Console()
    show(console, records)
    console.print(f"{len(records)} results in {output}", highlight=False, style="dim")


def print_report(console: Console, report: Report, *more: tuple[str, str]) -> None:
    """Print what a cache did, and more rows under it."""
    head, *lines = str(report).splitlines()
    rows: list[tuple[str, str]] = []
    for line in lines:
        name, text = line.split(maxsplit=1)
        rows.append((name, text))
    console.print(head, style="bold", highlight=False, markup=False)
    console.print(pairs([*rows, *more]), highlight=False, markup=False)


def number(value: float | None, form: str = ".3f") -> str:
    """A number, or a dash for none."""
    return "-" if value is None else f"{value:{form}}"


def percent(value: float | None) -> str:
    """A share as people read it: 0.042 -> 4.2%."""
    return number(value, ".1%")


def seconds(value: float | None) -> str:
    """A time as people read it: 0.0421 -> 42 ms."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def short_time(value: float) -> str:
    """A short time in three digits: 0.0000421 -> 42.1 us."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if value < 999.5 * size:
            return f"{significant(value / size)} {unit}"
    return f"{significant(value)} s"


def significant(value: float) -> str:
    """Three digits, or all of a whole number: 0.0421, 4.21, 42.1, 4210."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"
