"""`louiskv bench serve`: a load test of the server, methods side by side in one run."""

import hashlib
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import typer
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from louiskv.bench.runner import Bench, Entry
from louiskv.cli.load_tables import print_load
from louiskv.cli.loading import load, ready
from louiskv.cli.options import ModelChoice, takes_model
from louiskv.cli.progress import progress_bar
from louiskv.cli.prompts import check_fits, read_text, room, size_of
from louiskv.cli.serve import CHUNK, DEVICE_MEMORY, HOST_MEMORY, MEMORY, QUEUE, ROWS, check_extra
from louiskv.cli.tables import print_records
from louiskv.contestants import named
from louiskv.errors import SettingsError
from louiskv.results import Results

# What is asked unless it is said otherwise: in full, and quickly.
EVERYTHING, QUICK = ([128, 1024], 64, 16, [1, 4, 16]), ([32, 128], 8, 4, [1, 4])
SERVER = f"{MEMORY} of each server"
CLIENTS = "Clients at once, each of which asks one request after another; repeatable. 1, 4 and 16 unless given."
RATE = "Instead: requests a second, at random times and whatever was answered; repeatable."
PROMPT = "Tokens of a prompt; repeatable, and evenly mixed then. 128 and 1024 unless given."
TEXT = "File of text that prompts are cut from, or - for standard input; Python's own documentation unless given."


@takes_model
def load_test(
    model: ModelChoice,
    clients: Annotated[list[int], typer.Option(help=CLIENTS, min=1, metavar="N", show_default=False)] = [],  # noqa: B006
    rate: Annotated[list[float], typer.Option(help=RATE, metavar="R", show_default=False)] = [],  # noqa: B006
    prompt: Annotated[list[int], typer.Option(help=PROMPT, min=1, metavar="N", show_default=False)] = [],  # noqa: B006
    output_tokens: Annotated[
        int | None, typer.Option(help="Tokens of each answer; 64 unless given.", min=1, metavar="N")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(help="Requests at each load; 16 unless given.", min=1, metavar="N")
    ] = None,
    text: Annotated[str | None, typer.Option(help=TEXT, metavar="FILE")] = None,
    seed: Annotated[int, typer.Option(help="Of order and place of prompts, and of arrivals.", metavar="N")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.", min=0.001, metavar="S")] = 600.0,
    method: Annotated[
        list[str],
        typer.Option("--method", help="Method, such as quest or louiskv:tau=0.7; repeatable.", metavar="NAME"),
    ] = ["full", "louiskv"],  # noqa: B006
    budget: Annotated[int, typer.Option(help="Budget of a KV head.", min=1, metavar="N")] = 512,
    rows: Annotated[int, typer.Option(help=ROWS, min=1, metavar="N", rich_help_panel=SERVER)] = 8,
    host_memory: Annotated[str | None, typer.Option(help=HOST_MEMORY, metavar="SIZE", rich_help_panel=SERVER)] = None,
    device_memory: Annotated[
        str | None, typer.Option(help=DEVICE_MEMORY, metavar="SIZE", rich_help_panel=SERVER)
    ] = None,
    prefill_chunk: Annotated[int | None, typer.Option(help=CHUNK, min=3, metavar="N", rich_help_panel=SERVER)] = None,
    queue: Annotated[int, typer.Option(help=QUEUE, min=1, metavar="N", rich_help_panel=SERVER)] = 64,
    output: Annotated[Path, typer.Option(help="File of results; what is in it is not measured again.")] = Path(
        "results/load.jsonl"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="Unless given: short prompts, few requests, 1 and 4 clients.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the records of this call, old and new, as one JSON list.")
    ] = False,
) -> None:
    """Let clients ask a server, and time first tokens, tokens between, and all that comes in a second.

    A server is started for each method in turn, on a free port of this machine; its clients are a process of their own,
    and every one reads its answers as a stream. No two prompts begin alike, every answer has all its tokens, nothing is
    kept for another turn. Each load that is finished is kept in the file of results.

    louiskv bench serve --quick

    louiskv bench serve --rows 16 --clients 16 --prompt 4096 --device-memory 800M --method louiskv:window=128
    """
    check_extra()
    from louiskv.bench.load import Asked, Load, LoadBench, Room

    prompts, tokens, count, at_once = QUICK if quick else EVERYTHING
    loads = [Load(rate=each) for each in rate] or [Load(clients=each) for each in clients or at_once]
    if rate and clients:
        raise SettingsError("--clients and --rate are both given: clients wait for answers, and a rate does not.")
    asked = Asked(tuple(prompt or prompts), output_tokens or tokens, requests or count, seed, timeout)
    sizes = size_of("--host-memory", host_memory), size_of("--device-memory", device_memory)
    given, field, results = Room(rows, prefill_chunk, queue, *sizes), named(method, budget), Results(output)
    results.check_writable()
    words, console = None if text is None else read_text(text), Console(stderr=True)
    loaded, tokenizer = load(model, console)
    check_fits(max(asked.prompts), room(loaded.config, asked.output), "Give a smaller --prompt.")
    entries = [Entry(replace(each, method=ready(loaded, each.method, console)), model.impl) for each in field]
    with progress_bar(console) as advance:
        bench = Bench(loaded, tokenizer, results, advance)
        found = list(LoadBench(bench, asked, given, *_read(words, tokenizer)).run(loads, entries))
    print_records(found, print_load, output, as_json)


def _read(words: str | None, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], str]:
    """Token ids of a text, and what tells it from others."""
    words = "\n\n".join(topics.values()) if words is None else words
    ids = list(tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"])
    return ids, hashlib.sha256(words.encode()).hexdigest()[:16]
