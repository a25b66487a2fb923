"""`louiskv report`: a page of figures and tables from files of results."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from louiskv.cli.failures import UsageError
from louiskv.cli.progress import progress_bar
from louiskv.reporting.records import find

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of results.", metavar="DIR", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="File of the page; DIR/report.html unless given.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables into this file of Markdown, too.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the path, the number of records and the sections as one JSON object.")
    ] = False,
) -> None:
    """Draw what `eval`, `probe`, `calibrate` and `bench` have written into a folder, as one page of HTML.

    The page is one file and needs no network. Below every figure it tells the commands that made its records.

    louiskv report results
    """
    missing = [package for package in ("matplotlib", "jinja2") if find_spec(package) is None]
    if missing:
        raise UsageError(f"The report needs {' and '.join(missing)}: pip install 'louiskv[report]'")
    found, path = find(folder), folder / "report.html" if output is None else output
    from louiskv.reporting.markdown import markdown as as_markdown
    from louiskv.reporting.page import chapters, render, write

    console = Console(stderr=True)
    with progress_bar(console) as advance:
        drawn = chapters(found, advance)
    title = f"Results of louiskv: {folder.resolve().name}"
    write(render(found, drawn, title), path)
    if markdown is not None:
        write(as_markdown(found, drawn, title), markdown, "--markdown")
    for name in found.left_out:
        console.print(f"left out: {name} holds no results of louiskv", highlight=False, markup=False, style="dim")
    if as_json:
        sections = {chapter.title: [section.name for section in chapter.sections] for chapter in drawn}
        print(json.dumps({"path": str(path), "records": len(found.records), "sections": sections}))
    else:
        print(path)
