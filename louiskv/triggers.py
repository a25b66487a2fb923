"""When a new selection is made."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class TriggerState(ABC):
    """What a trigger remembers of one layer.

    Attributes:
        similarity: [B] cosine seen at the last step, NaN at the first; None if the trigger does not look at it.
    """

    similarity: Tensor | None = None

    @abstractmethod
    def fire(self, query: Tensor, num_kv_heads: int) -> Tensor:
        """Look at the query of a decode step.

        Args:
            query: [B, Hq, D], after RoPE.
            num_kv_heads: KV heads of the layer.

        Returns:
            [B, Hkv] True where the KV head must retrieve.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget the past, so that the next step fires."""

    @abstractmethod
    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""


class Trigger(ABC):
    """Settings of a trigger."""

    @abstractmethod
    def start(self) -> TriggerState:
        """Begin to watch one layer."""


@dataclass(frozen=True)
class EveryStep(Trigger):
    """Retrieve at every decode step."""

    def start(self) -> "EveryStepState":
        """Begin to watch one layer."""
        return EveryStepState()


class EveryStepState(TriggerState):
    """Remembers nothing."""

    def fire(self, query: Tensor, num_kv_heads: int) -> Tensor:
        """Fire everywhere."""
        return torch.ones(query.shape[0], num_kv_heads, dtype=torch.bool, device=query.device)

    def reset(self) -> None:
        """Nothing to forget."""

    def select_batch(self, index: Tensor) -> None:
        """Nothing to copy."""


@dataclass(frozen=True)
class Cosine(Trigger):
    """Retrieve where the query has turned away from the one before: the semantic boundary of LouisKV.

    `r = mean over query heads of cos(q_t, q_{t-1})` for each sequence; fires when `r < tau` (section 4.1 of arXiv
    2510.11292), and at the first decode step.
    """

    tau: float

    def start(self) -> "CosineState":
        """Begin to watch one layer."""
        return CosineState(self.tau)


class CosineState(TriggerState):
    """The direction of the last query of each head."""

    def __init__(self, tau: float) -> None:
        self.tau = tau
        self.previous: Tensor | None = None

    def fire(self, query: Tensor, num_kv_heads: int) -> Tensor:
        """Fire for all KV heads of the sequences whose query has turned."""
        direction = torch.nn.functional.normalize(query.float(), dim=-1)
        previous = torch.full_like(direction, torch.nan) if self.previous is None else self.previous
        self.previous = direction
        self.similarity = (direction * previous).sum(-1).mean(1)
        # Not `similarity < tau`: without a previous query it is NaN, and must fire.
        return ~(self.similarity >= self.tau)[:, None].expand(-1, num_kv_heads)

    def reset(self) -> None:
        """Forget the last query."""
        self.previous = None

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        if self.previous is not None:
            self.previous = self.previous.index_select(0, index)
