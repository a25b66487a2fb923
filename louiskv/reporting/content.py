"""What a page is made of: sections of figures and tables, each with what made it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from louiskv.reporting.records import Record
from louiskv.telemetry import format_bytes


@dataclass(frozen=True)
class Origin:
    """A command and the commit that it ran at."""

    command: str
    commit: str


@dataclass(frozen=True)
class Cell:
    """What a table shows at a place, and what it is sorted by there."""

    text: str
    value: float | str


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption."""

    kind: ClassVar[str] = "figure"

    svg: str
    caption: str
    made: list[Origin] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """A table whose rows can be sorted; a wide one has the whole width of the page."""

    kind: ClassVar[str] = "table"

    title: str
    columns: Sequence[str]
    rows: list[list[Cell]]
    caption: str = ""
    made: list[Origin] = field(default_factory=list)
    wide: bool = True

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it holds numbers, or nothing."""
        columns = zip(*self.rows, strict=True)
        return [not any(isinstance(cell.value, str) and cell.value for cell in column) for column in columns]


@dataclass(frozen=True)
class Fold:
    """Parts under a title that opens and closes."""

    kind: ClassVar[str] = "fold"

    title: str
    parts: "list[Part]"
    open: bool = False


Part = Figure | Table | Fold


@dataclass(frozen=True)
class Section:
    """Parts under a heading; `name` is what links lead to."""

    name: str
    title: str
    text: str
    parts: list[Part]


def origins(records: Iterable[Record]) -> list[Origin]:
    """The commands that made records, each once."""
    made = (record["provenance"] for record in records)
    return list(dict.fromkeys(Origin(each["command"], each["commit"] or "unknown") for each in made))


def text(value: str | int | None) -> Cell:
    """A cell of text or of a whole number."""
    return Cell("-", "") if value is None else Cell(str(value), value)


def number(value: float | None, form: str = ".2f", bounds: tuple[float, float] | None = None) -> Cell:
    """A cell of a number, with the bounds of its interval if there are any."""
    if value is None:
        return Cell("-", "")
    inside = "" if bounds is None else f" [{bounds[0]:{form}}, {bounds[1]:{form}}]"
    # No -0.000: a negative zero says nothing.
    shown = f"{value:{form}}"
    return Cell((shown.lstrip("-") if not any(digit in shown for digit in "123456789") else shown) + inside, value)


def size(value: float | None) -> Cell:
    """A cell of a number of bytes."""
    return Cell("-", "") if value is None else Cell(format_bytes(value), value)
