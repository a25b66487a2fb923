"""Counters and timings of one layer, and the report of a whole cache."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from louiskv.ops.recording import record_step

PHASES = ("prefill", "clustering", "offload", "selection", "fetch", "estimate", "attention", "ahead")


# What is selected in the background is timed there; for all clocks, so that they can be copied.
_lock = threading.Lock()


class Series:
    """A tensor for each step, kept where it arises; appending waits for nothing."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._before: list[Tensor] = []
        # Those that are appended to together count their steps together.
        self._next: Tensor
        self._most = 0

    def reserve(self, num_steps: int) -> None:
        """Make room for so many steps."""
        self._most += num_steps
        if self._buffer is not None and self._most > len(self._buffer):
            more = self._buffer.new_empty(
                max(self._most - len(self._buffer), len(self._buffer)), *self._buffer.shape[1:]
            )
            self._buffer = torch.cat([self._buffer, more])

    def append(self, value: Tensor) -> None:
        """Add the value of one step, for which room was reserved."""
        append_together([(self, value)])

    def is_like(self, value: Tensor) -> bool:
        """Whether the last values were of that shape."""
        return self._buffer is not None and self._buffer.shape[1:] == value.shape

    def begin(self, value: Tensor, count: Tensor) -> None:
        """Begin anew with values of that shape, behind those of others; they are counted there."""
        if self._buffer is not None:
            self._before.append(self._buffer[: self.length].flatten())
        self._most = max(1, self._most)
        self._buffer = value.new_empty(max(256, self._most), *value.shape)
        self._next = count

    @property
    def held(self) -> tuple[Tensor, Tensor]:
        """Where the values are, [steps, ...] with room behind them, and [1] how many there are."""
        assert self._buffer is not None
        return self._buffer, self._next

    @property
    def length(self) -> int:
        """Steps that there are of the last shape; on a GPU this waits for the device."""
        return 0 if self._buffer is None else int(self._next)

    @property
    def last(self) -> Tensor:
        """The value of the last step, where it arose."""
        assert self._buffer is not None
        return self._buffer[self.length - 1]

    def tensor(self) -> Tensor:
        """[steps, ...] on the host; if the shape has changed on the way, with the batch, all numbers in a row."""
        if self._buffer is None:
            return torch.empty(0)
        held = self._buffer[: self.length]
        return torch.cat([*self._before, held.flatten()]).cpu() if self._before else held.cpu()


def append_together(values: list[tuple[Series, Tensor]], impl: str | None = None) -> None:
    """Add the value of one step to each of some series, to which no step is ever added otherwise."""
    if not all(series.is_like(value) for series, value in values):
        count = torch.zeros(1, dtype=torch.int64, device=values[0][1].device)
        for series, value in values:
            series.begin(value, count)
    held = [series.held for series, _ in values]
    record_step(held[0][1], tuple(buffer for buffer, _ in held), tuple(value for _, value in values), impl=impl)


class Count:
    """A number of tokens, summed where it arises."""

    def __init__(self) -> None:
        self._totals: Tensor | None = None
        self._entry = 0

    def stands_in(self, totals: Tensor, entry: int) -> None:
        """Learn where it is summed: an entry of the totals."""
        self._totals, self._entry = totals, entry

    def read(self) -> int:
        """The sum; on a GPU this waits for the device."""
        return 0 if self._totals is None else int(self._totals[self._entry])


class Histogram:
    """How often there was which size, counted where sizes arise; adding waits for nothing."""

    def __init__(self) -> None:
        self._numbers: Tensor | None = None
        self._ones: Tensor | None = None

    def add(self, sizes: Tensor, most: int) -> None:
        """Count sizes [...] from 1 to `most`; 0 counts for none."""
        if self._numbers is None:
            self._numbers = torch.zeros(most + 1, dtype=torch.int64, device=sizes.device)
        flat = sizes.flatten().long()
        if self._ones is None or self._ones.shape != flat.shape:
            self._ones = torch.ones_like(flat)
        self._numbers.scatter_add_(0, flat, self._ones)

    def read(self) -> dict[int, int]:
        """The number of each size that occurred, the least first."""
        numbers = [] if self._numbers is None else self._numbers.tolist()
        return {size: number for size, number in enumerate(numbers) if size and number}


class CodingError:
    """How far off the keys and values of a pool are, summed where they arise; adding waits for nothing."""

    def __init__(self) -> None:
        self._squares: Tensor | None = None

    def add(self, rows: Tensor, held: Tensor, key_dim: int, counts: Tensor) -> None:
        """Compare the first `counts[n]` tokens of each row [N, T, Dk + Dv] with what is held of them."""
        present = (torch.arange(rows.shape[1], device=rows.device) < counts[:, None])[..., None]
        exact = rows.float().where(present, 0)
        off = held.float().where(present, 0) - exact
        parts = [off[..., :key_dim], off[..., key_dim:], exact[..., :key_dim], exact[..., key_dim:]]
        squares = torch.stack([part.square().sum(dtype=torch.float64) for part in parts])
        self._squares = squares if self._squares is None else self._squares + squares

    def read(self) -> dict[str, float] | None:
        """Norm of what keys and values are off, by their own; None if nothing was compared."""
        if self._squares is None:
            return None
        off, whole = self._squares.cpu().sqrt().view(2, 2)
        return dict(zip(("keys", "values"), (off / whole).nan_to_num(0.0).tolist(), strict=True))


class Clock:
    """Seconds spent in each phase; on a GPU measured there by events, so that timing does not wait.

    Attributes:
        seconds: Of each phase, as far as it was read.
        in_graphs: Whether events are captured with a graph; they take time of their own in each replay.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.in_graphs = False
        self._whole = False
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._captured: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def time(self, phase: str, device: torch.device) -> Iterator[None]:
        """Add what runs inside to a phase."""
        if self._whole:
            yield
        elif device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            if not self.in_graphs:
                # What a graph replays takes the time that it takes as a whole.
                yield
                return
            begin, end = (torch.cuda.Event(enable_timing=True, external=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._captured.append((phase, begin, end))
        elif device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            try:
                yield
            finally:
                end.record()
                with _lock:
                    self._pending.append((phase, begin, end))
                    if len(self._pending) > 1024:
                        self._collect(wait=False)
        else:
            started = time.perf_counter()
            try:
                yield
            finally:
                with _lock:
                    self.seconds[phase] += time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """Seconds of each phase, all work included."""
        with _lock:
            self._collect(wait=True)
            return dict(self.seconds)

    @contextmanager
    def as_one(self, phase: str, device: torch.device) -> Iterator[None]:
        """Add what runs inside to one phase, whatever it is part of."""
        with self.time(phase, device):
            whole, self._whole = self._whole, True
            try:
                yield
            finally:
                self._whole = whole

    def replayed(self) -> None:
        """Add what the last replay of a graph took, which is done."""
        for phase, begin, end in self._captured:
            self.seconds[phase] += begin.elapsed_time(end) / 1000

    def _collect(self, wait: bool) -> None:
        remaining = []
        for phase, begin, end in self._pending:
            if wait:
                end.synchronize()
            if end.query():
                self.seconds[phase] += begin.elapsed_time(end) / 1000
            else:
                remaining.append((phase, begin, end))
        self._pending = remaining


@dataclass
class LayerTelemetry:
    """What one layer did.

    Attributes:
        fired: [steps, B, Hkv] where a decode step retrieved before it attended.
        ahead: [steps, B, Hkv] where it selected for the next one, if the trigger is late.
        similarity: [steps, B] cosine of neighbouring queries, if the trigger looks at it.
        selected: Tokens chosen by all retrievals, over all KV heads.
        missed: Those of them that were not resident.
        segments: Number of closed segments of each size.
        coding_error: How far off a pool of few bits is.
        clock: Seconds spent.
    """

    fired: Series = field(default_factory=Series)
    ahead: Series = field(default_factory=Series)
    similarity: Series = field(default_factory=Series)
    selected: Count = field(default_factory=Count)
    missed: Count = field(default_factory=Count)
    segments: Histogram = field(default_factory=Histogram)
    coding_error: CodingError = field(default_factory=CodingError)
    clock: Clock = field(default_factory=Clock)

    def reserve(self, num_steps: int) -> None:
        """Make room for so many steps."""
        for series in (self.fired, self.ahead, self.similarity):
            series.reserve(num_steps)

    def record(
        self, fired: Tensor, ahead: Tensor | None = None, similarity: Tensor | None = None, impl: str | None = None
    ) -> None:
        """Add a step to the series; what is None is so at all steps."""
        values = ((self.fired, fired), (self.ahead, ahead), (self.similarity, similarity))
        append_together([(series, value) for series, value in values if value is not None], impl)


@dataclass(frozen=True)
class Tier:
    """What lies in one place: tokens of KV heads (a token of a layer counts once for each KV head) and bytes."""

    tokens: int
    bytes: int

    def __add__(self, other: "Tier") -> "Tier":
        return Tier(self.tokens + other.tokens, self.bytes + other.bytes)


@dataclass(frozen=True)
class Tiers:
    """What one layer holds.

    Attributes:
        resident: Tokens on the device, and the bytes allocated for them.
        index: Units summarised on the device, and the bytes of the index.
        host: Tokens in the host pool, and its bytes.
        seen: All tokens taken in, and the bytes that full attention would hold of them on the device.
    """

    resident: Tier
    index: Tier
    host: Tier
    seen: Tier

    def __add__(self, other: "Tiers") -> "Tiers":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Tiers(*(mine + theirs for mine, theirs in pairs))


@dataclass(frozen=True)
class LayerReport:
    """The figures of one layer, all plain numbers.

    Attributes:
        layer: Index of the layer in the model.
        kind: Name of the layer's class.
        tiers: What it holds.
        steps: Decode steps.
        retrieval_rate: Share of (step, sequence, KV head) that retrieved before attending.
        ahead_rate: Share that selected for the next step instead, None if the trigger is not late.
        hit_rate: Share of the selected tokens that were resident already, None without a selection.
        fetched_bytes: Bytes copied host to device.
        offloaded_bytes: Bytes copied device to host.
        similarity: Mean, minimum and quartiles of the cosine of neighbouring queries, None if not looked at.
        segment_sizes: Closed segments of each size.
        coding_error: Norm of what the keys and the values that were offloaded are off in the pool, by their own; None
            if they are kept as they are.
        seconds: Time of each phase.
    """

    layer: int
    kind: str
    tiers: Tiers
    steps: int
    retrieval_rate: float
    ahead_rate: float | None
    hit_rate: float | None
    fetched_bytes: int
    offloaded_bytes: int
    similarity: dict[str, float] | None
    segment_sizes: dict[int, int]
    coding_error: dict[str, float] | None
    seconds: dict[str, float]


def summarise(series: Series) -> dict[str, float] | None:
    """Mean, minimum and quartiles of a series, NaN left out; None if nothing is left."""
    values = series.tensor().float().flatten()
    values = values[~values.isnan()]
    if len(values) == 0:
        return None
    quartiles = torch.quantile(values[-(2**24) :], torch.tensor([0.25, 0.5, 0.75])).tolist()
    figures = [float(values.mean()), float(values.min()), *quartiles]
    return dict(zip(("mean", "min", "q25", "median", "q75"), figures, strict=True))


@dataclass(frozen=True)
class Report:
    """What a cache did: the figures of each managed layer and their sums.

    Attributes:
        method: Name of the method.
        settings: Its settings.
        prompt_tokens: Tokens taken in as prompts, padding not counted, over the batch.
        output_tokens: Tokens taken in one by one, over the batch.
        unmanaged_bytes: Bytes held by the model's other cache layers (sliding windows and the like).
        layers: Figures of each managed layer.
    """

    method: str
    settings: dict[str, Any]
    prompt_tokens: int
    output_tokens: int
    unmanaged_bytes: int
    layers: list[LayerReport]

    @property
    def device_bytes(self) -> int:
        """Bytes on the device: resident sets and index of all managed layers."""
        return sum(layer.tiers.resident.bytes + layer.tiers.index.bytes for layer in self.layers)

    @property
    def host_bytes(self) -> int:
        """Bytes in the host pools."""
        return sum(layer.tiers.host.bytes for layer in self.layers)

    @property
    def full_bytes(self) -> int:
        """Bytes of keys and values that full attention would hold on the device."""
        return sum(layer.tiers.seen.bytes for layer in self.layers)

    @property
    def device_share(self) -> float:
        """Device bytes as a share of full attention's."""
        return self.device_bytes / self.full_bytes if self.full_bytes else 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each phase, summed over the layers."""
        return {phase: sum(layer.seconds[phase] for layer in self.layers) for phase in PHASES}

    @property
    def ahead_rate(self) -> float | None:
        """Mean over the layers whose trigger is late of the share that selected for the next step; None without any."""
        rates = [layer.ahead_rate for layer in self.layers if layer.ahead_rate is not None]
        return sum(rates) / len(rates) if rates else None

    @property
    def coding_error(self) -> dict[str, float] | None:
        """Mean over the layers whose pool has few bits; None if there is none."""
        errors = [layer.coding_error for layer in self.layers if layer.coding_error is not None]
        return {part: sum(error[part] for error in errors) / len(errors) for part in errors[0]} if errors else None

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain data."""
        sums = {
            name: getattr(self, name)
            for name in ("device_bytes", "host_bytes", "full_bytes", "device_share", "seconds")
        }
        sums["fetched_bytes"] = sum(layer.fetched_bytes for layer in self.layers)
        sums["offloaded_bytes"] = sum(layer.offloaded_bytes for layer in self.layers)
        sums["retrievals_per_step"], sums["ahead_rate"] = self._mean_rate(), self.ahead_rate
        if self.coding_error is not None:
            sums["coding_error"] = self.coding_error
        return {**{k: v for k, v in asdict(self).items() if k != "layers"}, **sums, "layers": asdict(self)["layers"]}

    def to_json(self, indent: int | None = None) -> str:
        """All figures as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        lines = [
            f"{self.method}({settings})",
            f"  tokens      {self.prompt_tokens} prompt + {self.output_tokens} output",
        ]
        resident = self._sum("resident") + self._sum("index")
        lines.append(
            f"  device      {format_bytes(resident.bytes)}: {self._sum('resident').tokens} tokens of KV heads, "
            f"{self._sum('index').tokens} units ({format_bytes(self._sum('index').bytes)}); "
            f"{self.device_share:.1%} of full attention's {format_bytes(self.full_bytes)}"
        )
        lines.append(f"  host        {format_bytes(self.host_bytes)}: {self._sum('host').tokens} tokens of KV heads")
        if self.unmanaged_bytes:
            lines.append(f"  unmanaged   {format_bytes(self.unmanaged_bytes)} in the model's sliding or linear layers")
        fetched, offloaded = (
            sum(getattr(layer, f"{way}ed_bytes") for layer in self.layers) for way in ("fetch", "offload")
        )
        per_token = (
            f" ({format_bytes(fetched / self.output_tokens)} for each output token)" if self.output_tokens else ""
        )
        lines.append(f"  moved       {format_bytes(fetched)} fetched{per_token}, {format_bytes(offloaded)} offloaded")
        if self.coding_error is not None:
            parts = ", ".join(f"{part} {error:.2%}" for part, error in self.coding_error.items())
            lines.append(f"  coding      off by {parts}, mean of the layers")
        retrieving = [layer for layer in self.layers if layer.hit_rate is not None]
        if retrieving:
            rates = [layer.retrieval_rate for layer in retrieving]
            hits = [layer.hit_rate for layer in retrieving if layer.hit_rate is not None]
            ahead = "" if self.ahead_rate is None else f"{self.ahead_rate:.2f} for the next step, "
            lines.append(
                f"  retrievals  {self._mean_rate():.2f} per step and layer ({min(rates):.2f} to {max(rates):.2f}), "
                f"{ahead}hit rate {sum(hits) / len(hits):.2f}"
            )
            lines.append(f"  segments    {self._segments()}")
        seen = [layer.similarity for layer in self.layers if layer.similarity]
        if seen:
            medians = [figures["median"] for figures in seen]
            lines.append(
                f"  cosine      median of neighbouring queries {min(medians):.2f} to {max(medians):.2f} over the layers"
            )
        lines.append("  seconds     " + ", ".join(f"{phase} {value:.2f}" for phase, value in self.seconds.items()))
        return "\n".join(lines)

    def _mean_rate(self) -> float:
        rates = [layer.retrieval_rate for layer in self.layers if layer.hit_rate is not None]
        return sum(rates) / len(rates) if rates else 0.0

    def _segments(self) -> str:
        total = sum(number for layer in self.layers for number in layer.segment_sizes.values())
        tokens = sum(size * number for layer in self.layers for size, number in layer.segment_sizes.items())
        return f"{total} closed, {tokens / total:.1f} tokens each" if total else "none closed"

    def _sum(self, tier: str) -> Tier:
        return sum((getattr(layer.tiers, tier) for layer in self.layers), Tier(0, 0))


def format_bytes(num_bytes: float) -> str:
    """A number of bytes as people read it: 1536 -> 1.5 KiB."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"
