"""`louiskv eval`: how good the methods are, on tasks and beside full attention."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from louiskv.cli.loading import load, ready
from louiskv.cli.options import ModelChoice, takes_model, takes_settings
from louiskv.cli.progress import progress_bar
from louiskv.cli.tables import number, pairs, percent, print_records, tables
from louiskv.contestants import contestants
from louiskv.errors import SettingsError
from louiskv.evaluation.asking import ask
from louiskv.evaluation.comparisons import COMPARISONS, compared
from louiskv.evaluation.feeding import feed
from louiskv.evaluation.grid import FIDELITY, Asked, Fed, planned, tasks_named
from louiskv.evaluation.runner import Evaluation
from louiskv.evaluation.summary import Row, summarise
from louiskv.evaluation.tasks import TASKS, Task
from louiskv.evaluation.tasks.published import BENCHMARKS, published
from louiskv.evaluation.texts import Haystack
from louiskv.methods import METHODS
from louiskv.results import Results
from louiskv.telemetry import format_bytes

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

FIDELITY_TELLS = "a text is fed token by token: KL divergence, likeliest token and loss, against full attention"
# Loses nothing, as full attention does, and is slow: run where it is asked for.
LEFT_OUT = "full_offloaded"

# What runs unless it is said otherwise: in full, for a comparison of parts, and quickly.
EVERYTHING: dict[str, Any] = {
    "task": [*TASKS, FIDELITY],
    "method": [name for name in METHODS if name != LEFT_OUT],
    "budget": [128, 256, 512, 1024],
    "context": [2048],
    "prompt": [512, 2048],
    "samples": 4,
    "steps": 256,
}
FOR_PARTS: dict[str, Any] = {"task": ["multikey", FIDELITY], "method": [], "budget": [256]}
QUICK: dict[str, Any] = {
    "task": ["passkey", "multikey", "ledger_behind_text", FIDELITY],
    "method": ["louiskv", "quest", "snapkv"],
    "budget": [128],
    "context": [1024],
    "prompt": [512, 1024],
    "samples": 4,
    "steps": 64,
}


@app.command("eval")
@takes_settings
@takes_model
def evaluate(
    model: ModelChoice,
    settings: dict[str, Any],
    task: Annotated[
        list[str], typer.Option(help="Task; repeatable. All, or those of --data, unless given.", metavar="NAME")
    ] = [],  # noqa: B006
    data: Annotated[
        list[str],
        typer.Option(
            help=f"Published benchmark and the file or folder that it lies in: {', '.join(BENCHMARKS)}; repeatable.",
            metavar="NAME=PATH",
        ),
    ] = [],  # noqa: B006
    method: Annotated[list[str], typer.Option(help="Method; repeatable. All unless given.", metavar="NAME")] = [],  # noqa: B006
    compare: Annotated[
        list[str],
        typer.Option(help=f"Exchange parts, one by one: {', '.join(COMPARISONS)}; repeatable.", metavar="NAME"),
    ] = [],  # noqa: B006
    budget: Annotated[list[int], typer.Option(help="Budget; repeatable. 128 to 1024 unless given.", min=1)] = [],  # noqa: B006
    context: Annotated[list[int], typer.Option(help="Tokens of a prompt; repeatable. 2048 unless given.", min=1)] = [],  # noqa: B006
    prompt: Annotated[
        list[int], typer.Option(help="Tokens before those fed for fidelity; repeatable. 512 and 2048 unless given.")
    ] = [],  # noqa: B006
    samples: Annotated[
        int | None, typer.Option(help="Samples of each task at each context; 4 unless given.", min=1, metavar="N")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Tokens that are fed for fidelity; 256 unless given.", min=2, metavar="N")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens of an answer to --data; each task has its own.", min=1, metavar="N"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples that are answered together.", min=1, metavar="N")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the samples.", metavar="N")] = 0,
    text: Annotated[
        Path | None, typer.Option(help="Text that facts are hidden in; Python's documentation unless given.")
    ] = None,
    output: Annotated[Path, typer.Option(help="File of results; what is in it is not run again.")] = Path(
        "results/eval.jsonl"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Unless given: few tasks, methods and samples, small; in minutes.")
    ] = False,
    tasks: Annotated[bool, typer.Option("--tasks", help="List the tasks, and run nothing.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the records of this call, old and new, as one JSON list.")
    ] = False,
) -> None:
    """Score methods on tasks, and measure how far their next token is from full attention's.

    Each finished run is a line of the file of results: a run that was stopped goes on where it was. Full attention is
    always among the methods, as the yardstick.

    louiskv eval --quick

    louiskv eval --task passkey --method louiskv --method quest --budget 256 --budget 512

    louiskv eval --method louiskv --budget 512 --tau 0.8 --unit-size 8 --output results/tau.jsonl

    louiskv eval --compare trigger --compare units

    louiskv eval --compare plus --task fidelity

    louiskv eval --data longbench=LongBench/data --data math500=test.jsonl --context 8000
    """
    from_files = _published(data, max_new_tokens)
    known: dict[str, Task] = {**TASKS, **from_files}
    if tasks:
        listed = [(name, f"{each.tells} ({each.scenario})") for name, each in known.items()]
        Console().print(pairs([*listed, (FIDELITY, FIDELITY_TELLS)]), highlight=False, markup=False)
        return
    given = {
        "task": task,
        "method": method,
        "budget": budget,
        "context": context,
        "prompt": prompt,
        "samples": samples,
        "steps": steps,
    }
    run = EVERYTHING | (QUICK if quick else {}) | (FOR_PARTS if compare else {})
    run |= {"task": list(from_files)} if from_files else {}
    run |= {name: value for name, value in given.items() if value}
    contexts = tuple(dict.fromkeys(run["context"]))
    asked = Asked(
        tasks_named((name for name in run["task"] if name != FIDELITY), known),
        contexts,
        run["samples"],
        batch_size,
        seed,
    )
    fed = Fed(tuple(dict.fromkeys(run["prompt"])), run["steps"], seed=seed) if FIDELITY in run["task"] else None
    methods = [name for name in run["method"] if name != "full"]
    field = [*contestants(["full", *methods], run["budget"], settings), *compared(compare, run["budget"])]
    results, console = Results(output), Console(stderr=True)
    results.check_writable()
    loaded, tokenizer = load(model, console)
    haystack = Haystack.of(tokenizer, text)
    field = [replace(each, method=ready(loaded, each.method, console)) for each in field]
    with progress_bar(console, planned(asked, fed, field)) as advance:
        evaluation = Evaluation(loaded, tokenizer, haystack, results, advance, impl=model.impl)
        # Both draw all that they ask before the first run.
        runs = ask(evaluation, asked, field), feed(evaluation, fed, field) if fed else ()
        found = list(chain(*runs))
    print_records(found, _show, output, as_json)


def _published(data: list[str], max_new_tokens: int | None) -> dict[str, Task]:
    """The tasks of --data."""
    if max_new_tokens is not None and not data:
        raise SettingsError("--max-new-tokens is for the tasks of --data: other tasks have their own.")
    given = []
    for each in data:
        name, equals, path = each.partition("=")
        if not equals or not path:
            raise SettingsError(f"--data {each} is not allowed: give NAME=PATH, such as math500=test.jsonl.")
        given.append((name, Path(path).expanduser()))
    return dict(published(given, max_new_tokens))


def _show(console: Console, records: list[dict[str, Any]]) -> None:
    for each in _tables(records, console.width):
        console.print(each)


def _tables(records: list[dict[str, Any]], width: int) -> Iterator[Table]:
    """Scores by task at each context, and fidelity behind each prompt; full attention is beside every group."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        part = f"score at {record['context']}" if record["kind"] == "task" else f"fidelity behind {record['prompt']}"
        parts.setdefault(part, []).append(record)
    for group in dict.fromkeys(record["group"] for record in records if record["method"] != "full") or (None,):
        for part, among in parts.items():
            rows = summarise(record for record in among if record["group"] == group or record["method"] == "full")
            title = part if group is None else f"{part}, by {group}"
            yield from (_scores if among[0]["kind"] == "task" else _fidelity)(title, rows, width)


def _scores(title: str, rows: list[Row], width: int) -> Iterator[Table]:
    tasks = list(dict.fromkeys(task for row in rows for task in row.scores))
    columns = [title, "budget", *tasks, "mean", "as full", "fetched a token", "index", "device"]
    cells = [
        [
            row.name,
            row.budget_text,
            *(f"{row.scores[task]:.2f}" for task in tasks),
            f"{row.mean_score:.2f}",
            f"{row.agreement:.0%}",
            format_bytes(row.fetched),
            percent(row.index),
            f"{row.device:.1%}",
        ]
        for row in rows
    ]
    return tables(columns, cells, width)


def _fidelity(title: str, rows: list[Row], width: int) -> Iterator[Table]:
    late = any(row.fed_ahead is not None for row in rows)
    columns = [title, "budget", "KL", "same token", "loss", "fetched a token", "retrievals"]
    columns += [*(["ahead"] if late else []), "index", "device"]
    cells = [
        [
            row.name,
            row.budget_text,
            # No -0.0000: rounding may leave a divergence just under 0.
            f"{round(row.kl or 0.0, 4) + 0.0:.4f}",
            f"{row.top1:.1%}",
            f"{row.nll:+.4f}",
            format_bytes(row.fed_fetched),
            f"{row.fed_rate:.2f}",
            *([number(row.fed_ahead, ".2f")] if late else []),
            percent(row.fed_index),
            f"{row.fed_device:.1%}",
        ]
        for row in rows
    ]
    return tables(columns, cells, width)
