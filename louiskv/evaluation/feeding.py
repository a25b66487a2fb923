"""Texts fed to methods token by token: fidelity to full attention, and probes of what they attend to."""

import time
from collections.abc import Iterator

import torch

from louiskv.attach import attach
from louiskv.contestants import Contestant
from louiskv.evaluation.fidelity import compare, refer
from louiskv.evaluation.grid import Fed
from louiskv.evaluation.replay import take_in
from louiskv.evaluation.runner import Evaluation, Record, watch

# Values of a curve over the output are means over so many tokens.
BIN = 64


def feed(evaluation: Evaluation, fed: Fed, contestants: list[Contestant]) -> Iterator[Record]:
    """Compare all methods with full attention; yields each record, new or known, when it is in the file.

    Raises:
        SettingsError: The model has too few positions, or the text is too short.
    """
    for length in fed.prompts:
        identity = evaluation.identity(prompt=length, steps=fed.steps, texts=fed.texts, seed=fed.seed)
        known, missing = evaluation.known(identity, contestants)
        yield from known
        if not missing:
            continue
        evaluation.tell(f"fidelity behind {length}")
        rows = evaluation.texts(length, fed)
        prompt = take_in(evaluation.model, rows[:, :length], torch.ones_like(rows[:, :length], dtype=torch.bool))
        reference = refer(evaluation.model, prompt, rows[:, length:])
        for each in missing:
            started, what = time.perf_counter(), f"fidelity behind {length}, {each.name}"
            with attach(evaluation.model, each.method) as kv_cache:
                prompt.replay(kv_cache)
                told = watch(kv_cache)

                def tell(step: int, what: str = what) -> None:
                    evaluation.tell(what, step / fed.steps)

                curves = compare(evaluation.model, kv_cache, reference, tell)
            figures = {
                "scenario": "long output" if length < fed.steps else "long both",
                "kl": _mean(curves.kl),
                "top1": _mean(curves.top1),
                "nll": _mean(curves.nll),
                "full_nll": float(reference.nll.mean()),
                "bin": BIN,
                "curves": {name: _binned(getattr(curves, name)) for name in ("kl", "top1", "nll")},
                **told(),
            }
            yield evaluation.add("fidelity", identity, each, started, figures)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _binned(values: list[float]) -> list[float]:
    return [_mean(values[first : first + BIN]) for first in range(0, len(values), BIN)]
