"""Times of short calls, in turns: how long one call takes, whatever must be repeated to tell."""

import os
import time
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Literal

import torch

# One sample is about so long, so that neither the clock nor the loop is what is measured.
SAMPLE_SECONDS = 0.004
MAX_CALLS = 20_000
# Calls before the first that counts: they compile, tune and allocate.
WARM_UP = 2
# Where Linux counts what its processors do.
STATISTICS = Path("/proc/stat")

How = Literal["clock", "graph", "stream"]


class Timed:
    """Calls of one implementation, each on the next of several copies of its inputs.

    On a GPU they are a CUDA graph of all copies, in which a call takes what its kernels take and the short gaps between
    them; or, where it cannot be captured, they come from Python through the stream, gaps between launches included.

    Attributes:
        seconds: Of one call, as each sample has it.
        how: "clock" on the CPU, "graph" or "stream" on a GPU.
    """

    def __init__(self, call: Callable[[int], object], num_copies: int, device: torch.device, graphed: bool) -> None:
        """Warm up and see how many calls make a sample; `call` takes the number of a copy."""
        self.seconds: list[float] = []
        self._call, self._num_copies, self._next, self._device = call, num_copies, 0, device
        for _ in range(WARM_UP):
            call(0)
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda" and graphed:
            self._graph = self._captured()
        self.how: How = "clock" if device.type != "cuda" else "stream" if self._graph is None else "graph"
        self._repeats = 1
        self._repeats = max(1, min(MAX_CALLS, ceil(SAMPLE_SECONDS / max(self._elapsed(), 1e-9))))

    def sample(self) -> None:
        """Take one time more."""
        self.seconds.append(self._elapsed() / self._calls)

    @property
    def sample_seconds(self) -> float:
        """How long a sample takes."""
        return self.seconds[-1] * self._calls if self.seconds else SAMPLE_SECONDS

    @property
    def _calls(self) -> int:
        return self._repeats * (1 if self._graph is None else self._num_copies)

    def _captured(self) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph):
            for copy in range(self._num_copies):
                self._call(copy)
        return graph

    def _elapsed(self) -> float:
        if self._device.type != "cuda":
            started = time.perf_counter()
            self._run()
            return time.perf_counter() - started
        with torch.cuda.device(self._device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            self._run()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    def _run(self) -> None:
        if self._graph is not None:
            for _ in range(self._repeats):
                self._graph.replay()
            return
        call, num_copies, copy = self._call, self._num_copies, self._next
        for _ in range(self._repeats):
            call(copy)
            copy = copy + 1 if copy + 1 < num_copies else 0
        self._next = copy


def take_turns(timed: Sequence[Timed], seconds: float, least: int) -> None:
    """Sample all in turns, for about so long and so often at the least; the order is reversed every other turn."""
    started, turn = time.perf_counter(), 0
    while turn < least or time.perf_counter() - started < seconds:
        for each in timed if turn % 2 == 0 else reversed(timed):
            each.sample()
        turn += 1


class Others:
    """How much of the processors others use from now on: where threads wait for each other, little is too much."""

    def __init__(self) -> None:
        self._wall, self._own, self._all = time.perf_counter(), time.process_time(), _busy_seconds()

    @property
    def share(self) -> float | None:
        """Of all processors, so far; None where the system does not tell."""
        busy = _busy_seconds()
        if busy is None or self._all is None:
            return None
        others = busy - self._all - (time.process_time() - self._own)
        return min(1.0, max(0.0, others / ((time.perf_counter() - self._wall) * (os.cpu_count() or 1))))


def _busy_seconds() -> float | None:
    """What all processors have worked since the start of the system."""
    try:
        user, nice, system, _idle, _waiting, *interrupts = map(int, STATISTICS.read_text().split("\n")[0].split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
