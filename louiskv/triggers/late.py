"""For the next step, in the background."""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from louiskv.errors import SettingsError, check_part
from louiskv.shard import Shard
from louiskv.triggers.base import Estimate, Trigger, TriggerState
from louiskv.triggers.cosine import Cosine
from louiskv.triggers.every import Every


@dataclass(frozen=True)
class Late(Trigger):
    """Attend to what is there, and fetch for the next step in the background (FreeKV, arXiv 2505.13109).

    Where `when` fires, the KV head selects for the next step. Where `correct` fires, it selects with its own query
    before it attends (section 3.2 there); the first decode step must, since nothing was selected before it.

    Attributes:
        correct: Which KV heads may not attend to what is there.
        when: Which select for the next step; FreeKV's do at every step.
    """

    correct: Trigger = field(default_factory=lambda: Cosine(0.9, per_head=True))
    when: Trigger = field(default_factory=Every)

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("correct", "when"):
            trigger = getattr(self, name)
            check_part(name, trigger, Trigger)
            if trigger.late:
                raise SettingsError(f"{name}={trigger} is late itself: give a trigger that fires at its own step.")

    @property
    def gap(self) -> int | None:
        """What is selected at one step is used from the next one on."""
        return None if self.when.gap is None else self.when.gap + 1

    def at_layer(self, layer_index: int) -> "Late":
        """With its triggers as they are in that layer."""
        return Late(self.correct.at_layer(layer_index), self.when.at_layer(layer_index))

    @property
    def late(self) -> bool:
        """Yes."""
        return True

    def start(self, impl: str | None = None) -> "LateState":
        """Begin to watch one layer."""
        return LateState(self.correct.start(impl), self.when.start(impl))


class LateState(TriggerState):
    """What both triggers remember."""

    def __init__(self, correct: TriggerState, when: TriggerState) -> None:
        self.correct, self.when = correct, when

    def join(self, shard: Shard) -> None:
        """Tell both."""
        self.correct.join(shard)
        self.when.join(shard)

    def fire(self, query: Tensor, num_kv_heads: int, estimate: Estimate | None = None) -> Tensor:
        """Fire where a correction is needed; where one is, nothing need be selected ahead."""
        fired = self.correct.fire(query, num_kv_heads, estimate)
        # True is more than False: where one fires, and not the other.
        when = self.when.fire(query, num_kv_heads, estimate)
        if self.ahead is None or self.ahead.shape != fired.shape:
            self.ahead = torch.empty(fired.shape, dtype=torch.bool, device=fired.device)
        torch.gt(when, fired, out=self.ahead)
        self.correct.chosen(self.ahead)
        self.when.chosen(fired)
        self.similarity = self.correct.similarity
        return fired

    def chosen(self, where: Tensor) -> None:
        """Tell both."""
        self.correct.chosen(where)
        self.when.chosen(where)

    def retrieved(self, where: Tensor, estimate: Estimate) -> None:
        """Tell both."""
        self.correct.retrieved(where, estimate)
        self.when.retrieved(where, estimate)

    def reset(self) -> None:
        """Forget the past."""
        self.correct.reset()
        self.when.reset()

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        self.correct.select_batch(index)
        self.when.select_batch(index)

    def put(self, row: int, other: Self | None, other_row: int, batch_size: int) -> None:
        """Tell both."""
        correct, when = (None, None) if other is None else (other.correct, other.when)
        self.correct.put(row, correct, other_row, batch_size)
        self.when.put(row, when, other_row, batch_size)
