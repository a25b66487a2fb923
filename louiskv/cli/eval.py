"""`louiskv eval`: how good the methods are, on tasks and beside full attention."""

import json
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from louiskv.cli.loading import load, ready
from louiskv.cli.options import ModelChoice, takes_model
from louiskv.cli.tables import pairs, table
from louiskv.evaluation.grid import Asked, Contestant, Fed, contestants
from louiskv.evaluation.results import Results
from louiskv.evaluation.runner import Evaluation, planned
from louiskv.evaluation.summary import Row, summarise
from louiskv.evaluation.tasks import TASKS
from louiskv.evaluation.texts import Haystack
from louiskv.methods import METHODS
from louiskv.telemetry import format_bytes

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

FIDELITY = "fidelity"
FIDELITY_TELLS = "a text is fed token by token: KL divergence, likeliest token and loss, against full attention"
QUICK_TASKS = ["passkey", "multikey", "ledger_behind_text", FIDELITY]
QUICK_METHODS = ["full", "louiskv", "quest", "snapkv"]


@app.command("eval")
@takes_model
def evaluate(
    model: ModelChoice,
    task: Annotated[list[str], typer.Option(help="Task; repeatable. All unless given.", metavar="NAME")] = [],  # noqa: B006
    method: Annotated[list[str], typer.Option(help="Method; repeatable. All unless given.", metavar="NAME")] = [],  # noqa: B006
    budget: Annotated[list[int], typer.Option(help="Budget; repeatable.", min=1)] = [512],  # noqa: B006
    context: Annotated[list[int], typer.Option(help="Tokens of a prompt; repeatable.", min=1)] = [4096],  # noqa: B006
    samples: Annotated[int, typer.Option(help="Samples of each task at each context.", min=1, metavar="N")] = 8,
    steps: Annotated[int, typer.Option(help="Tokens that are fed for fidelity.", min=2, metavar="N")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Samples that are answered together.", min=1, metavar="N")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the samples.", metavar="N")] = 0,
    text: Annotated[
        Path | None, typer.Option(help="Text that facts are hidden in; Python's documentation unless given.")
    ] = None,
    output: Annotated[Path, typer.Option(help="File of results; what is in it is not run again.")] = Path(
        "results/eval.jsonl"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A few tasks, methods and samples, in minutes.")] = False,
    tasks: Annotated[bool, typer.Option("--tasks", help="List the tasks, and run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the new and old results as one JSON list.")] = False,
) -> None:
    """Score methods on tasks, and measure how far their next token is from full attention's.

    Each finished run is a line of the file of results: a run that was stopped goes on where it was. Full attention is
    always among the methods, as the yardstick.

    louiskv eval --quick

    louiskv eval --task passkey --method louiskv --method quest --budget 256 --budget 512
    """
    if tasks:
        listed = [(name, f"{each.tells} ({each.scenario})") for name, each in TASKS.items()]
        Console().print(pairs([*listed, (FIDELITY, FIDELITY_TELLS)]), highlight=False, markup=False)
        return
    names = task or (QUICK_TASKS if quick else [*TASKS, FIDELITY])
    methods = method or (QUICK_METHODS if quick else [name for name in METHODS if name != "full_offloaded"])
    if quick:
        budget, context, samples, steps = [128], [1024], 4, 64
    asked = Asked(tuple(name for name in names if name != FIDELITY), tuple(context), samples, batch_size, seed)
    fed = Fed(tuple({min(512, *context), max(context)}), steps, seed=seed) if FIDELITY in names else None
    field = contestants(["full", *(name for name in methods if name != "full")], budget)
    results = Results(output)
    console = Console(stderr=True)
    loaded, tokenizer = load(model, console)
    field = [Contestant(each.name, ready(loaded, each.method, console)) for each in field]
    haystack = Haystack.of(tokenizer, text)
    with _bar(console, planned(asked, fed, field)) as advance:
        evaluation = Evaluation(loaded, tokenizer, haystack, results, advance)
        found = [*evaluation.ask(asked, field), *(evaluation.feed(fed, field) if fed else ())]
    if as_json:
        print(json.dumps(found))
        return
    shown = Console()
    for each in _tables(summarise(found)):
        shown.print(each)
    shown.print(f"{len(found)} results in {output}", highlight=False, style="dim")


@contextmanager
def _bar(console: Console, total: int) -> Any:
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task("evaluation", total=total)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def _tables(rows: Iterable[Row]) -> Iterable[Any]:
    """Scores by task, and fidelity with what was moved and held."""
    rows = list(rows)
    tasks = list(dict.fromkeys(task for row in rows for task in row.scores))
    if tasks:
        scores = table("score", "budget", *tasks, "mean", "fetched a token", "device")
        for row in rows:
            if row.scores:
                cells = [f"{row.scores[task]:.2f}" if task in row.scores else "-" for task in tasks]
                cells += [f"{row.mean_score:.2f}", format_bytes(row.fetched), f"{row.device:.1%}"]
                scores.add_row(row.name, row.budget_text, *cells)
        yield scores
    if any(row.kl is not None for row in rows):
        fidelity = table("fidelity", "budget", "KL", "same token", "loss", "fetched a token", "retrievals", "device")
        for row in rows:
            if row.kl is not None:
                fidelity.add_row(
                    row.name,
                    row.budget_text,
                    f"{row.kl:.4f}",
                    f"{row.top1:.1%}",
                    f"{row.nll:+.4f}",
                    format_bytes(row.fed_fetched),
                    f"{row.fed_rate:.2f}",
                    f"{row.fed_device:.1%}",
                )
        yield fidelity
