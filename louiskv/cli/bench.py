"""`louiskv bench`: decoding and prefill, methods side by side in one run."""

import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from louiskv.bench.decode import SDPA, DecodeResult, bench_decode
from louiskv.bench.material import prefill, text_ids
from louiskv.bench.prefill import PrefillResult, bench_prefill
from louiskv.cli.loading import load, ready
from louiskv.cli.options import MethodChoice, ModelChoice, takes_model, takes_settings
from louiskv.cli.prompts import check_fits, room
from louiskv.cli.tables import table
from louiskv.errors import SettingsError
from louiskv.methods import Method
from louiskv.provenance import provenance
from louiskv.telemetry import format_bytes

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Measure decoding and prefill, methods side by side in one run.",
)

Contexts = Annotated[
    list[int], typer.Option("--context", help="Tokens before the first decoded one; repeatable.", min=1)
]
Names = Annotated[list[str], typer.Option("--method", help="Method to compare; repeatable.", metavar="NAME")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")]


@app.command()
@takes_model
@takes_settings
def decode(
    model: ModelChoice,
    settings: dict[str, Any],
    context: Contexts = [1024, 8192, 32768],  # noqa: B006
    method: Names = ["full", "louiskv"],  # noqa: B006
    steps: Annotated[int, typer.Option(help="Tokens to decode after each context.", min=1, metavar="N")] = 64,
    as_json: AsJson = False,
) -> None:
    """Time each output token of transformers' own cache (sdpa) and of each method; budget 512 unless given.

    The contexts are real text as far as the model has positions. Beyond that, its keys and values are repeated with
    noise: their speed is real, what the model would say is not.
    """
    methods = _methods(method, settings)
    console = Console(stderr=True)
    loaded, tokenizer = load(model, console)
    methods = {name: ready(loaded, each, console) for name, each in methods.items()}
    limit = room(loaded.config, steps)
    real = min(max(context), limit or max(context))
    results: list[DecodeResult] = []
    with _bar(console) as bar:
        task = bar.add_task("prefill", total=real)
        starts = prefill(loaded, tokenizer, context, steps, _advance_by(bar, task))
        for start in starts:
            task = bar.add_task(f"decode at {start.context}", total=(1 + -(-steps // 4)) * (1 + len(methods)))
            done = bench_decode(loaded, methods, start, impl=model.impl, progress=_advance(bar, task))
            results.extend(done)
    if as_json:
        print(json.dumps(_told(loaded.device, model, methods, results)))
        return
    shown = Console()
    for start in starts:
        rows = [result for result in results if result.context == start.context]
        made = (
            "all real text" if start.num_real == start.context else f"{start.num_real} of real text, the rest repeated"
        )
        shown.print(f"decode at {start.context} tokens ({made}), {steps} steps", style="bold", highlight=False)
        for each in _decode_tables(rows):
            shown.print(each)
    shown.print(_origin(loaded.device, model, methods), highlight=False, style="dim")


@app.command("prefill")
@takes_model
@takes_settings
def time_prefill(
    model: ModelChoice,
    settings: dict[str, Any],
    context: Contexts = [6000],  # noqa: B006
    method: Names = ["full", "louiskv"],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Measurements of each.", min=1, metavar="N")] = 3,
    as_json: AsJson = False,
) -> None:
    """Time to the first token of transformers' own cache (sdpa) and of each method; budget 512 unless given."""
    methods = _methods(method, settings)
    console = Console(stderr=True)
    loaded, tokenizer = load(model, console)
    methods = {name: ready(loaded, each, console) for name, each in methods.items()}
    for length in context:
        check_fits(length, room(loaded.config, 1), "Prefill is measured on real text: give a smaller --context.")
    results: list[PrefillResult] = []
    with _bar(console) as bar:
        for length in context:
            task = bar.add_task(f"prefill of {length}", total=rounds * (1 + len(methods)))
            ids = text_ids(tokenizer, length).to(loaded.device)
            done = bench_prefill(loaded, methods, ids, rounds=rounds, impl=model.impl, progress=_advance(bar, task))
            results.extend(done)
    if as_json:
        print(json.dumps(_told(loaded.device, model, methods, results)))
        return
    shown = Console()
    for length in context:
        rows = [result for result in results if result.context == length]
        shown.print(f"time to first token at {length} tokens, median of {rounds}", style="bold", highlight=False)
        shown.print(_prefill_table(rows))
    shown.print(_origin(loaded.device, model, methods), highlight=False, style="dim")


def _methods(names: Iterable[str], settings: dict[str, Any]) -> dict[str, Method]:
    """The methods by name; each takes those of the settings that it has."""
    built: dict[str, Method] = {}
    used: set[str] = set()
    for name in names:
        choice = MethodChoice(name, None, {})
        own = {setting.name for setting in choice.kind().settings()}
        used |= own
        given = {key: value for key, value in settings.items() if key in own}
        built[name] = MethodChoice(name, None, given).build(budget=512)
    unused = [name for name in settings if name not in used]
    if unused:
        raise SettingsError(f"None of the methods {', '.join(built)} has a setting {', '.join(unused)}.")
    return built


def _bar(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _advance(bar: Progress, task: TaskID) -> Callable[[str], None]:
    return lambda _: bar.advance(task)


def _advance_by(bar: Progress, task: TaskID) -> Callable[[int], None]:
    return lambda number: bar.advance(task, number)


def _decode_tables(rows: list[DecodeResult]) -> Iterable[Any]:
    """What took how long, and what lay and moved where."""
    speed = table("", "ms per token", "quartiles", "speed against sdpa", "against full")
    memory = table("", "device", "of full", "host", "fetched a token", "retrievals", "their time")
    base = {row.contestant: row.ms_per_token for row in rows}
    for row in rows:
        against = (f"{base[name] / row.ms_per_token:.2f}x" if name in base else "-" for name in (SDPA, "full"))
        low, high = row.ms_quartiles
        speed.add_row(row.contestant, f"{row.ms_per_token:.1f}", f"{low:.1f} - {high:.1f}", *against)
        memory.add_row(
            row.contestant,
            format_bytes(row.device_bytes),
            f"{row.device_share:.1%}",
            format_bytes(row.host_bytes),
            format_bytes(row.fetched_per_token),
            f"{row.retrieval_rate:.2f}",
            f"{row.retrieval_share:.1%}",
        )
    return speed, memory


def _prefill_table(rows: list[PrefillResult]) -> Any:
    shown = table("", "seconds", "each", "against sdpa", "against full", "clustering")
    base = {row.contestant: row.seconds for row in rows}
    for row in rows:
        against = (f"{row.seconds / base[name] - 1:+.1%}" if name in base else "-" for name in (SDPA, "full"))
        each = " ".join(f"{value:.1f}" for value in row.all_seconds)
        shown.add_row(row.contestant, f"{row.seconds:.2f}", each, *against, f"{row.clustering_seconds:.2f} s")
    return shown


def _told(device: Any, model: ModelChoice, methods: dict[str, Method], results: Iterable[Any]) -> dict[str, Any]:
    return {
        "model": model.name,
        "dtype": model.dtype,
        "impl": model.impl,
        "methods": {name: method.values() for name, method in methods.items()},
        "provenance": provenance(device),
        "results": [result.to_dict() for result in results],
    }


def _origin(device: Any, model: ModelChoice, methods: dict[str, Method]) -> str:
    where = provenance(device)
    lines = [
        f"{name}: {', '.join(f'{key}={value}' for key, value in method.values().items())}"
        for name, method in methods.items()
        if method.settings()
    ]
    machine = f"{where['processor']}, {where['threads']} threads, {where['device']}"
    versions = (
        f"torch {where['torch']}, transformers {where['transformers']}, louiskv {where['commit'] or where['louiskv']}"
    )
    return "\n".join([*lines, f"{model.name} ({model.dtype}); {machine}; {versions}"])
