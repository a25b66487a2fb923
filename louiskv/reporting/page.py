"""The page: its head, a part for each model, and all commands, as one file of HTML."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

import louiskv
from louiskv.errors import ResultsError
from louiskv.reporting.accuracy import accuracy
from louiskv.reporting.comparing import compared
from louiskv.reporting.content import Cell, Section, Table, text
from louiskv.reporting.exchanged import exchanged
from louiskv.reporting.inside import inside
from louiskv.reporting.load import load
from louiskv.reporting.operations import operations
from louiskv.reporting.records import Found, Measured, Record, by_model, grouped, machine
from louiskv.reporting.scores import fidelity, scores
from louiskv.reporting.speed import speed
from louiskv.reporting.taus import calibrations

SECTIONS: dict[str, Callable[[Measured], Section | None]] = {
    "accuracy": accuracy,
    "scores": scores,
    "fidelity": fidelity,
    "trigger": partial(compared, group="trigger"),
    "units": partial(compared, group="units"),
    "plus": exchanged,
    "inside": inside,
    "calibration": calibrations,
    "speed": speed,
    "load": load,
    "operations": operations,
}


@dataclass(frozen=True)
class Chapter:
    """A model with its sections."""

    name: str
    title: str
    subtitle: str
    sections: list[Section]


def chapters(found: Found, progress: Callable[[str, float, float], None] = lambda *_: None) -> list[Chapter]:
    """Draw everything.

    Args:
        found: What lies in the folder.
        progress: Called with what is drawn, how many sections are done, and of how many.
    """
    models, made = by_model(found), []
    for number, model in enumerate(models):
        sections = []
        for place, (name, draw) in enumerate(SECTIONS.items()):
            progress(f"{model.title}: {name}", number * len(SECTIONS) + place, len(models) * len(SECTIONS))
            section = _drawn(draw, model)
            if section is not None:
                sections.append(section)
        made.append(Chapter(f"model-{number + 1}", model.title, f"parameters {model.model_hash}", sections))
    return made


def _drawn(draw: Callable[[Measured], Section | None], model: Measured) -> Section | None:
    try:
        return draw(model)
    except KeyError as error:
        raise ResultsError(
            f"A result of {model.title} has no {error}: it was written by another version of louiskv. Take its file "
            "out of the folder, or run its command anew."
        ) from error


def render(found: Found, drawn: list[Chapter], title: str) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("louiskv", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    commands = _commands(found.records)
    template = environment.get_template("page.html.j2")
    return template.render(
        title=title,
        facts=facts(found, drawn),
        chapters=drawn,
        commands=commands,
        version=louiskv.__version__,
        left_out=found.left_out,
    )


def write(page: str, path: Path, option: str = "--output") -> None:
    """Write the page, into the file that an option names.

    Raises:
        ResultsError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{path} cannot be written: {error.strerror}. Give another {option}.") from error


def facts(found: Found, drawn: list[Chapter]) -> list[tuple[str, list[str]]]:
    """What was run, where and by what."""
    made = [record["provenance"] for record in found.records]

    def each(form: str) -> list[str]:
        return list(dict.fromkeys(form.format(**{**one, "commit": one["commit"] or "unknown"}) for one in made))

    kinds = grouped(found.records, lambda record: record["kind"])
    counts = [f"{len(records)} of {kind}" for kind, records in kinds.items()]
    if found.taus:
        counts.append(f"{len(found.taus)} of calibration")
    facts = {
        "models": [f"{chapter.title} ({chapter.subtitle})" for chapter in drawn],
        "results": [", ".join(counts)],
        "machines": list(dict.fromkeys(map(machine, found.records))),
        "commits": each("{commit}"),
        "versions": each("louiskv {louiskv}, python {python}, torch {torch}, transformers {transformers}"),
        "files": [", ".join(found.files)],
    }
    return [(name, values) for name, values in facts.items() if values]


def _commands(records: list[Record]) -> Table:
    rows: list[list[Cell]] = []
    by_origin = grouped(records, lambda record: tuple(record["provenance"].values()))
    for own in by_origin.values():
        made = own[0]["provenance"]
        versions = f"{made['louiskv']}, {made['torch']}, {made['transformers']}"
        rows.append(
            [
                text(made["command"]),
                text(made["commit"] or "unknown"),
                text(len(own)),
                text(versions),
                text(machine(own[0])),
            ]
        )
    columns = ["command", "commit", "results", "louiskv, torch, transformers", "machine"]
    return Table("", columns, rows, "Run with the same options, a command finds its results in its file and adds none.")
