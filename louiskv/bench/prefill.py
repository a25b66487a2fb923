"""Time to first token of several methods, interleaved in one run."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from louiskv.attach import attach
from louiskv.bench.decode import SDPA
from louiskv.cache import passing
from louiskv.methods.base import Method


@dataclass(frozen=True)
class PrefillResult:
    """One contestant at one context.

    Attributes:
        contestant: Name of the method, or `sdpa`.
        context: Tokens of the prompt.
        rounds: Measurements.
        seconds: Median time to the first token.
        all_seconds: Each measurement.
        clustering_seconds: Time of clustering in the last round.
    """

    contestant: str
    context: int
    rounds: int
    seconds: float
    all_seconds: list[float]
    clustering_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain data."""
        return asdict(self)


def bench_prefill(
    model: PreTrainedModel,
    methods: dict[str, Method],
    ids: torch.Tensor,
    *,
    rounds: int,
    impl: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[PrefillResult]:
    """Take in a prompt with transformers' own cache and with each method, in turns, and compare.

    Args:
        model: The model, attached to nothing.
        methods: The methods by name.
        ids: [1, T] the prompt.
        rounds: Measurements of each contestant; the order is reversed every other round.
        impl: Implementation of the operations.
        progress: Called with a contestant's name after each of its measurements.

    Yields:
        The result of each contestant, `sdpa` first.
    """
    contestants: dict[str, Method | None] = {SDPA: None, **methods}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    clustering = dict.fromkeys(contestants, 0.0)
    for number in range(rounds):
        order = list(contestants.items())
        for name, method in order if number % 2 == 0 else reversed(order):
            if method is None:
                seconds[name].append(_first_token(model, ids, DynamicCache(config=model.config)))
            else:
                with attach(model, method, impl=impl) as cache:
                    seconds[name].append(_first_token(model, ids, cache))
                    clustering[name] = cache.report().seconds["clustering"]
            progress(name)
    for name in contestants:
        median = statistics.median(seconds[name])
        yield PrefillResult(name, ids.shape[1], rounds, median, seconds[name], clustering[name])


def _first_token(model: PreTrainedModel, ids: torch.Tensor, cache: Any) -> float:
    if ids.is_cuda:
        torch.cuda.synchronize(ids.device)
    started = time.perf_counter()
    with torch.inference_mode():
        logits = model(ids, **passing(model, cache), logits_to_keep=1).logits
        logits.argmax(-1).tolist()
    return time.perf_counter() - started
