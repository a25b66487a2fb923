"""When a new selection is made."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from louiskv.errors import SettingsError, check_count, check_part, check_range


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

    @property
    def gap(self) -> int | None:
        """Steps from one firing to the next at the most; None if it may never fire again."""
        return None

    @property
    def late(self) -> bool:
        """Whether each step selects for the next one, and those that fire select again before they attend."""
        return False

    def at_layer(self, layer_index: int) -> "Trigger":
        """The trigger as it is in the model's layer `layer_index`."""
        return self

    @abstractmethod
    def start(self) -> TriggerState:
        """Begin to watch one layer."""


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

    def start(self) -> "EveryState":
        """Begin to watch one layer."""
        return EveryState(self.steps)


class EveryState(TriggerState):
    """The number of steps seen."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seen = 0

    def fire(self, query: Tensor, num_kv_heads: int) -> Tensor:
        """Fire everywhere or nowhere."""
        fires = self.seen % self.steps == 0
        self.seen += 1
        return torch.full((query.shape[0], num_kv_heads), fires, device=query.device)

    def reset(self) -> None:
        """Begin anew."""
        self.seen = 0

    def select_batch(self, index: Tensor) -> None:
        """Nothing to copy."""


@dataclass(frozen=True)
class Cosine(Trigger):
    """Retrieve where the query has turned away from the one before: the semantic boundary of LouisKV.

    `r = mean over query heads of cos(q_t, q_{t-1})` for each sequence; fires when `r < tau` (section 4.1 of arXiv
    2510.11292), and at the first decode step.

    Attributes:
        tau: The least cosine that counts as the same segment; a tuple has one for each layer of the model.
        per_head: Take the mean over each query group, and fire for its KV head alone.
    """

    tau: float | tuple[float, ...] = 0.9
    per_head: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        for each in self.tau if isinstance(self.tau, tuple) else (self.tau,):
            check_range("tau", each, -1, 1)

    def at_layer(self, layer_index: int) -> "Cosine":
        """With the tau of that layer."""
        if not isinstance(self.tau, tuple):
            return self
        if layer_index >= len(self.tau):
            raise SettingsError(f"tau has {len(self.tau)} numbers, but the model has more layers: give one for each.")
        return Cosine(self.tau[layer_index], self.per_head)

    def start(self) -> "CosineState":
        """Begin to watch one layer.

        Raises:
            SettingsError: There is a tau for each layer, and it is not known which this is.
        """
        if isinstance(self.tau, tuple):
            raise SettingsError("tau has a number for each layer: take the trigger of one with `at_layer`.")
        return CosineState(self.tau, self.per_head)


class CosineState(TriggerState):
    """The direction of the last query of each head."""

    def __init__(self, tau: float, per_head: bool) -> None:
        self.tau, self.per_head = tau, per_head
        self.previous: Tensor | None = None

    def fire(self, query: Tensor, num_kv_heads: int) -> Tensor:
        """Fire for the sequences, or the KV heads of them, whose query has turned."""
        direction = torch.nn.functional.normalize(query.float(), dim=-1)
        previous = torch.full_like(direction, torch.nan) if self.previous is None else self.previous
        self.previous = direction
        cosine = (direction * previous).sum(-1)
        self.similarity = cosine.mean(1)
        groups = cosine.unflatten(1, (num_kv_heads, -1)).mean(2) if self.per_head else self.similarity[:, None]
        # Not `groups < tau`: without a previous query it is NaN, and must fire.
        return ~(groups >= self.tau).expand(-1, num_kv_heads)

    def reset(self) -> None:
        """Forget the last query."""
        self.previous = None

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        if self.previous is not None:
            self.previous = self.previous.index_select(0, index)


@dataclass(frozen=True)
class Late(Trigger):
    """Attend to what the step before selected, and select for the next in the background (FreeKV, arXiv 2505.13109).

    Where `correct` fires, the KV head selects again with its own query before it attends (section 3.2 there). The first
    decode step must fire, since nothing was selected before it.

    Attributes:
        correct: Which KV heads may not use a late selection.
    """

    correct: Trigger = field(default_factory=lambda: Cosine(0.9, per_head=True))

    def __post_init__(self) -> None:
        """Check the settings."""
        check_part("correct", self.correct, Trigger)
        if self.correct.late:
            raise SettingsError(f"correct={self.correct} is late itself: give a trigger that fires at its own step.")

    @property
    def gap(self) -> int | None:
        """What is selected at one step is used at the next."""
        return 2

    def at_layer(self, layer_index: int) -> "Late":
        """With what corrects it as it is in that layer."""
        return Late(self.correct.at_layer(layer_index))

    @property
    def late(self) -> bool:
        """Yes."""
        return True

    def start(self) -> TriggerState:
        """Begin to watch one layer."""
        return self.correct.start()
