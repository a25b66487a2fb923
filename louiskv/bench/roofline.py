"""The roofline: what the machine can move and multiply, measured, and which of it holds an operation back."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from louiskv.bench.timing import Timed, take_turns
from louiskv.ops import OPS
from louiskv.ops.turning import query_cosines

# Buffers are so many times the last cache.
BEYOND = 8
# Where the size of the caches is not known.
CACHE = 32 * 2**20
# The factors of a matrix product grow until it takes so long.
PRODUCT_SECONDS = 0.02
PRODUCT_SIZES = (256, 8192)
CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

Limit = Literal["memory", "compute", "bus", "cache", "call", "small"]
# What takes no longer than so many calls is held back by the call.
CALLS = 3


@dataclass(frozen=True)
class Peaks:
    """What the machine can do at best.

    Attributes:
        read: Bytes a second that are read from memory.
        copy: Bytes a second that are read and written where memory is copied.
        matmul: Multiplications and additions a second of a matrix product in the dtype of the model; or in float32, to
            which an operation may turn, where that is faster.
        call: Seconds of a call that has nothing to do.
        cache: Bytes of the last cache.
        to_device: Bytes a second from pinned host memory to a GPU; None without one.
        to_host: The same, back.
    """

    read: float
    copy: float
    matmul: float
    call: float
    cache: int
    to_device: float | None = None
    to_host: float | None = None


@dataclass(frozen=True)
class Cost:
    """What an operation does at the least.

    Attributes:
        read: Bytes that it must read.
        written: Bytes that it must write.
        flops: Multiplications and additions of products.
        bus: "to_device" or "to_host" if what is written comes over the bus.
    """

    read: int
    written: int
    flops: int = 0
    bus: str | None = None

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.read + self.written

    def bound(self, peaks: Peaks, in_cache: bool, seconds: float) -> tuple[Limit, float | None]:
        """What holds it back if it takes so many seconds, and the share of them that the machine needs at the least.

        There is no such share of what lies in the cache, nor of what memory could do in less time than a call takes:
        that is held back by the call, or else it is small and its own steps are what takes the time.
        """
        # What writes much is compared with a copy, which no reading can match.
        bandwidth = peaks.copy if 2 * self.written >= self.read else peaks.read
        times: dict[Limit, float] = {"memory": self.bytes / bandwidth, "compute": self.flops / peaks.matmul}
        rate = {"to_device": peaks.to_device, "to_host": peaks.to_host}.get(self.bus or "")
        if rate is not None:
            times["bus"] = self.written / rate
        limit = max(times, key=lambda each: times[each])
        if times[limit] < peaks.call:
            return ("call" if seconds <= CALLS * peaks.call else "small"), None
        if limit == "memory" and in_cache:
            return "cache", None
        return limit, times[limit] / seconds


class Machine:
    """What the machine can do: memory in turns with what is compared with it, for it changes; the rest once.

    Attributes:
        cache: Bytes of the last cache.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, seconds: float) -> None:
        """Measure for about `seconds` each; of several times the best counts, as in STREAM."""
        self.cache, self._device = cache_size(device), device
        self._source = torch.ones(BEYOND * self.cache // 4, device=device)
        self._target = torch.empty_like(self._source)
        best = partial(_best, device=device, seconds=seconds)
        self._matmul = max(_matmul(device, each, best) for each in {dtype, torch.float32})
        one = torch.ones(1, 1, 1, device=device)
        names = [candidate.name for candidate in OPS["query_cosines"] if candidate.declines(one) is None]
        self._call = min(best(partial(query_cosines, one, one, impl=name), graphed=name != "torch") for name in names)
        self._bus: tuple[float, float] | None = self._over_the_bus(best) if device.type == "cuda" else None

    def memory(self) -> tuple[Timed, Timed]:
        """Timers of reading and of copying."""
        source, target, device = self._source, self._target, self._device
        read = Timed(lambda _: source.sum(), 1, device, graphed=False)
        return read, Timed(lambda _: target.copy_(source), 1, device, graphed=False)

    def peaks(self, read: Timed, copy: Timed) -> Peaks:
        """What it can do, memory as these timers have it: the median, as of what is compared with it."""
        in_read, in_copy = (self._source.nbytes / statistics.median(each.seconds) for each in (read, copy))
        to_device, to_host = self._bus or (None, None)
        return Peaks(in_read, 2 * in_copy, self._matmul, self._call, self.cache, to_device, to_host)

    def _over_the_bus(self, best: Callable[[Callable[[], Tensor]], float]) -> tuple[float, float]:
        source, target = self._source, self._target
        on_host = torch.ones(len(source), pin_memory=True)
        to_device = best(lambda: target.copy_(on_host, non_blocking=True))
        return source.nbytes / to_device, source.nbytes / best(lambda: on_host.copy_(source, non_blocking=True))


def _matmul(device: torch.device, dtype: torch.dtype, best: Callable[[Callable[[], Tensor]], float]) -> float:
    size, most = PRODUCT_SIZES
    while True:
        factor = torch.ones(size, size, dtype=dtype, device=device)
        time = best(partial(torch.matmul, factor, factor))
        if time > PRODUCT_SECONDS or size == most:
            return 2 * size**3 / time
        size *= 2


def _best(call: Callable[[], object], device: torch.device, seconds: float, graphed: bool = False) -> float:
    timed = Timed(lambda _: call(), 1, device, graphed)
    take_turns([timed], seconds, 3)
    return min(timed.seconds)


def cache_size(device: torch.device) -> int:
    """Bytes of the last cache before memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    units = {"K": 2**10, "M": 2**20}
    try:
        told = [path.read_text().strip() for path in CPU_CACHES.glob("index*/size")]
        return max(int(size[:-1]) * units[size[-1]] for size in told)
    except (OSError, ValueError, KeyError, IndexError):
        return CACHE
