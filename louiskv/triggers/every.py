"""At fixed steps."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from louiskv.errors import check_count
from louiskv.triggers.base import Estimate, Trigger, TriggerState, put_row


@dataclass(frozen=True)
class Every(Trigger):
    """Retrieve at the first decode step and at every `steps`-th from there."""

    steps: int = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("steps", self.steps, 1)

    @property
    def gap(self) -> int | None:
        """The stride."""
        return self.steps

    def start(self, impl: str | None = None) -> "EveryState":
        """Begin to watch one layer."""
        return EveryState(self.steps)


class EveryState(TriggerState):
    """[B, 1] the number of steps that each sequence has seen, counted on the device; not if each step fires."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seen: Tensor | None = None
        self._always: Tensor | None = None

    def fire(self, query: Tensor, num_kv_heads: int, estimate: Estimate | None = None) -> Tensor:
        """Fire for all KV heads of a sequence or for none."""
        shape = (len(query), num_kv_heads)
        if self.steps == 1:
            if self._always is None or self._always.shape != shape:
                self._always = torch.ones(shape, dtype=torch.bool, device=query.device)
            return self._always
        if self.seen is None:
            self.seen = torch.zeros(len(query), 1, dtype=torch.int64, device=query.device)
        fires = (self.seen % self.steps == 0).expand(shape)
        self.seen += 1
        return fires

    def chosen(self, where: Tensor) -> None:
        """The stride goes on."""

    def retrieved(self, where: Tensor, estimate: Estimate) -> None:
        """It asks no index."""

    def reset(self) -> None:
        """Begin anew."""
        self.seen = None

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        if self.seen is not None:
            self.seen = self.seen.index_select(0, index)

    def put(self, row: int, other: Self | None, other_row: int, batch_size: int) -> None:
        """Its steps."""
        self.seen = put_row(self.seen, row, None if other is None else other.seen, other_row, batch_size, 0)
