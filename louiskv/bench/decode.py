"""Time per output token of several methods, interleaved step by step in one run."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from louiskv.attach import attach
from louiskv.bench.material import Prefilled
from louiskv.cache import LouisKVCache, passing
from louiskv.methods.base import Method
from louiskv.telemetry import Report

# Transformers' own cache and attention, the yardstick that is not ours.
SDPA = "sdpa"


@dataclass(frozen=True)
class DecodeResult:
    """One contestant at one context.

    Attributes:
        contestant: Name of the method, or `sdpa`.
        context: Tokens before the first decoded one.
        num_real: How many of them are real text.
        steps: Decoded tokens.
        ms_per_token: Median over the steps.
        ms_quartiles: First and third quartile.
        device_bytes: Resident sets and index after the run.
        device_share: The same as a share of full attention's bytes.
        resident_bytes: Resident bytes of the layers that retrieve, before and after the run.
        host_bytes: Bytes of the host pools.
        fetched_per_token: Bytes fetched for each decoded token.
        retrieval_rate: Mean share of layers that retrieve at a step.
        retrieval_share: Share of the decode time spent on selection and fetch.
    """

    contestant: str
    context: int
    num_real: int
    steps: int
    ms_per_token: float
    ms_quartiles: tuple[float, float]
    device_bytes: int
    device_share: float = 1.0
    resident_bytes: tuple[int, int] = (0, 0)
    host_bytes: int = 0
    fetched_per_token: float = 0.0
    retrieval_rate: float = 0.0
    retrieval_share: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain data."""
        return asdict(self)


class _Contestant:
    def __init__(self, name: str, method: Method | None, model: PreTrainedModel, start: Prefilled, impl: str | None):
        self.name, self.method, self.model, self.impl = name, method, model, impl
        self.cache = self._load(start)
        self.seconds: list[float] = []
        self.before = self.report()

    def report(self) -> Report | None:
        return self.cache.report() if isinstance(self.cache, LouisKVCache) else None

    def steps(self, ids: torch.Tensor, position: int) -> None:
        """Decode the given ids one at a time, and time each."""
        with self._attached():
            for column in range(ids.shape[1]):
                where = torch.full((1, 1), position + column, device=ids.device)
                _wait(ids.device)
                started = time.perf_counter()
                self.model(ids[:, column : column + 1], position_ids=where, **passing(self.model, self.cache))
                _wait(ids.device)
                self.seconds.append(time.perf_counter() - started)

    def _attached(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.method is None else attach(self.model, self.method, impl=self.impl)

    def _load(self, start: Prefilled) -> Cache:
        if self.method is None:
            cache = DynamicCache(config=self.model.config)
            for layer, keys, values in zip(cache.layers, start.keys, start.values, strict=True):
                layer.update(keys.clone(), values.clone())  # type: ignore[union-attr]
            return cache
        ours = LouisKVCache(self.model.config.get_text_config(decoder=True), self.method, self.impl)
        for each in ours.managed:
            each.load(start.keys[each.index], start.values[each.index])
        return ours


def bench_decode(
    model: PreTrainedModel,
    methods: dict[str, Method],
    start: Prefilled,
    *,
    impl: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[DecodeResult]:
    """Decode the continuation of a context with transformers' own cache and with each method, and compare.

    The contestants take turns of four tokens, so that noise of the machine meets all of them alike.

    Args:
        model: The model, attached to nothing.
        methods: The methods by name.
        start: The context.
        impl: Implementation of the operations.
        progress: Called with a contestant's name after each of its turns, and after it is loaded.

    Yields:
        The result of each contestant, `sdpa` first.
    """
    contestants = []
    with torch.inference_mode():
        for name, method in [(SDPA, None), *methods.items()]:
            contestants.append(_Contestant(name, method, model, start, impl))
            progress(name)
        for first in range(0, start.continuation.shape[1], 4):
            for contestant in contestants:
                contestant.steps(start.continuation[:, first : first + 4], start.position + first)
                progress(contestant.name)
    full = sum(states.nbytes for states in (*start.keys, *start.values))
    for contestant in contestants:
        yield _result(contestant, start, full)


def _result(contestant: _Contestant, start: Prefilled, full_bytes: int) -> DecodeResult:
    # The first turn touches memory for the first time; it is left out where there are others.
    seconds = contestant.seconds[4:] or contestant.seconds
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    steps = len(contestant.seconds)
    timed = DecodeResult(
        contestant=contestant.name,
        context=start.context,
        num_real=start.num_real,
        steps=steps,
        ms_per_token=median * 1000,
        ms_quartiles=(low * 1000, high * 1000),
        device_bytes=full_bytes * (start.context + steps) // start.context,
    )
    report, before = contestant.report(), contestant.before
    if report is None or before is None:
        return timed
    figures, spent = report.to_dict(), report.seconds
    return replace(
        timed,
        device_bytes=report.device_bytes,
        device_share=report.device_share,
        resident_bytes=(_retrieving(before), _retrieving(report)),
        host_bytes=report.host_bytes,
        fetched_per_token=figures["fetched_bytes"] / steps,
        retrieval_rate=figures["retrievals_per_step"],
        retrieval_share=(spent["selection"] + spent["fetch"]) / sum(contestant.seconds),
    )


def _retrieving(report: Report) -> int:
    return sum(layer.tiers.resident.bytes for layer in report.layers if layer.tiers.host.tokens)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
