"""Texts fed to methods token by token: fidelity to full attention."""

import time
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from louiskv.attach import attach
from louiskv.contestants import Contestant
from louiskv.evaluation.fidelity import Reference, compare, refer
from louiskv.evaluation.grid import Fed
from louiskv.evaluation.replay import take_in
from louiskv.evaluation.runner import Evaluation, Record, watch

# Values of a curve over the output are means over so many tokens.
BIN = 64


def feed(evaluation: Evaluation, fed: Fed, contestants: list[Contestant]) -> Iterator[Record]:
    """Compare all methods with full attention; yields each record, new or known, when it is in the file.

    All texts are drawn before the first is fed, so that what cannot be fed is refused at once.

    Raises:
        SettingsError: The model has too few positions, or the text is too short.
    """
    parts = []
    for length in fed.prompts:
        identity = evaluation.identity(prompt=length, steps=fed.steps, texts=fed.texts, seed=fed.seed)
        rows = evaluation.texts(length, fed) if evaluation.lacks(identity, contestants) else None
        parts.append((length, identity, rows))
    return chain.from_iterable(_fed(evaluation, *each, contestants) for each in parts)


def _fed(
    evaluation: Evaluation, length: int, identity: Record, rows: Tensor | None, contestants: list[Contestant]
) -> Iterator[Record]:
    reference = None
    for each, record in evaluation.known(identity, contestants).items():
        if record is None:
            assert rows is not None
            started, what = time.perf_counter(), f"fidelity behind {length}, {each.name}"
            evaluation.tell(what)
            reference = reference or _refer(evaluation, rows, length)
            figures = _compared(evaluation, each, reference, what)
            figures["scenario"] = "long output" if length < identity["steps"] else "long both"
            record = evaluation.add("fidelity", identity, each, started, figures)
        evaluation.done += 1
        yield record


def _refer(evaluation: Evaluation, rows: Tensor, length: int) -> Reference:
    ids = rows[:, :length]
    prompt = take_in(evaluation.model, ids, torch.ones_like(ids, dtype=torch.bool))
    return refer(evaluation.model, prompt, rows[:, length:], impl=evaluation.impl)


def _compared(evaluation: Evaluation, contestant: Contestant, reference: Reference, what: str) -> Record:
    """The figures of a method."""
    with attach(evaluation.model, contestant.method, impl=evaluation.impl) as kv_cache:
        reference.prompt.replay(kv_cache)
        told = watch(kv_cache)
        num_steps = reference.output.shape[1]
        curves = compare(evaluation.model, kv_cache, reference, lambda step: evaluation.tell(what, step / num_steps))
    return {
        "kl": _mean(curves.kl),
        "top1": _mean(curves.top1),
        "nll": _mean(curves.nll),
        "full_nll": float(reference.nll.mean()),
        "bin": BIN,
        "curves": {name: _binned(getattr(curves, name)) for name in ("kl", "top1", "nll")},
        **told(),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _binned(values: list[float]) -> list[float]:
    return [_mean(values[first : first + BIN]) for first in range(0, len(values), BIN)]
