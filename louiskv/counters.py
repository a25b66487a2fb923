"""What is counted and timed where it arises, so that counting waits for nothing."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
        # Steps that have begun, and those that there is to be room for.
        self._begun = self._most = 0

    def reserve(self, num_steps: int) -> bool:
        """Make room for so many more steps; whether the series has moved for that."""
        return self._make_room(self._begun + num_steps)

    def begin_step(self) -> bool:
        """Make room for the step that begins; whether the series has moved for that."""
        self._begun += 1
        return self._make_room(self._begun)

    def _make_room(self, most: int) -> bool:
        self._most = max(self._most, most)
        if self._buffer is None or self._most <= len(self._buffer):
            return False
        more = self._buffer.new_empty(max(self._most - len(self._buffer), len(self._buffer)), *self._buffer.shape[1:])
        self._buffer = torch.cat([self._buffer, more])
        return True

    def append(self, value: Tensor) -> None:
        """Add the value of one step, for which room was reserved."""
        self.append_beside(value, [])

    def append_beside(self, value: Tensor, others: "list[tuple[Series, Tensor]]", impl: str | None = None) -> None:
        """Add the value of one step, and to other series theirs; to none of them is added otherwise."""
        values = [(self, value), *others]
        if not all(series._is_like(each) for series, each in values):
            count = torch.zeros(1, dtype=torch.int64, device=value.device)
            for series, each in values:
                series._begin_anew(each, count)
        buffers = tuple(series._buffer for series, _ in values if series._buffer is not None)
        record_step(self._next, buffers, tuple(each for _, each in values), impl=impl)

    def _is_like(self, value: Tensor) -> bool:
        return self._buffer is not None and self._buffer.shape[1:] == value.shape

    def _begin_anew(self, value: Tensor, count: Tensor) -> None:
        """Go on with values of that shape, which are counted there."""
        if self._buffer is not None:
            self._before.append(self._buffer[: self.length].flatten())
        self._most = max(1, self._most)
        self._buffer = value.new_empty(max(256, self._most), *value.shape)
        self._next = count

    @property
    def length(self) -> int:
        """Steps that there are of the last shape; on a GPU this waits for the device."""
        return 0 if self._buffer is None else int(self._next)

    @property
    def began(self) -> bool:
        """Whether there was a step."""
        return self._buffer is not None

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

    def mean(self) -> float | None:
        """Over all steps; None without any."""
        values = self.tensor().float()
        return float(values.mean()) if values.numel() else None

    def quartiles(self) -> dict[str, float] | None:
        """Mean, minimum and quartiles, NaN left out; None if nothing is left."""
        values = self.tensor().float().flatten()
        values = values[~values.isnan()]
        if len(values) == 0:
            return None
        quartiles = torch.quantile(values[-(2**24) :], torch.tensor([0.25, 0.5, 0.75])).tolist()
        figures = [float(values.mean()), float(values.min()), *quartiles]
        return dict(zip(("mean", "min", "q25", "median", "q75"), figures, strict=True))


class Tally(Series):
    """Of a series that may go on for ever only the last value and the mean, over the rows that hold a sequence.

    Attributes:
        rows: [B] which they are, kept up to date by who owns it.
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows
        self._value: Tensor | None = None
        self._sum = torch.zeros((), dtype=torch.float64, device=rows.device)
        self._number = torch.zeros((), dtype=torch.int64, device=rows.device)

    def _make_room(self, most: int) -> bool:
        return False

    def append(self, value: Tensor) -> None:
        """Add the value [B, ...] of one step."""
        # Of memory of its own, which a captured step can write to: a value may be one number for many entries.
        self._value = value.clone(memory_format=torch.contiguous_format)
        counted = self.rows.view(-1, *[1] * (value.dim() - 1)).expand_as(value) & (value == value)
        self._sum += value.where(counted, 0).sum(dtype=torch.float64)
        self._number += counted.sum()

    def append_beside(self, value: Tensor, others: list[tuple[Series, Tensor]], impl: str | None = None) -> None:
        """Add the value of one step, and to other series theirs."""
        self.append(value)
        for series, each in others:
            series.append(each)

    def take_over(self, other: Series) -> None:
        """Count also what another has counted."""
        if isinstance(other, Tally):
            self._sum += other._sum
            self._number += other._number
        elif (mean := other.mean()) is not None:
            number = other.tensor().numel()
            self._sum += mean * number
            self._number += number

    @property
    def began(self) -> bool:
        """Whether there was a step."""
        return self._value is not None

    @property
    def last(self) -> Tensor:
        """The value [B, ...] of the last step."""
        assert self._value is not None
        return self._value

    def mean(self) -> float | None:
        """Over all steps; None without any."""
        return float(self._sum / self._number) if int(self._number) else None

    def quartiles(self) -> None:
        """They would need every value."""


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

    def take_over(self, other: "Histogram") -> None:
        """Count also what another has counted."""
        if self._numbers is None:
            self._numbers = None if other._numbers is None else other._numbers.clone()
        elif other._numbers is not None:
            self._numbers += other._numbers

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

    def take_over(self, other: "CodingError") -> None:
        """Sum up also what another has summed up."""
        if other._squares is not None:
            self._squares = other._squares if self._squares is None else self._squares + other._squares

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

    def take_over(self, other: "Clock") -> None:
        """Count also the time of another, which begins anew."""
        with _lock:
            for phase, seconds in other.seconds.items():
                self.seconds[phase] += seconds
            self._pending += other._pending
            other.seconds, other._pending = dict.fromkeys(PHASES, 0.0), []

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

    def replayed(self, since: torch.cuda.Event) -> None:
        """Add what graphs took that were replayed since an event, each once at the most, and are done."""
        for phase, begin, end in self._captured:
            if since.elapsed_time(begin) >= 0:
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
