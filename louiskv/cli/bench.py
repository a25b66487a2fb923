"""`louiskv bench`: decoding, prefill and a server under load, methods side by side, and single operations."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from louiskv.bench import ladder as ladders
from louiskv.bench import ops as operations
from louiskv.bench.decode import Sweep, bench_decode
from louiskv.bench.prefill import bench_prefill
from louiskv.bench.runner import Bench, Entry, Known
from louiskv.bench.shapes import SHAPES, Sizes
from louiskv.cli.bench_large import large
from louiskv.cli.bench_serve import load_test
from louiskv.cli.bench_tables import print_decode, print_operations, print_prefill
from louiskv.cli.loading import check_name_of_implementation, load, ready
from louiskv.cli.options import DEVICES, Dtype, ModelChoice, takes_model, takes_settings
from louiskv.cli.progress import progress_bar
from louiskv.cli.prompts import check_fits, room
from louiskv.cli.tables import print_records
from louiskv.contestants import Contestant, contestants
from louiskv.models import find_device
from louiskv.results import Results

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Measure decoding, prefill and a server under load, methods side by side in one run, and single operations.",
)

# What runs unless it is said otherwise: in full, and quickly.
EVERYTHING: dict[str, Any] = {"context": [1024, 8192, 32768], "batch": [1], "steps": 64}
QUICK: dict[str, Any] = {"context": [1024], "steps": 16}

Contexts = Annotated[
    list[int],
    typer.Option("--context", help="Tokens before the first decoded one; repeatable.", show_default=False, min=1),
]
Batches = Annotated[list[int], typer.Option("--batch", help="Sequences at once; repeatable. 1 unless given.", min=1)]
Steps = Annotated[
    int | None, typer.Option(help="Tokens to decode after each context; 64 unless given.", min=1, metavar="N")
]
Names = Annotated[list[str], typer.Option("--method", help="Method to compare; repeatable.", metavar="NAME")]
Sdpa = Annotated[bool, typer.Option("--sdpa/--no-sdpa", help="Whether transformers' own cache is among them.")]
Output = Annotated[Path, typer.Option(help="File of results; what is in it is not measured again.")]
Quick = Annotated[bool, typer.Option("--quick", help="Unless given: a short context and few steps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the records of this call, old and new, as one JSON list.")]

RESULTS = Path("results/bench.jsonl")

app.command("large")(large)
app.command("serve")(load_test)


@app.command()
@takes_model
@takes_settings
def decode(
    model: ModelChoice,
    settings: dict[str, Any],
    context: Contexts = [],  # noqa: B006
    batch: Batches = [],  # noqa: B006
    method: Names = ["full", "louiskv"],  # noqa: B006
    sdpa: Sdpa = True,
    steps: Steps = None,
    output: Output = RESULTS,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """Time each output token of transformers' own cache (sdpa) and of each method; budget 512 unless given.

    The contexts are 1024, 8192 and 32768 tokens unless given: real text as far as the model has positions. Beyond
    that, its keys and values are repeated with noise: their speed is real, what the model would say is not.

    Contestants take turns. Each context and batch that is finished is kept in the file of results: a run that was
    stopped goes on where it was. If not all contestants fit into memory at once, they are measured one after another.

    louiskv bench decode --quick

    louiskv bench decode --context 2048 --context 131072 --batch 1 --batch 8 --method full --method quest
    """
    sweep = _sweep(quick, context=context, batch=batch, steps=steps)
    field, results, console = _field(method, settings), _results(output), Console(stderr=True)
    loaded, tokenizer = load(model, console)
    entries = [*([Entry(impl=model.impl)] if sdpa else []), *_entries(loaded, field, model.impl, console)]
    with progress_bar(console) as advance:
        found = list(bench_decode(Bench(loaded, tokenizer, results, advance), sweep, entries))
    print_records(found, print_decode, output, as_json)


@app.command()
@takes_model
def ladder(
    model: ModelChoice,
    context: Contexts = [],  # noqa: B006
    batch: Batches = [],  # noqa: B006
    steps: Steps = None,
    budget: Annotated[int, typer.Option(help="Budget of all.", min=1, metavar="N")] = 512,
    output: Output = RESULTS,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """Time LouisKV part by part, and its units beside others, all at one budget; the context is 8192 unless given.

    The parts: each query head selects at each step; only where the query turns away (semantic trigger); a query group
    agrees on one selection; fast kernels, where any can run. The units: pages, clusters, clusters and segments.

    louiskv bench ladder --quick
    """
    sweep = _sweep(quick, {"context": [8192]}, context=context, batch=batch, steps=steps)
    results, console = _results(output), Console(stderr=True)
    units = ladders.units(budget, model.impl)
    loaded, tokenizer = load(model, console)
    parts, why = ladders.parts(budget, loaded.device), ladders.why_not_fast(loaded.device)
    with progress_bar(console) as advance:
        found = list(bench_decode(Bench(loaded, tokenizer, results, advance), sweep, parts, units))
    refused = {} if why is None else {ladders.FAST_KERNELS: why}
    print_records(found, partial(print_decode, refused=refused), output, as_json)


@app.command("prefill")
@takes_model
@takes_settings
def time_prefill(
    model: ModelChoice,
    settings: dict[str, Any],
    context: Annotated[list[int], typer.Option(help="Tokens of a prompt; repeatable.", min=1)] = [6000],  # noqa: B006
    method: Names = ["full", "louiskv"],  # noqa: B006
    sdpa: Sdpa = True,
    rounds: Annotated[int, typer.Option(help="Measurements of each.", min=1, metavar="N")] = 3,
    output: Output = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Time to the first token of transformers' own cache (sdpa) and of each method; budget 512 unless given.

    Each length that is finished is kept in the file of results.
    """
    field, results, console = _field(method, settings), _results(output), Console(stderr=True)
    loaded, tokenizer = load(model, console)
    entries = [*([Entry(impl=model.impl)] if sdpa else []), *_entries(loaded, field, model.impl, console)]
    for length in context:
        check_fits(length, room(loaded.config, 1), "Prefill is measured on real text: give a smaller --context.")
    with progress_bar(console) as advance:
        bench = Bench(loaded, tokenizer, results, advance)
        found = list(bench_prefill(bench, tuple(context), rounds, entries))
    print_records(found, print_prefill, output, as_json)


@app.command("ops")
def time_operations(
    shape: Annotated[str, typer.Option(help=f"Model of whose layers the shapes are: {', '.join(SHAPES)}.")] = "smollm2",
    context: Annotated[
        list[int], typer.Option(help="Tokens of a sequence; repeatable. 32768 unless given.", show_default=False, min=1)
    ] = [],  # noqa: B006
    batch: Batches = [],  # noqa: B006
    budget: Annotated[int, typer.Option(help="Budget of a KV head.", min=1, metavar="N")] = 512,
    op: Annotated[list[str], typer.Option(help="Operation; repeatable. All unless given.", metavar="NAME")] = [],  # noqa: B006
    dtype: Annotated[Dtype, typer.Option(help="Type of keys and values; auto takes the model's.")] = "auto",
    device: Annotated[str, typer.Option(help=DEVICES)] = "auto",
    impl: Annotated[
        str | None, typer.Option(help="Implementations beside torch, such as cpu or cuda,triton; all unless given.")
    ] = None,
    output: Output = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="Few turns, and unless given a short context.")] = False,
    as_json: AsJson = False,
) -> None:
    """Time every operation of a decode step: each implementation, beside what the machine could do at best.

    The plain-torch reference and its twins take turns, and so do a read and a copy far beyond the caches. These, the
    rate of a large matrix product, and on a GPU what the bus carries, are the roofline. The share of it is the least
    time for what an operation must move or multiply, over the time that it took. K-means that leaves out products of
    far clusters can have more than all of it.

    Each call is given another copy of its inputs, as each layer of a model has its own, so many of them that they come
    from memory and not from a cache. Where there is too little for that (cache), or so little that a call takes longer
    than memory does, the bound of memory says nothing and there is no share: a call is then what takes the time (call),
    or the operation's own steps (small).

    On a GPU twins are timed in a CUDA graph; references, which wait for values, are called from Python, gaps included.

    louiskv bench ops --quick

    louiskv bench ops --shape llama8b --context 131072 --op decode_attention --op fetch_rows
    """
    check_name_of_implementation(impl)
    cases, layer = operations.cases_of(op), operations.shape_of(shape, None if dtype == "auto" else dtype)
    contexts, batches = context or [2048 if quick else 32768], batch or [1]
    sizes = [Sizes(layer, each, rows, budget) for each in dict.fromkeys(contexts) for rows in dict.fromkeys(batches)]
    where, results, console = find_device(device), _results(output), Console(stderr=True)
    operations.check_implementations(cases, sizes[0], where, impl)
    for each in sizes:
        operations.check_fits(each, where)
    known = Known(results, operations.origin_of(shape, layer), where)
    pace = operations.QUICK if quick else operations.Pace()
    with progress_bar(console) as advance:
        found = list(operations.OpsBench(known, where, impl, pace, advance).run(cases, sizes))
    print_records(found, print_operations, output, as_json)


def _sweep(quick: bool, own: dict[str, Any] | None = None, **given: Any) -> Sweep:
    """What is asked for, or else the defaults, of which a command may have its own."""
    run = EVERYTHING | (own or {}) | (QUICK if quick else {}) | {name: value for name, value in given.items() if value}
    return Sweep(tuple(run["context"]), tuple(run["batch"]), run["steps"])


def _results(output: Path) -> Results:
    """What is in the file; what cannot be written is found out now."""
    results = Results(output)
    results.check_writable()
    return results


def _field(names: Iterable[str], settings: dict[str, Any]) -> list[Contestant]:
    """The methods by name; each takes those of the settings that it has."""
    return contestants(names, [settings.get("budget", 512)], settings)


def _entries(model: Any, field: Iterable[Contestant], impl: str | None, console: Console) -> list[Entry]:
    return [Entry(replace(each, method=ready(model, each.method, console)), impl) for each in field]
