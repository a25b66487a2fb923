"""`louiskv calibrate`: tau for each layer of a model, from sample texts."""

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from louiskv.cli.loading import load
from louiskv.cli.options import MethodChoice, ModelChoice, flag, takes_model, takes_settings
from louiskv.cli.progress import progress_bar
from louiskv.cli.tables import table
from louiskv.contestants import plain
from louiskv.errors import SettingsError
from louiskv.evaluation.calibrate import Target
from louiskv.evaluation.calibrate import calibrate as measure
from louiskv.evaluation.texts import Haystack
from louiskv.methods import METHODS
from louiskv.methods.calibrated import Calibrated
from louiskv.provenance import origin, provenance
from louiskv.results import check_writable, key_of, writing
from louiskv.taus import LayerTaus

# One sample of so many is held out; they come from a part of the text of their own.
HELD_OUT = 4
# Methods that have a tau.
CALIBRATED = [name for name, kind in METHODS.items() if issubclass(kind, Calibrated)]

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
@takes_settings
@takes_model
def calibrate(
    model: ModelChoice,
    settings: dict[str, Any],
    method: Annotated[str, typer.Option(help=f"Method: {', '.join(CALIBRATED)}.", metavar="NAME")] = "louiskv",
    rate: Annotated[float | None, typer.Option(help="Share of the decode steps that shall retrieve.")] = None,
    error: Annotated[float | None, typer.Option(help="Relative error of attention that shall be kept to.")] = None,
    samples: Annotated[
        int, typer.Option(help="Sample texts; a quarter of them is held out.", min=HELD_OUT, metavar="N")
    ] = 16,
    context: Annotated[int, typer.Option(help="Tokens of a sample's prompt.", min=1, metavar="N")] = 1024,
    steps: Annotated[int, typer.Option(help="Tokens that are fed behind it.", min=2, metavar="N")] = 128,
    batch_size: Annotated[int, typer.Option(help="Samples that are fed together.", min=1, metavar="N")] = 4,
    seed: Annotated[int, typer.Option(help="Where the samples begin.", metavar="N")] = 0,
    text: Annotated[Path | None, typer.Option(help="Text of the samples; Python's documentation unless given.")] = None,
    output: Annotated[Path, typer.Option(help="File for the taus.")] = Path("results/tau.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print what was measured as one JSON object.")] = False,
) -> None:
    """Choose for each layer of a model the tau under which a method retrieves, and one for all layers.

    Either for a retrieval rate or for an error of the attention output. What is reached is told for samples that were
    held out, from the last quarter of the text, beside what fewer would have given. Every other command reads the file
    by `--calibration`. The same call again shows what is in it.

    louiskv calibrate --rate 0.25

    louiskv generate "What is a cache?" --calibration results/tau.json

    louiskv calibrate --method louiskv_plus --trigger coverage --error 0.1 --output results/coverage.json
    """
    target = Target(rate, error)
    calibrated = _method(method, settings)
    chosen = [flag(name) for name in ("tau", "calibration") if name in settings]
    if chosen:
        raise SettingsError(f"{' and '.join(chosen)} cannot be given here: a calibration chooses tau.")
    if output.is_dir():
        raise SettingsError(f"--output {output} is a folder: name a file in it.")
    known = _known(output)
    check_writable(output)
    console = Console(stderr=True)
    loaded, tokenizer = load(model, console)
    haystack = Haystack.of(tokenizer, text)
    positions = getattr(loaded.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and context + steps > positions:
        raise SettingsError(
            f"--context {context} and --steps {steps} need {context + steps} positions, the model has {positions}."
        )
    sampled = {"text": haystack.name, "text_hash": haystack.digest, "seed": seed, "held_out_share": 1 / HELD_OUT}
    decides = {**sampled, **target.values(), "samples": samples, "context": context, "steps": steps}
    known_as = {name: value for name, value in origin(loaded).items() if name != "model"}
    key = key_of({**decides, **known_as, "impl": model.impl, "method": plain(calibrated)})
    taus = known if known is not None and known.settings.get("key") == key else None
    if taus is None:
        texts, held_out = _drawn(haystack, samples, context + steps, seed)
        with progress_bar(console) as advance:
            taus = measure(
                loaded,
                texts.to(loaded.device),
                held_out.to(loaded.device),
                context,
                target,
                calibrated,
                batch_size=batch_size,
                progress=lambda done, total: advance("calibration", done, total),
                impl=model.impl,
            )
        made = {"key": key, "dtype": known_as["dtype"], "provenance": provenance(loaded.device)}
        taus = replace(taus, settings={**taus.settings, **sampled, **made})
        with writing(output):
            taus.write(output)
    if as_json:
        print(json.dumps(asdict(taus)))
    else:
        _show(Console(), taus, output)


def _method(name: str, settings: dict[str, Any]) -> Calibrated:
    """The method, which has a tau to choose.

    Raises:
        SettingsError: It has none.
    """
    if name not in CALIBRATED:
        raise SettingsError(f"The method {name!r} has no tau to calibrate: {', '.join(CALIBRATED)} have.")
    method = MethodChoice(name, None, settings).build()
    assert isinstance(method, Calibrated)
    if not method.compared:
        raise SettingsError("trigger=every compares nothing with a tau: give --trigger anchor, cosine or coverage.")
    return method


def _known(output: Path) -> LayerTaus | None:
    """The calibration in a file, if there is the file.

    Raises:
        SettingsError: It holds something else, which must not be lost.
    """
    if not output.exists():
        return None
    try:
        return LayerTaus.load(output)
    except SettingsError as error:
        raise SettingsError(f"{output} is there already and holds no calibration. Give another --output.") from error


def _drawn(haystack: Haystack, samples: int, num_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples [S, num_tokens] to calibrate on, and those that are held out."""
    places, num_held = random.Random(seed), samples // HELD_OUT
    parts = zip(haystack.split(1 / HELD_OUT), (samples - num_held, num_held), strict=True)
    used, held = (torch.tensor([part.prose(num_tokens, places) for _ in range(count)]) for part, count in parts)
    return used, held


def _show(console: Console, taus: LayerTaus, output: Path) -> None:
    layers = table("layer", "tau")
    for layer, tau in enumerate(taus.tau):
        if tau is not None:
            layers.add_row(str(layer), f"{tau:.3f}")
    fewer = table("samples", "taus differ by", "retrievals", *(["error"] if "error" in taus.target else []))
    for point in taus.curve:
        figures = [f"{point[name]:.3f}" for name in ("tau_error", "rate", "error") if name in point]
        fewer.add_row(f"{point['samples']:.0f}", *figures)
    achieved = table("on held-out texts", "retrievals", "error")
    for name, prefix in (("a tau for each layer", ""), (f"{taus.global_tau:.3f} for all", "global_")):
        achieved.add_row(name, *(f"{taus.achieved[f'{prefix}{figure}']:.3f}" for figure in ("rate", "error")))
    for shown in (layers, fewer, achieved):
        console.print(shown)
    missed = _missed(taus)
    if missed:
        layers_missed = f"{len(missed)} layers stay above the error, though they retrieve at every step"
        console.print(f"{layers_missed}: {', '.join(map(str, missed))}. A larger --budget has less.", highlight=False)
    console.print(f"use it: --calibration {output}", highlight=False, style="dim")


def _missed(taus: LayerTaus) -> list[int]:
    """Layers in which no tau reaches the error that was aimed at."""
    errors = taus.by_tau["errors"] if "error" in taus.target else []
    return [
        layer for layer, each in zip(taus.by_tau["layers"], errors, strict=False) if min(each) > taus.target["error"]
    ]
