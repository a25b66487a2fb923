"""Time per output token of several methods, interleaved step by step in one run, and what lies and moves where."""

import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from louiskv.attach import attach
from louiskv.bench.material import Prefilled, ends, prefill, text_limit
from louiskv.bench.memory import Memory, PeakMemory, available, fits_together, needed
from louiskv.bench.runner import Bench, Entry, Record, Stopwatch
from louiskv.cache import LouisKVCache, passing
from louiskv.methods.full import Full
from louiskv.plan import plan
from louiskv.telemetry import Report

# Steps of one turn: contestants take turns, so that noise of the machine meets all of them alike.
TURN = 4
# What runs beside the step and is no part of its time.
BESIDE = "ahead"


@dataclass(frozen=True)
class Sweep:
    """What is decoded: each number of sequences at each context.

    Attributes:
        contexts: Tokens before the first decoded one.
        batches: Sequences at once.
        steps: Tokens to decode after each.
    """

    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    steps: int

    @property
    def sizes(self) -> list[Record]:
        """Context, batch and steps of each group that is compared."""
        return [
            {"context": context, "batch": batch, "steps": self.steps}
            for context in dict.fromkeys(self.contexts)
            for batch in dict.fromkeys(self.batches)
        ]

    @property
    def turns(self) -> int:
        """Turns of one contestant; to load it is one."""
        return 1 + -(-self.steps // TURN)


def bench_decode(bench: Bench, sweep: Sweep, *fields: list[Entry]) -> Iterator[Record]:
    """Decode what follows each context with every contestant.

    Args:
        bench: The model, attached to nothing, and the results.
        sweep: Contexts and batches.
        *fields: Who is compared with whom.

    Yields:
        The records of each field at each context and batch, known ones included.

    Raises:
        HostMemoryError: One contestant does not fit into memory; nothing was measured.
        DeviceMemoryError: The same, on the device.
    """
    groups = [(field, sizes) for field in fields for sizes in sweep.sizes]
    missing = [group for group in groups if bench.known("decode", group[1], group[0]) is None]
    together = [_fits_together(bench, *group) for group in missing]
    made: list[Prefilled] = []
    if missing:
        shapes = [(sizes["context"], sizes["batch"]) for _, sizes in missing]
        model, tokenizer = bench.model, bench.tokenizer
        made = prefill(model, tokenizer, shapes, sweep.steps, lambda *done: bench.progress("prefill", *done))
    prepared = iter(zip(made, together, strict=True))
    done, total = 0, sweep.turns * sum(len(field) for field, _ in groups)
    for field, sizes in groups:
        if (field, sizes) not in missing:
            done += sweep.turns * len(field)
            yield from bench.known("decode", sizes, field) or ()
            continue
        group = _Group(bench, *next(prepared))
        for name in group.measure(field):
            done += 1
            bench.progress(f"decode {sizes['batch']} x {sizes['context']}: {name}", done, total)
        for runner in group.runners:
            yield bench.add("decode", sizes, runner.entry, {**runner.figures(), "interleaved": group.together})


def _fits_together(bench: Bench, field: list[Entry], sizes: Record) -> bool:
    config, device, dtype = bench.model.config, bench.model.device, bench.model.dtype
    context, batch, steps = sizes["context"], sizes["batch"], sizes["steps"]
    needs = [(entry, needed(config, entry, context + steps, batch, device, dtype)) for entry in field]
    # The real text, of which all contexts are made, is there as well.
    length = max(ends(context, batch, text_limit(bench.model, steps)))
    text = plan(config, Full(), length, dtype=dtype).full_bytes
    there = available(device)
    left = Memory(there.host - text, 0) if device.type == "cpu" else Memory(there.host, there.device - text)
    return fits_together(needs, left, f"{batch} x {context}")


class _Group:
    """The contestants of one context and batch.

    Attributes:
        together: Whether they are measured in turns, or else one after another.
        runners: Those that were measured.
    """

    def __init__(self, bench: Bench, start: Prefilled, together: bool) -> None:
        self.bench, self.start, self.together = bench, start, together
        self.runners: list[_Runner] = []

    def measure(self, field: list[Entry]) -> Iterator[str]:
        """Load and decode; yields a contestant's name after each of its turns, and after it is loaded."""
        for part in [field] if self.together else [[entry] for entry in field]:
            runners = []
            for entry in part:
                runners.append(_Runner(entry, self.bench.model, self.start))
                yield entry.name
            for first in range(0, self.start.continuation.shape[1], TURN):
                for runner in runners:
                    runner.turn(first)
                    yield runner.entry.name
            for runner in runners:
                runner.finish()
            self.runners += runners


class _Runner:
    """One contestant: its cache, and the time of each step."""

    def __init__(self, entry: Entry, model: PreTrainedModel, start: Prefilled) -> None:
        self.entry, self.model, self.start = entry, model, start
        self.loading, self.decoding = Stopwatch(model.device), Stopwatch(model.device)
        self.memory = PeakMemory(model.device)
        self.position = torch.tensor(start.ends, device=model.device)[:, None]
        with torch.inference_mode(), self.memory.watch(), self.loading:
            self.cache: Cache | None = self._loaded()
        self.memory.restart()
        self.before = self._report()
        self.after: Report | None = None

    def turn(self, first: int) -> None:
        """Decode the next tokens one at a time, and time each."""
        with torch.inference_mode(), self.memory.watch(), self._attached():
            for column in range(first, min(first + TURN, self.start.continuation.shape[1])):
                ids = self.start.continuation[:, column : column + 1]
                with self.decoding:
                    self.model(ids, position_ids=self.position + column, **passing(self.model, self.cache))

    def finish(self) -> None:
        """Look at what the cache holds, and let go of it."""
        self.after, self.cache = self._report(), None

    def figures(self) -> Record:
        """What was measured."""
        # The first turn touches memory for the first time; it is left out where there are others.
        seconds, batch = self.decoding.seconds[TURN:] or self.decoding.seconds, self.start.batch
        timed = seconds if len(seconds) > 1 else 2 * seconds
        low, median, high = statistics.quantiles(timed, n=4, method="inclusive")
        return {
            "num_real": self.start.num_real,
            "ms_per_token": median * 1000,
            "ms_quartiles": [low * 1000, high * 1000],
            "tokens_per_second": batch / median,
            **(self._of_sdpa() if self.before is None or self.after is None else self._of(self.before, self.after)),
            "cuda_peak_bytes": self.memory.bytes,
            "seconds": sum(self.loading.seconds) + sum(self.decoding.seconds),
        }

    def _of_sdpa(self) -> Record:
        """Everything lies on the device, and what a step spends on attention is not told apart."""
        full = self.start.token_bytes * self.start.batch * (self.start.context + len(self.decoding.seconds))
        return {
            "device_bytes": full,
            "peak_device_bytes": full,
            "resident_bytes": full,
            "index_bytes": 0,
            "host_bytes": 0,
            "full_bytes": full,
            "fetched_per_token": 0.0,
            "retrieval_rate": 0.0,
            "ahead_rate": None,
            "retrieval_share": 0.0,
            "hit_rate": None,
            "phases": {"model": 1000 * statistics.mean(self.decoding.seconds)},
        }

    def _of(self, before: Report, after: Report) -> Record:
        """What the method says; caches only grow or keep their size while they decode, so a peak is at an end."""
        steps, total = len(self.decoding.seconds), sum(self.decoding.seconds)
        spent = {phase: seconds - before.seconds[phase] for phase, seconds in after.seconds.items()}
        rest = total - sum(seconds for phase, seconds in spent.items() if phase != BESIDE)
        held = [_tiers(report) for report in (before, after)]
        hits = [layer.hit_rate for layer in after.layers if layer.hit_rate is not None]
        fetched = [report.to_dict()["fetched_bytes"] for report in (before, after)]
        return {
            "device_bytes": after.device_bytes,
            "peak_device_bytes": max(before.device_bytes, after.device_bytes),
            **{name: max(each[name] for each in held) for name in held[0]},
            "full_bytes": after.full_bytes,
            "fetched_per_token": (fetched[1] - fetched[0]) / steps / self.start.batch,
            "retrieval_rate": after.to_dict()["retrievals_per_step"],
            "ahead_rate": after.ahead_rate,
            "retrieval_share": (spent["selection"] + spent["fetch"]) / total,
            "hit_rate": statistics.mean(hits) if hits else None,
            "phases": {phase: 1000 * seconds / steps for phase, seconds in {"model": rest, **spent}.items()},
        }

    def _report(self) -> Report | None:
        return self.cache.report() if isinstance(self.cache, LouisKVCache) else None

    def _attached(self) -> AbstractContextManager[Any]:
        method = self.entry.method
        return nullcontext() if method is None else attach(self.model, method, impl=self.entry.impl)

    def _loaded(self) -> Cache:
        if self.entry.method is None:
            cache = DynamicCache(config=self.model.config)
            for index, layer in enumerate(cache.layers):
                layer.update(*self.start.layer(index))  # type: ignore[union-attr]
            return cache
        ours = LouisKVCache(self.model.config.get_text_config(decoder=True), self.entry.method, self.entry.impl)
        for each in ours.managed:
            each.load(*self.start.layer(each.index))
        return ours


def _tiers(report: Report) -> dict[str, int]:
    """Bytes of each tier, over all layers."""
    tiers = [layer.tiers for layer in report.layers]
    return {
        "resident_bytes": sum(each.resident.bytes for each in tiers),
        "index_bytes": sum(each.index.bytes for each in tiers),
        "host_bytes": sum(each.host.bytes for each in tiers),
    }
