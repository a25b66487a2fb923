"""What an eviction method puts together, and what its loop works on."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from louiskv.importance import Importance
from louiskv.merging import Merging


@dataclass(frozen=True)
class EvictionParts:
    """What an eviction method puts together; `Eviction` says what each is.

    Attributes:
        window: Newest tokens that stay while tokens come one by one.
        prompt_window: Newest tokens that stay when a prompt is taken in.
    """

    budget: int
    share: float
    num_sinks: int
    window: int
    prompt_window: int
    importance: Importance
    merging: Merging


class Candidates(NamedTuple):
    """Tokens among which a prompt's arrival makes one choose: those in slots, then those of the prompt.

    Attributes:
        rows: [N, C, Dk + Dv].
        positions: [N, C] ascending from the first token on, -1 where there is none.
        votes: [N, C] what is added to their logits, -inf where there is none.
        stats: [N, C, k].
        num_slots: How many of the C are slots.
        columns: [N, T] column of the padded prompt of each token behind them, None for all in turn.
        end: [N] tokens seen when all are in.
    """

    rows: Tensor
    positions: Tensor
    votes: Tensor
    stats: Tensor
    num_slots: int
    columns: Tensor | None
    end: Tensor
