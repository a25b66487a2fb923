"""The tables of a page as Markdown, for documents that are read where no page is."""

from collections.abc import Iterable, Iterator

from louiskv.reporting.content import Fold, Part, Table
from louiskv.reporting.page import Chapter, facts
from louiskv.reporting.records import Found


def markdown(found: Found, drawn: list[Chapter], title: str) -> str:
    """All tables with their captions and commands; the figures are left out."""
    lines = [f"# {title}", ""]
    lines += [f"- {name}: {'; '.join(values)}" for name, values in facts(found, drawn)]
    for chapter in drawn:
        lines += ["", f"## {chapter.title}"]
        for section in chapter.sections:
            tables = list(_tables(section.parts))
            lines += ["", f"### {section.title}", "", section.text] if tables else []
            for heading, each in tables:
                lines += _table(heading, each)
    return "\n".join(lines) + "\n"


def _tables(parts: Iterable[Part], heading: str = "") -> Iterator[tuple[str, Table]]:
    """All tables with their titles, or else those of the folds that they lie in."""
    for part in parts:
        if isinstance(part, Fold):
            yield from _tables(part.parts, part.title)
        elif isinstance(part, Table):
            yield part.title or heading, part


def _table(heading: str, table: Table) -> Iterator[str]:
    yield from ("", f"**{heading}**", "") if heading else ("",)
    yield _row(table.columns)
    yield _row("---:" if numeric else "---" for numeric in table.numeric)
    yield from (_row(cell.text for cell in row) for row in table.rows)
    yield from ("", table.caption) if table.caption else ()
    yield from (f"\n    {made.command}  # {made.commit}" for made in table.made)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
