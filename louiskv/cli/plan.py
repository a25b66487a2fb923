"""`louiskv plan`: the memory of each tier, before anything is loaded."""

import json
from typing import Annotated

import torch
import typer
from rich.console import Console, Group
from rich.text import Text

from louiskv import models
from louiskv.cli.loading import be_quiet
from louiskv.cli.options import MethodChoice, ModelChoice, takes_method, takes_model
from louiskv.cli.tables import table
from louiskv.errors import HostMemoryError, SettingsError
from louiskv.plan import Plan
from louiskv.plan import plan as work_out
from louiskv.store.pool import available_host_memory
from louiskv.telemetry import format_bytes

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
@takes_method
@takes_model
def plan(
    method: MethodChoice,
    model: ModelChoice,
    context: Annotated[int, typer.Option(help="Tokens of each sequence, output included.", metavar="N")] = 8192,
    batch: Annotated[int, typer.Option(help="Sequences at once.", metavar="N")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Work out the memory of each tier before anything is loaded; fails if the host has too little.

    louiskv plan --model Qwen/Qwen3-8B --context 131072 --batch 4 --budget 1024 --dtype bfloat16
    """
    built = method.build()
    be_quiet()
    config = models.load_config(model.name)
    dtype = _dtype(model.dtype, config.dtype)
    device = _device(model.device)
    figures = work_out(config, built, context, batch_size=batch, dtype=dtype)
    available = available_host_memory()
    problem = _problem(figures, device, available)
    if as_json:
        where = {"model": model.name, "dtype": str(dtype).removeprefix("torch."), "device": str(device)}
        fits = {"available_host_bytes": available, "fits": problem is None}
        print(json.dumps({**where, **figures.to_dict(), **fits}))
    else:
        Console().print(_shown(figures, model.name, dtype, available), highlight=False)
    if problem is not None:
        raise problem


def _shown(figures: Plan, model: str, dtype: torch.dtype, available: int) -> Group:
    """The plan as a user reads it."""
    sizes = f"{figures.batch_size} x {figures.context} tokens in {str(dtype).removeprefix('torch.')}"
    others = f"; {figures.other_layers} others are left alone and not counted" if figures.other_layers else ""
    rows = table("", "memory", "of full attention")
    for name, size in [
        ("on the device", figures.device_bytes),
        ("  keys and values", figures.resident_bytes),
        ("  index", figures.index_bytes),
        ("  more on a GPU while a prompt is taken in", figures.prefill_bytes),
        ("on the host", figures.host_bytes),
        ("moved by one retrieval, at the most", figures.retrieval_bytes),
        ("full attention, on the device", figures.full_bytes),
    ]:
        rows.add_row(name, format_bytes(size), f"{size / figures.full_bytes:.1%}")
    return Group(
        Text(f"{figures.method} on {model}: {sizes}", style="bold"),
        f"{figures.managed_layers} layers are managed{others}.",
        rows,
        f"{format_bytes(available)} of host memory are available.",
    )


def _problem(figures: Plan, device: torch.device, available: int) -> HostMemoryError | None:
    try:
        figures.check_host_memory(device, available)
    except HostMemoryError as error:
        return error
    return None


def _device(asked: str) -> torch.device:
    """Where it would run: not necessarily on this machine.

    Raises:
        SettingsError: That is no device.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(asked)
    except RuntimeError as error:
        raise SettingsError(f"--device {asked} is not a device: give cpu, cuda or cuda:1.") from error


def _dtype(asked: str, own: torch.dtype | str | None) -> torch.dtype:
    """The type asked for; for auto the model's own."""
    if asked == "auto":
        return own if isinstance(own, torch.dtype) else torch.float32
    kind: torch.dtype = getattr(torch, asked)
    return kind
