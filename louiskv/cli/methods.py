"""`louiskv methods`: every method with its paper, what it keeps where, and its settings."""

import json
from dataclasses import Field
from inspect import getdoc
from typing import Annotated, Any

import typer
from rich.console import Console

from louiskv.cli.options import PRESETS, MethodChoice, flag
from louiskv.cli.tables import pairs
from louiskv.methods import METHODS

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

NAME = "One method, with what its settings mean."


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help=NAME, show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the methods: paper, what each keeps where, settings with their defaults."""
    names = list(METHODS) if name is None else [name]
    found = {each: _described(each) for each in names}
    if as_json:
        print(json.dumps(found))
        return
    console = Console()
    for each, told in found.items():
        rows = [("paper", told["paper"]), ("idea", told["idea"]), ("keeps", told["keeps"])]
        if told["presets"]:
            rows.append(("presets", ", ".join(told["presets"])))
        settings = told["settings"].items()
        if name is None:
            flags = (f"{flag(key)} {setting['default']}".rstrip() for key, setting in settings)
            rows.append(("settings", ", ".join(flags) or "none"))
        else:
            rows += [(flag(key), f"{setting['help']} ({setting['default']})") for key, setting in settings]
        console.print(each, style="bold", highlight=False)
        console.print(pairs(rows), highlight=False, markup=False)


def _described(name: str) -> dict[str, Any]:
    kind = MethodChoice(name, None, {}).kind()
    idea = (getdoc(kind) or "").partition("\n")[0]
    return {
        "paper": kind.paper,
        "idea": idea.rstrip("."),
        "keeps": kind.keeps,
        "presets": {preset: make().values() for preset, make in PRESETS.get(name, {}).items()},
        "settings": {each.name: _setting(each) for each in kind.settings()},
    }


def _setting(setting: Field[Any]) -> dict[str, Any]:
    return {"default": setting.default, "help": setting.metadata["help"]}
