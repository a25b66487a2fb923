"""Whether contestants fit into memory, all together or one by one; and what one really takes of a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from louiskv.bench.runner import Entry
from louiskv.errors import DeviceMemoryError, HostMemoryError
from louiskv.methods.full import Full
from louiskv.plan import plan
from louiskv.store.pool import available_host_memory
from louiskv.telemetry import format_bytes

# Share of the free memory that contestants may take.
USED = 0.9


@dataclass(frozen=True)
class Memory:
    """Bytes on the host and on the device; with a CPU everything is on the host."""

    host: int
    device: int

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.host + other.host, self.device + other.device)

    def fits(self, there: "Memory") -> bool:
        """Whether there is so much."""
        return self.host <= there.host and self.device <= there.device


def available(device: torch.device) -> Memory:
    """What contestants may take: not all that is free, for allocators leave gaps and the model works as well."""
    on_device = 0 if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    return Memory(int(USED * available_host_memory()), int(USED * on_device))


def needed(config: Any, entry: Entry, context: int, batch: int, device: torch.device, dtype: torch.dtype) -> Memory:
    """What a contestant will hold, and beside it the layer that is loaded or attended to."""
    method = Full() if entry.method is None else entry.method
    planned = plan(config, method, context, batch_size=batch, dtype=dtype)
    # A layer is made from the text, its keys joined with its values, and both put in order; sdpa repeats it for each
    # query head.
    passing = 2 * planned.prefill_on(device)
    on_device = planned.device_bytes + passing
    if device.type == "cpu":
        return Memory(planned.host_bytes + on_device, 0)
    return Memory(planned.host_bytes, on_device)


def fits_together(needs: list[tuple[Entry, Memory]], there: Memory, shape: str) -> bool:
    """Whether all contestants fit at once; if not, they are measured one by one.

    Args:
        needs: What each contestant needs.
        there: What is available.
        shape: Batch and context, for the error.

    Raises:
        HostMemoryError: One does not even fit alone.
        DeviceMemoryError: The same, on the device.
    """
    for entry, need in needs:
        if not need.fits(there):
            on_host = need.host > there.host
            kind = HostMemoryError if on_host else DeviceMemoryError
            place, size, room = ("host", need.host, there.host) if on_host else ("device", need.device, there.device)
            lacking = f"{format_bytes(size)} of {place} memory for {shape} tokens, but {format_bytes(room)} can be used"
            raise kind(
                f"{entry.name} needs {lacking}. Nothing was measured, and what was known is kept. Use a shorter "
                f"--context, a smaller --batch{_or_without(entry)} or --dtype bfloat16."
            )
    return sum((need for _, need in needs), Memory(0, 0)).fits(there)


def _or_without(entry: Entry) -> str:
    """How a contestant is left out; those of ladders belong together."""
    if entry.contestant is None:
        return ", --no-sdpa"
    return "" if entry.contestant.group else f", no --method {entry.name}"


class PeakMemory:
    """What one of several contestants takes of a GPU at the most: what it holds, and what it needs in passing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held = self._peak = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Count what is allocated inside as this contestant's."""
        if self.device.type != "cuda":
            yield
            return
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        yield
        self._peak = max(self._peak, self._held + torch.cuda.max_memory_allocated(self.device) - before)
        self._held += torch.cuda.memory_allocated(self.device) - before

    def restart(self) -> None:
        """Forget the peak so far."""
        self._peak = self._held

    @property
    def bytes(self) -> int | None:
        """The most at any time, None without a GPU."""
        return self._peak if self.device.type == "cuda" else None
