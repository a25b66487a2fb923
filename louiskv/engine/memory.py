"""Whether a request fits into memory beside those that are answered."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from louiskv.errors import DeviceMemoryError, HostMemoryError
from louiskv.methods.base import Method
from louiskv.plan import Plan, plan
from louiskv.store.pool import available_host_memory
from louiskv.telemetry import format_bytes

# Lengths are rounded up to this, so that a plan is made for few of them.
GRAIN = 256


@dataclass(frozen=True)
class Need:
    """Bytes on the host and on the device."""

    host: int
    device: int

    def __add__(self, other: "Need") -> "Need":
        return Need(self.host + other.host, self.device + other.device)


class Memory:
    """The memory that there is, and what sequences need of it: each row as much as the longest one.

    Attributes:
        host: Bytes of host memory for keys and values.
        device: Bytes of device memory for them; on a CPU they lie in host memory as well.
    """

    def __init__(self, config: Any, method: Method, model_device: torch.device, dtype: torch.dtype) -> None:
        self.host = self.device = 0
        self._shared = model_device.type == "cpu"
        self._plan = cache(lambda length: plan(config, method, length, dtype=dtype))

    @classmethod
    def of(cls, model: PreTrainedModel, method: Method, host: int | None, device: int | None) -> Self:
        """For the sequences of a model, with so many bytes; None for what is free, of which a tenth is left."""
        memory = cls(model.config.get_text_config(decoder=True), method, model.device, model.dtype)
        host = available_host_memory() * 9 // 10 if host is None else host
        if device is None:
            on_gpu = model.device.type == "cuda"
            device = torch.cuda.mem_get_info(model.device)[0] * 9 // 10 if on_gpu else host
        memory.set_limits(host, device)
        return memory

    def set_limits(self, host: int, device: int) -> None:
        """Learn how much there is."""
        self.host, self.device = host, device

    def needed(self, num_rows: int, longest: int, prompts: list[int]) -> Need:
        """What so many rows need, and beside them prompts of these lengths that are being taken in."""
        total = self._of(longest, num_rows) if num_rows else Need(0, 0)
        for length in prompts:
            total = total + self._of(length, 1)
        if prompts:
            total = total + Need(0, self._for(max(prompts)).prefill_bytes)
        return Need(total.host + total.device, total.device) if self._shared else total

    def of_sequence(self, length: int) -> int:
        """Bytes of a sequence, wherever they are."""
        need = self._of(length, 1)
        return need.host + need.device

    def fits(self, need: Need, beside: tuple[int, int]) -> bool:
        """Whether there is as much beside what takes so many bytes of the host and of the device."""
        host, device = beside
        taken = Need(host + device, device) if self._shared else Need(host, device)
        total = need + taken
        return total.host <= self.host and total.device <= self.device

    def check(self, length: int) -> None:
        """Raise `HostMemoryError` or `DeviceMemoryError` if a sequence of this length can never fit."""
        need = self.needed(1, length, [length])
        for name, error, needed, limit in (
            ("host", HostMemoryError, need.host, self.host),
            ("device", DeviceMemoryError, need.device, self.device),
        ):
            if needed > limit:
                raise error(
                    f"A sequence of {length} tokens needs {format_bytes(needed)} of {name} memory, but the engine has "
                    f"{format_bytes(limit)} ({name}_memory). Shorten the prompt, lower max_tokens, or raise the limit."
                )

    def _for(self, length: int) -> Plan:
        return self._plan(-(-length // GRAIN) * GRAIN)

    def _of(self, length: int, num_rows: int) -> Need:
        one = self._for(length)
        return Need(num_rows * one.host_bytes, num_rows * one.device_bytes)
