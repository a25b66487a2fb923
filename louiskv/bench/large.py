"""Decoding and first tokens at the shapes of large models: weights at random, what is asked for recorded."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from louiskv.attach import attach
from louiskv.bench import large_timing as timing
from louiskv.bench.memory import PeakMemory, available, needed
from louiskv.bench.recording import Recording
from louiskv.bench.replaying import on_stage, shape_of
from louiskv.bench.runner import Entry, Known, Record
from louiskv.cache import LouisKVCache, chunks, passing
from louiskv.captured import CapturedStep, EagerStep, why_not
from louiskv.errors import DeviceFailedError, DeviceMemoryError, HostMemoryError
from louiskv.telemetry import Report, format_bytes

# Replays whose phases are told apart.
LOOKED_AT = 4


@dataclass(frozen=True)
class Cell:
    """What is measured at once.

    Attributes:
        kind: "decode", "prefill" or "growth".
        context: Tokens before the first that is decoded.
        batch: Sequences.
        steps: Tokens to decode; for prefill, how often it is measured.
        phases: Whether to look at what a step is made of, which captures it anew.
        chunk: Tokens of a prompt that are taken in at once; None for all.
    """

    kind: str
    context: int
    batch: int
    steps: int
    phases: bool = False
    chunk: int | None = None

    @property
    def sizes(self) -> Record:
        """As they stand in a record."""
        chunk = {} if self.chunk is None else {"chunk": self.chunk}
        return {"context": self.context, "batch": self.batch, "steps": self.steps, **chunk}


class LargeBench:
    """Measures cells with every contestant; those that are known already are not measured again.

    Attributes:
        known: Where records go.
        model: With random weights, attached to nothing.
        recording: What is asked for; None where nothing is decoded.
        deadline: When no further measurement begins, by `time.monotonic`; None for never.
        progress: Called with what runs, and how much of how much is done.
    """

    def __init__(
        self,
        known: Known,
        model: PreTrainedModel,
        recording: Recording | None,
        deadline: float | None = None,
        progress: Callable[[str, float, float], None] = lambda *_: None,
    ) -> None:
        self.known, self.model, self.recording = known, model, recording
        self.deadline, self.progress = deadline, progress

    def run(self, cells: Iterable[Cell], field: list[Entry]) -> Iterator[Record]:
        """Measure all contestants in each cell; what does not fit, or for which there is no time, is said so.

        Raises:
            DeviceFailedError: The device has failed; what was measured before is known.
        """
        cells = list(cells)
        total = len(cells) * len(field)
        for number, (cell, entry) in enumerate((cell, entry) for cell in cells for entry in field):
            self.progress(f"{cell.kind} {cell.batch} x {cell.context}: {entry.name}", number, total)
            found = self.known.find(f"large {cell.kind}", cell.sizes, [entry.identity])
            if found is not None and self._is_settled(found[0]):
                yield found[0]
            elif self.deadline is not None and time.monotonic() > self.deadline:
                yield self._left_out(cell, entry, "there was no time left")
            else:
                yield self._measured(cell, entry)
        self.progress("", total, total)

    def _left_out(self, cell: Cell, entry: Entry, why: str) -> Record:
        return {"kind": f"large {cell.kind}", **self.known.origin, **entry.identity, **cell.sizes, "left_out": why}

    def _measured(self, cell: Cell, entry: Entry) -> Record:
        lacking = self._lacking(cell, entry)
        if lacking is not None:
            return self._left_out(cell, entry, lacking)
        measure = {"decode": self._decode, "prefill": self._prefill, "growth": self._grow}[cell.kind]
        figures, lacking = None, ""
        try:
            with torch.no_grad():
                figures = measure(cell, entry)
        except (RuntimeError, HostMemoryError, DeviceMemoryError) as error:
            # A device that has failed makes errors of many kinds, those of memory among them.
            self._check_device(cell, entry)
            if isinstance(error, RuntimeError) and not isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            lacking = str(error).splitlines()[0]
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if figures is None:
            return self._left_out(cell, entry, lacking)
        return self.known.add(f"large {cell.kind}", cell.sizes, entry.identity, figures)

    def _check_device(self, cell: Cell, entry: Entry) -> None:
        """End where the device cannot be used any more, and write down what is not to be tried again."""
        try:
            timing.wait(self.model.device)
        except RuntimeError as error:
            why = f"the device failed ({str(error).splitlines()[0]})"
            self.known.add(f"large {cell.kind}", cell.sizes, entry.identity, {"left_out": why})
            raise DeviceFailedError(
                f"{entry.name}, {cell.kind} of {cell.batch} x {cell.context} tokens: {why}, and this process cannot "
                "use it any more. What was measured is in the file of results: the same command goes on behind this."
            ) from error

    def _is_settled(self, record: Record) -> bool:
        """Whether it need not be measured again: what failed is tried once more with other code."""
        return "left_out" not in record or record["provenance"]["commit"] == self.known.provenance["commit"]

    def _lacking(self, cell: Cell, entry: Entry) -> str | None:
        """What there is too little of, None if it fits."""
        more = cell.steps if cell.kind != "prefill" else 0
        device = self.model.device
        need = needed(self.model.config, entry, cell.context + more, cell.batch, device, self.model.dtype)
        there = available(device)
        if need.fits(there):
            return None
        on_host = need.host > there.host
        place, size, room = ("host", need.host, there.host) if on_host else ("device", need.device, there.device)
        return f"it needs {format_bytes(size)} of {place} memory, but {format_bytes(room)} can be used"

    def _attached(self, entry: Entry) -> AbstractContextManager[Any]:
        method = entry.method
        return nullcontext() if method is None else attach(self.model, method, impl=entry.impl)

    def _on_stage(self, cell: Cell, entry: Entry) -> Cache:
        assert self.recording is not None
        config = self.model.config
        if entry.method is not None:
            ours = on_stage(config, entry.method, self.recording, cell.batch, cell.context, entry.impl)
            ours.reserve(2 * timing.WARM_UP[1] + cell.steps + LOOKED_AT)
            return ours
        kv_cache = DynamicCache(config=config)
        shape = shape_of(config, self.model.dtype)
        for index, layer in enumerate(kv_cache.layers):
            made = self.recording.context(index, config.num_hidden_layers, shape, cell.batch, cell.context)
            layer.update(*made)  # type: ignore[union-attr]
        return kv_cache

    def _decode(self, cell: Cell, entry: Entry) -> Record:
        """Time each step; then look at what it is made of."""
        memory = PeakMemory(self.model.device)
        with self._attached(entry), memory.watch():
            started = time.perf_counter()
            kv_cache = self._on_stage(cell, entry)
            timing.wait(self.model.device)
            loading = time.perf_counter() - started
            memory.restart()
            step, eager = self._step(kv_cache, cell)
            num_warm_up = timing.warm_up(step)
            before, seconds = _report(kv_cache), timing.steady(step, cell.steps)
            after = _report(kv_cache)
            phases = self._phases(kv_cache, step) if cell.phases else {}
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        mean = statistics.fmean(seconds)
        return {
            "ms_per_token": 1000 * mean,
            "ms_quartiles": [1000 * low, 1000 * median, 1000 * high],
            "tokens_per_second": cell.batch / mean,
            "timed_steps": len(seconds),
            "warm_up_steps": num_warm_up,
            "eager": eager,
            "kinds_of_steps": step.num_kinds if isinstance(step, CapturedStep) else None,
            "cuda_peak_bytes": memory.bytes,
            **_moved(before, after),
            "phases": phases,
            "seconds": sum(seconds),
            "loading_seconds": loading,
        }

    def _step(self, kv_cache: Cache, cell: Cell) -> tuple[EagerStep, str | None]:
        """What runs a step, and why it is no graph, if it is none."""
        positions = torch.full((cell.batch,), cell.context - 1, device=self.model.device)
        if not isinstance(kv_cache, LouisKVCache):
            return EagerStep(self.model, kv_cache, positions), "transformers' own cache grows with each step"  # type: ignore[arg-type]
        reason = why_not(self.model, kv_cache)
        kind = CapturedStep if reason is None else EagerStep
        return kind(self.model, kv_cache, positions), reason

    def _phases(self, kv_cache: Cache, step: EagerStep) -> Record:
        """Milliseconds of each phase in steps that are timed for that, the model's own work included."""
        if not isinstance(kv_cache, LouisKVCache):
            return {}
        clocks = [layer.state.telemetry.clock for layer in kv_cache.managed]
        if isinstance(step, CapturedStep):
            step.forget()
            for clock in clocks:
                clock.in_graphs = True
            timing.warm_up(step)
        before = timing.spent(clocks)
        seconds = [timing.timed_phases(step, clocks) for _ in range(LOOKED_AT)]
        spent = {phase: each - before[phase] for phase, each in timing.spent(clocks).items()}
        made = {phase: 1000 * each / LOOKED_AT for phase, each in spent.items() if each}
        return {"model": 1000 * statistics.fmean(seconds) - sum(made.values()), **made}

    def _prefill(self, cell: Cell, entry: Entry) -> Record:
        """Seconds to the first token, and until all of the prompt has found its place."""
        memory, first, ready = PeakMemory(self.model.device), [], []
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.model.config.vocab_size, (cell.batch, cell.context), generator=generator)
        ids, spent = ids.to(self.model.device), dict.fromkeys(("clustering", "offload"), 0.0)
        # One before, not timed, compiles and tunes for prompts of this length.
        for number in range(1 + cell.steps):
            with self._attached(entry) as kv_cache, memory.watch():
                kv_cache = DynamicCache(config=self.model.config) if kv_cache is None else kv_cache
                timing.wait(self.model.device)
                started = time.perf_counter()
                output = self._fed(kv_cache, ids, cell.chunk or cell.context)
                output.logits.argmax(-1).tolist()
                seconds = time.perf_counter() - started
                report = _report(kv_cache)
                timing.wait(self.model.device)
                if number:
                    first.append(seconds)
                    ready.append(time.perf_counter() - started)
                if report is not None:
                    spent = {phase: report.seconds[phase] for phase in spent}
                del kv_cache, output
        return {
            "first_token_seconds": statistics.median(first),
            "ready_seconds": statistics.median(ready),
            "all_seconds": first,
            **{f"{phase}_seconds": seconds for phase, seconds in spent.items()},
            "cuda_peak_bytes": memory.bytes,
            "seconds": sum(ready),
        }

    def _fed(self, kv_cache: Cache, ids: Tensor, chunk_size: int) -> Any:
        """What the model gives for the last chunk of a prompt."""
        if isinstance(kv_cache, LouisKVCache):
            kv_cache.expect(ids.shape[1])
        output = None
        for first, end in chunks(0, ids.shape[1], chunk_size):
            output = self.model(ids[:, first:end], logits_to_keep=1, use_cache=True, **passing(self.model, kv_cache))
        return output

    def _grow(self, cell: Cell, entry: Entry) -> Record:
        """What the device holds along a long output."""
        device = self.model.device
        with self._attached(entry):
            kv_cache = self._on_stage(cell, entry)
            step, eager = self._step(kv_cache, cell)
            timing.warm_up(step)
            held, part = [], max(1, cell.steps // 8)
            for _ in range(0, cell.steps, part):
                timing.reset_peak(device)
                seconds = timing.timed(step, part)
                report = _report(kv_cache)
                held.append(
                    {
                        "ms_per_token": 1000 * statistics.fmean(seconds),
                        "cuda_peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
                        "device_bytes": None if report is None else report.device_bytes,
                        "host_bytes": None if report is None else report.host_bytes,
                    }
                )
        return {"held": held, "eager": eager}


def _report(kv_cache: Cache) -> Report | None:
    return kv_cache.report() if isinstance(kv_cache, LouisKVCache) else None


def _moved(before: Report | None, after: Report | None) -> Record:
    """What the steps between two reports have moved, and what is held at the end."""
    if before is None or after is None:
        return {}
    fetched = [report.to_dict()["fetched_bytes"] for report in (before, after)]
    num_tokens = after.output_tokens - before.output_tokens
    hits = [layer.hit_rate for layer in after.layers if layer.hit_rate is not None]
    return {
        "device_bytes": after.device_bytes,
        "host_bytes": after.host_bytes,
        "full_bytes": after.full_bytes,
        "fetched_per_token": (fetched[1] - fetched[0]) / num_tokens,
        "retrieval_rate": after.to_dict()["retrievals_per_step"],
        "ahead_rate": after.ahead_rate,
        "hit_rate": statistics.fmean(hits) if hits else None,
    }
