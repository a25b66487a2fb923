"""`louiskv probe`: what methods attend to beside full attention, in every layer and KV head."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from louiskv.cli.loading import load, ready
from louiskv.cli.options import ModelChoice, takes_model, takes_settings
from louiskv.cli.progress import progress_bar
from louiskv.cli.tables import number, percent, print_records, tables
from louiskv.contestants import contestants
from louiskv.evaluation.grid import Fed
from louiskv.evaluation.probing import look
from louiskv.evaluation.runner import Evaluation
from louiskv.evaluation.summary import device_share, index_share
from louiskv.evaluation.texts import Haystack
from louiskv.methods import METHODS
from louiskv.results import Results
from louiskv.telemetry import format_bytes

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

# Lose nothing: there is nothing to see.
LOSSLESS = ("full", "full_offloaded")


@app.command("probe")
@takes_settings
@takes_model
def look_inside(
    model: ModelChoice,
    settings: dict[str, Any],
    method: Annotated[list[str], typer.Option(help="Method; repeatable. All unless given.", metavar="NAME")] = [],  # noqa: B006
    budget: Annotated[list[int], typer.Option(help="Budget; repeatable.", min=1)] = [512],  # noqa: B006
    context: Annotated[list[int], typer.Option(help="Tokens of a prompt; repeatable.", min=1)] = [4096],  # noqa: B006
    steps: Annotated[int, typer.Option(help="Tokens that are fed behind it.", min=2, metavar="N")] = 256,
    texts: Annotated[int, typer.Option(help="Texts; they are a batch.", min=1, metavar="N")] = 1,
    seed: Annotated[int, typer.Option(help="Where the texts begin.", metavar="N")] = 0,
    layer: Annotated[
        int | None, typer.Option(help="Layer of which it is told what was attended to when; the middle unless given.")
    ] = None,
    head: Annotated[int, typer.Option(help="KV head of that layer.")] = 0,
    text: Annotated[Path | None, typer.Option(help="Text that is fed; Python's documentation unless given.")] = None,
    output: Annotated[Path, typer.Option(help="File of results; what is in it is not run again.")] = Path(
        "results/probe.jsonl"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the records of this call, old and new, as one JSON list.")
    ] = False,
) -> None:
    """Look inside attention: what methods attend to, beside full attention, while a text is fed.

    All methods see the queries of full attention. Recall is the share of its mass on the tokens that a method attends
    to, error how far the output of attention is from full attention's, overlap how much of a selection was in the one
    before (Jaccard). `oracle_top_k` has the most recall that so many tokens can have.

    louiskv probe --method louiskv --method quest --budget 256
    """
    names = method or [name for name in METHODS if name not in LOSSLESS]
    fed, results = Fed(tuple(dict.fromkeys(context)), steps, texts, seed), Results(output)
    results.check_writable()
    field, console = contestants(names, budget, settings), Console(stderr=True)
    loaded, tokenizer = load(model, console)
    haystack = Haystack.of(tokenizer, text)
    field = [replace(each, method=ready(loaded, each.method, console)) for each in field]
    with progress_bar(console, len(field) * len(fed.prompts)) as advance:
        evaluation = Evaluation(loaded, tokenizer, haystack, results, advance, impl=model.impl)
        found = list(look(evaluation, fed, field, layer, head))
    print_records(found, _show, output, as_json)


def _show(console: Console, records: list[dict[str, Any]]) -> None:
    for each in _tables(records, console.width):
        console.print(each)


def _tables(records: list[dict[str, Any]], width: int) -> Iterator[Table]:
    """Means of each method, and its error in each layer."""
    # Records that were written before this was told have none.
    late = any(record.get("ahead_rate") is not None for record in records)
    columns = ["method", "budget", "context", "recall", "error", "overlap", "retrievals"]
    columns += [*(["ahead"] if late else []), "fetched a token", "index", "device"]
    rows = []
    for record in records:
        inside = [_mean(figure for row in record[name] for figure in row) for name in ("recall", "error", "overlap")]
        rows.append(
            [
                record["method"],
                "-" if record["budget"] is None else str(record["budget"]),
                str(record["prompt"]),
                *map(number, inside),
                f"{record['retrieval_rate']:.2f}",
                *([number(record.get("ahead_rate"), ".2f")] if late else []),
                format_bytes(record["fetched_per_token"]),
                percent(index_share(record)),
                percent(device_share(record)),
            ]
        )
    yield from tables(columns, rows, width, kept=3)
    contexts = {record["prompt"] for record in records}
    names = [
        (record["method"], record["budget"], record["prompt"] if len(contexts) > 1 else None) for record in records
    ]
    by_layer = [
        [str(layer), *(number(_mean(record["error"][place])) for record in records)]
        for place, layer in enumerate(records[0]["layers"])
    ]
    heads = [" ".join(str(part) for part in name if part is not None) for name in names]
    yield from tables(["error by layer", *heads], by_layer, width, kept=1)


def _mean(figures: Iterable[float | None]) -> float | None:
    told = [figure for figure in figures if figure is not None]
    return sum(told) / len(told) if told else None
