"""`louiskv bench large`: the shapes of large models, with random weights and recorded queries."""

import time
from operator import itemgetter
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv.bench.large import Cell, LargeBench
from louiskv.bench.large_models import MODELS, check_fits, config_of, random_model
from louiskv.bench.recording import Recording, record
from louiskv.bench.runner import Entry, Known
from louiskv.cli.failures import UsageError
from louiskv.cli.large_tables import print_large
from louiskv.cli.loading import load, prepare
from louiskv.cli.options import ModelChoice, takes_model
from louiskv.cli.progress import progress_bar
from louiskv.cli.tables import print_records
from louiskv.contestants import named
from louiskv.errors import DeviceFailedError
from louiskv.results import Results, key_of

METHODS = [
    *("full", "arkvale", "freekv", "louiskv:tau=0.7", "louiskv_plus", 'louiskv_plus:trigger="cosine",tau=0.7'),
    *("louiskv", "quest", "clusterkv", "full_offloaded"),
]
# What is measured everywhere before the others are; and what takes ten times as long as they do, and so comes last.
FIRST, SLOW = METHODS[:6], ("sdpa", "full_offloaded")
DECODE = [(1, 32768), (8, 32768), (1, 8192), (8, 8192), (1, 131072), (4, 32768), (4, 8192), (4, 131072), (8, 131072)]
PREFILL = [1024, 8192, 32768, 65536, 131072]
# A prompt, and chunks by which it is taken in.
CHUNKED = (8192, 512, 2048)
# Of the real text: tokens of a sequence before the first step, and steps; fewer of a model with fewer positions.
RECORDED = (6000, 96)
MOST_SEQUENCES = 8


@takes_model
def large(
    model: ModelChoice,
    shape: Annotated[str, typer.Option(help=f"Model whose sizes are taken: {', '.join(MODELS)}.")] = "llama-3.1-8b",
    layers: Annotated[int | None, typer.Option(help="Layers; all unless given.", min=1, metavar="N")] = None,
    context: Annotated[
        list[int], typer.Option(help="Tokens before the first decoded one; repeatable.", min=1, show_default=False)
    ] = [],  # noqa: B006
    batch: Annotated[
        list[int], typer.Option(help="Sequences at once; repeatable.", min=1, max=MOST_SEQUENCES, show_default=False)
    ] = [],  # noqa: B006
    prefill: Annotated[list[int], typer.Option(help="Tokens of a prompt; repeatable.", min=1, show_default=False)] = [],  # noqa: B006
    chunk: Annotated[
        list[int],
        typer.Option(help="Tokens of a prompt at once, beside all; repeatable.", min=2, show_default=False),
    ] = [],  # noqa: B006
    grow: Annotated[int | None, typer.Option(help="Instead: tokens of one long output.", min=8, metavar="N")] = None,
    method: Annotated[
        list[str], typer.Option(help="Method, such as quest or louiskv:tau=0.7; repeatable.", metavar="NAME")
    ] = METHODS,
    sdpa: Annotated[
        bool, typer.Option("--sdpa/--no-sdpa", help="Whether transformers' own cache is among them.")
    ] = True,
    budget: Annotated[int, typer.Option(help="Budget of a KV head.", min=1, metavar="N")] = 1024,
    steps: Annotated[int, typer.Option(help="Tokens to decode.", min=1, metavar="N")] = 64,
    phases: Annotated[
        bool, typer.Option("--phases/--no-phases", help="Whether to tell what a step is made of.")
    ] = True,
    rounds: Annotated[int, typer.Option(help="Measurements of each prompt.", min=1, metavar="N")] = 1,
    minutes: Annotated[
        float | None, typer.Option(help="Begin no measurement after so many; what is left out is said.", min=0)
    ] = None,
    output: Annotated[Path, typer.Option(help="File of results; what is in it is not measured again.")] = Path(
        "results/large.jsonl"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the records of this call as one JSON list.")] = False,
) -> None:
    """Time decoding and first tokens at the shapes of large models.

    The model has random weights, made on the device. What its layers keep and ask for while it decodes was recorded
    from the real --model, which reads technical prose: each head wears several recorded ones, and contexts are the text
    repeated with noise. So the trigger fires, and selections follow each other, as they do in the real model. The text
    that would come out means nothing.

    Unless contexts, batches or prompts are named, all of them are measured, the most telling first: contexts of 8192,
    32768 and 131072 tokens, 1, 4 and 8 sequences, prompts of 1024 to 131072, one of them in chunks. What does not fit
    is said.

    louiskv bench large --minutes 8

    louiskv bench large --shape qwen3-8b --context 32768 --batch 8 --method arkvale --method louiskv:tau=0.7
    """
    started, console = time.monotonic(), Console(stderr=True)
    if chunk and (grow is not None or ((context or batch) and not prefill)):
        raise UsageError("--chunk is of prompts, of which none is measured: name one with --prefill.")
    cells = _cells(context, batch, prefill, chunk, grow, steps, rounds, phases)
    config, field = config_of(shape, layers), named(method, budget)
    results = Results(output)
    results.check_writable()
    device, dtype, recording = _prepared(model, [cell.batch for cell in cells if cell.kind != "prefill"], console)
    check_fits(config, dtype, device)
    deadline = None if minutes is None else started + 60 * minutes
    entries = [*([Entry(impl=model.impl)] if sdpa else []), *(Entry(each, model.impl) for each in field)]
    with progress_bar(console) as advance:
        advance(f"random weights of {shape}", 0, 1)
        name = shape if layers is None else f"{shape}, {layers} layers"
        origin = {"model": name, "model_hash": key_of(config.to_dict()), "dtype": str(dtype).removeprefix("torch.")}
        bench = LargeBench(
            Known(results, origin, device), random_model(config, dtype, device), recording, deadline, advance
        )
        found, failure = [], None
        try:
            for some, these in _in_order(cells, entries):
                for record in bench.run(some, these):
                    found.append(record)  # noqa: PERF402
        except DeviceFailedError as error:
            failure = error
    places = {(f"large {cell.kind}", cell.context, cell.batch, cell.chunk): place for place, cell in enumerate(cells)}
    names = [each.name for each in entries]
    place_of = itemgetter("kind", "context", "batch")
    found.sort(key=lambda each: (places[*place_of(each), each.get("chunk")], names.index(each["method"])))
    print_records(found, print_large, output, as_json)
    if failure is not None:
        raise failure


def _prepared(
    model: ModelChoice, decoded: list[int], console: Console
) -> tuple[torch.device, torch.dtype, Recording | None]:
    """Where to measure and in which numbers, and what is asked for in batches of these sizes."""
    if not decoded and model.dtype != "auto":
        return *prepare(model, console), None
    real, tokenizer = load(model, console)
    if not decoded:
        return real.device, real.dtype, None
    with progress_bar(console) as advance:
        advance("recording", 0, 1)
        recording = _recorded(real, tokenizer, max(decoded))
        advance("recording", 1, 1)
    return real.device, real.dtype, recording


def _cells(
    contexts: list[int],
    batches: list[int],
    prompts: list[int],
    chunks: list[int],
    grow: int | None,
    steps: int,
    rounds: int,
    phases: bool,
) -> list[Cell]:
    if grow is not None:
        return [Cell("growth", each, rows, grow) for each in contexts or [1024] for rows in batches or [1]]
    if not contexts and not batches and not prompts:
        # What steps are made of is looked at with one context.
        decode = [Cell("decode", each, rows, steps, phases and each == DECODE[0][1]) for rows, each in DECODE]
        first = [Cell("prefill", each, 1, rounds) for each in PREFILL]
        # The scenarios of two batches, then the rest.
        in_chunks = [Cell("prefill", CHUNKED[0], 1, rounds, chunk=each) for each in chunks or CHUNKED[1:]]
        return [*decode[:2], *first[:3], *decode[2:5], first[3], *in_chunks, *decode[5:], first[4]]
    decode = [Cell("decode", each, rows, steps, phases) for each in contexts or [32768] for rows in batches or [1]]
    first = [Cell("prefill", each, 1, rounds, chunk=size) for each in prompts for size in (None, *chunks)]
    return [*(decode if contexts or batches else []), *first]


def _in_order(cells: list[Cell], entries: list[Entry]) -> list[tuple[list[Cell], list[Entry]]]:
    """What is measured one after the other, for as long as there is time: the first of all cells with everyone."""
    quick = [each for each in entries if each.name not in SLOW]
    first = [each for each in quick if each.name in FIRST]
    others = [each for each in quick if each.name not in FIRST]
    slow = [each for each in entries if each.name in SLOW]
    parts = [(cells[:1], quick), (cells[1:], first), (cells[1:], others), (cells, slow)]
    return [(some, these) for some, these in parts if some and these]


def _recorded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int) -> Recording:
    context, steps = RECORDED
    positions = model.config.get_text_config(decoder=True).max_position_embeddings
    return record(model, tokenizer, batch, min(context, positions - steps), steps)
