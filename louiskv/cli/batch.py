"""`louiskv batch`: answer a file of requests, here or on a cluster."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from louiskv.cli.failures import UsageError
from louiskv.cli.loading import load, ready
from louiskv.cli.options import FleetChoice, MethodChoice, ModelChoice, takes_fleet, takes_method, takes_model
from louiskv.cli.progress import progress_bar
from louiskv.cli.prompts import size_of
from louiskv.cli.serve import check_extra
from louiskv.cli.serve_ray import check_ray, on_cluster
from louiskv.engine import Engine
from louiskv.methods import Method
from louiskv.models import name_of
from louiskv.results import check_writable, writing

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

FILE = "Requests, one a line, in the form of OpenAI's batch files."
OUTPUT = (
    "Where answers go, one a line; what is there already is not asked again. FILE with .answers.jsonl unless given."
)
NAME = "Name by which the requests know the model; the model's own unless given."
ROWS = "Answers that are decoded together at the most, on each replica."
MAX_LENGTH = "Tokens of prompt and answer at the most; what the model has positions for unless given."
HOST_MEMORY = "Host memory for keys and values, such as 8G; nine tenths of what is free unless given."
CHUNK = "Tokens of a prompt that are taken in between two steps of the answers that run; 512, on a GPU 8192."
JSON = "Print the report as one JSON object."


@app.command()
@takes_method
@takes_model
@takes_fleet
def batch(
    method: MethodChoice,
    model: ModelChoice,
    fleet: FleetChoice,
    file: Annotated[Path, typer.Argument(help=FILE, metavar="FILE", show_default=False)],
    output: Annotated[Path | None, typer.Option(help=OUTPUT, metavar="FILE", show_default=False)] = None,
    model_name: Annotated[str | None, typer.Option(help=NAME, metavar="NAME")] = None,
    rows: Annotated[int, typer.Option(help=ROWS, min=1, metavar="N")] = 8,
    max_length: Annotated[int | None, typer.Option(help=MAX_LENGTH, min=2, metavar="N")] = None,
    host_memory: Annotated[str | None, typer.Option(help=HOST_MEMORY, metavar="SIZE")] = None,
    prefill_chunk: Annotated[int | None, typer.Option(help=CHUNK, min=3, metavar="N")] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Answer a file of requests; every line has an answer or an error in the output.

    Answers are written as they come. After Ctrl-C or a failure the same call goes on where it was.

    louiskv batch requests.jsonl --output answers.jsonl --rows 16

    louiskv batch requests.jsonl --ray --replicas 4
    """
    check_extra()
    fleet.check()
    built = method.build()
    settings: dict[str, Any] = {
        "rows": rows,
        "max_length": max_length,
        "prefill_chunk": prefill_chunk,
        "host_memory": size_of("--host-memory", host_memory),
    }
    run = Run(file, output or file.with_suffix(".answers.jsonl"), Console(stderr=True))
    if run.lines and fleet.ray:
        check_ray()
        run.on_cluster(fleet, model, built, settings, model_name)
    elif run.lines:
        run.here(model, built, settings, model_name)
    run.tell(as_json)


class Run:
    """One call: the lines that are left, and the answers that were written.

    Attributes:
        lines: Those that have no answer yet.
        answers: Where theirs go.
    """

    def __init__(self, file: Path, output: Path, console: Console) -> None:
        """Read both files.

        Raises:
            UsageError: One of them cannot be read.
            ResultsError: The output is of something else, or cannot be written.
        """
        from louiskv.serving.batch.answering import Count
        from louiskv.serving.batch.answers import Answers
        from louiskv.serving.batch.lines import read_lines

        try:
            lines = list(read_lines(file.read_bytes()))
            self.answers = Answers(output)
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be read: {error.strerror}.") from error
        self.lines = [line for line in lines if line.identity not in self.answers.known]
        if self.lines:
            check_writable(output)
        self.console, self.count = console, Count()
        self._skipped, self._begin = len(lines) - len(self.lines), time.perf_counter()

    def here(self, model: ModelChoice, method: Method, settings: dict[str, Any], name: str | None) -> None:
        """Answer in this process."""
        from louiskv.serving.app import make_app
        from louiskv.serving.batch.answering import QUEUE, answer_all, lines_at_once
        from louiskv.serving.desk import Limits
        from louiskv.serving.life import Life
        from louiskv.serving.prompts import Prompts

        loaded, words = load(model, self.console)
        method_here = ready(loaded, method, self.console)
        with Engine(loaded, words, method_here, impl=model.impl, queue=QUEUE, **settings) as engine:
            prompts, known = Prompts(words, engine.end_tokens), name or name_of(model.name)
            made = make_app(engine, prompts, known, method_here, life=Life(), limits=Limits())
            self._write(lambda note: asyncio.run(answer_all(made, self.lines, lines_at_once(settings["rows"]), note)))

    def on_cluster(
        self, fleet: FleetChoice, model: ModelChoice, method: Method, settings: dict[str, Any], name: str | None
    ) -> None:
        """Answer on the replicas of a cluster."""
        from louiskv.serving.desk import Limits

        with on_cluster(fleet, model, method, settings, Limits(), name) as (blueprint, needed):
            from louiskv.serving.ray.batch import answers_of

            def run(note: Callable[[dict[str, Any]], None]) -> None:
                for told in answers_of(self.lines, blueprint, needed):
                    note(told)

            self._write(run)

    def _write(self, run: Callable[[Callable[[dict[str, Any]], None]], None]) -> None:
        """Write what a run notes; an interrupted one keeps what it has."""
        try:
            with progress_bar(self.console, len(self.lines)) as advance:

                def note(told: dict[str, Any]) -> None:
                    with writing(self.answers.path):
                        self.answers.add(told)
                    self.count.add(told)
                    advance("answering", self.count.lines)

                run(note)
        except KeyboardInterrupt:
            left = len(self.lines) - self.count.lines
            self.console.print(f"stopped: {left} lines are left; the same call goes on with them", highlight=False)
            raise typer.Exit(130) from None

    def tell(self, as_json: bool) -> None:
        """Print the report."""
        count, seconds = self.count, time.perf_counter() - self._begin
        if as_json:
            told = {"lines": count.lines, **vars(count), "skipped": self._skipped, "seconds": round(seconds, 3)}
            print(json.dumps({**told, "output": str(self.answers.path)}))
            return
        parts = [f"{count.answered} answered", f"{count.refused} with an error", f"{self._skipped} there before"]
        speed = (
            f"{count.completion_tokens} tokens in {seconds:.1f} s ({count.completion_tokens / seconds:.1f} a second)"
        )
        self.console.print(
            f"{', '.join(parts)}; {speed}: {self.answers.path}", highlight=False, soft_wrap=True, markup=False
        )
