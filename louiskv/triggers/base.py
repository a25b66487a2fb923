"""The contract of triggers: when a KV head selects anew."""

from abc import ABC, abstractmethod
from typing import Protocol, Self

from torch import Tensor

from louiskv.errors import SettingsError, check_range
from louiskv.shard import WHOLE, Shard


class Estimate(Protocol):
    """What the index says to the query of a step; computed only if asked for."""

    def coverage(self) -> Tensor:
        """[B x Hkv] share of the attention to all units that the resident tokens get."""

    def best_coverage(self) -> Tensor:
        """[B x Hkv] what as many tokens of the best units would get."""


class TriggerState(ABC):
    """What a trigger remembers of one layer.

    Attributes:
        similarity: [B] cosine to the query before seen at the last step, NaN at the first; None if the trigger does not
            look at it.
        ahead: [B, Hkv] where the last step must select for the next one; None unless the trigger is late.
        shard: Where the layer's other heads are, if this process holds a part of them.
    """

    similarity: Tensor | None = None
    ahead: Tensor | None = None
    shard: Shard = WHOLE

    def join(self, shard: Shard) -> None:
        """Learn where the other heads of the layer are; a trigger that looks across KV heads must know."""
        self.shard = shard

    @abstractmethod
    def fire(self, query: Tensor, num_kv_heads: int, estimate: Estimate | None = None) -> Tensor:
        """Look at the query of a decode step.

        Args:
            query: [B, Hq, D], after RoPE.
            num_kv_heads: KV heads of the layer.
            estimate: What the index says, for triggers that ask it; None while there are no units.

        Returns:
            [B, Hkv] True where the KV head must retrieve.
        """

    @abstractmethod
    def chosen(self, where: Tensor) -> None:
        """Learn that KV heads [B, Hkv] select anew with the query of the last step, whoever wanted it."""

    @abstractmethod
    def retrieved(self, where: Tensor, estimate: Estimate) -> None:
        """Learn what the index says when KV heads [B, Hkv] have what they selected."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the past, so that the next step fires."""

    @abstractmethod
    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""

    @abstractmethod
    def put(self, row: int, other: Self | None, other_row: int, batch_size: int) -> None:
        """Remember of a sequence what another state of the same kind does of one of its own; nothing if it is None."""


def put_row(
    mine: Tensor | None, row: int, others: Tensor | None, other_row: int, batch_size: int, fresh: float
) -> Tensor | None:
    """What [B, ...] remembers when sequence `row` is another's, `fresh` standing for nothing; None for nothing at all.

    It is a tensor of its own: what a trigger remembers may be what the model computed.
    """
    if mine is None and others is None:
        return None
    if mine is None:
        assert others is not None
        mine = others.new_full((batch_size, *others.shape[1:]), fresh)
    else:
        mine = mine.clone()
    mine[row] = fresh if others is None else others[other_row]
    return mine


class Trigger(ABC):
    """Settings of a trigger."""

    @property
    def gap(self) -> int | None:
        """Steps from one firing to the next at the most; None if it may never fire again."""
        return None

    @property
    def late(self) -> bool:
        """Whether a step may select for the next one, while those that fire select before they attend."""
        return False

    def at_layer(self, layer_index: int) -> "Trigger":
        """The trigger as it is in the model's layer `layer_index`."""
        return self

    @abstractmethod
    def start(self, impl: str | None = None) -> TriggerState:
        """Begin to watch one layer, with this implementation of the operations."""


def check_layers(name: str, value: float | tuple[float, ...], least: float, most: float) -> None:
    """Check a setting that may have one number for each layer."""
    for each in value if isinstance(value, tuple) else (value,):
        check_range(name, each, least, most)


def of_layer(name: str, value: float | tuple[float, ...], layer_index: int) -> float:
    """The number of that layer."""
    if not isinstance(value, tuple):
        return value
    if layer_index >= len(value):
        raise SettingsError(f"{name} has {len(value)} numbers, but the model has more layers: give one for each.")
    return value[layer_index]


def the_one(name: str, value: float | tuple[float, ...]) -> float:
    """The number, when the layer is known."""
    if isinstance(value, tuple):
        raise SettingsError(f"{name} has a number for each layer: take the trigger of one with `at_layer`.")
    return value
