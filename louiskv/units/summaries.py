"""Summaries: what the index keeps of a unit, and which kind of score that allows."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from louiskv.errors import check_count
from louiskv.ops.quantize import pack_bits
from louiskv.ops.sketches import bundle_sketches, sketch_units
from louiskv.ops.units import summarise_units


class Built(NamedTuple):
    """What the index keeps of some units.

    Attributes:
        summaries: Tensors [N, ceil(U / stride), ...]; what stands for a unit without tokens is finite.
        details: [N, T, ...] what is kept of each token beside that, anything behind the last one; None for nothing.
    """

    summaries: tuple[Tensor, ...]
    details: Tensor | None = None


class Summary(ABC):
    """Settings of a kind of summary.

    Attributes:
        kind: How `unit_logits` reads it: "dot", "sketch", "bound" or "one_bit".
    """

    kind: ClassVar[str]

    @property
    def strides(self) -> tuple[int, ...]:
        """For each tensor of a summary, how many consecutive units share one of its rows."""
        return (1,)

    @abstractmethod
    def build(self, keys: Tensor, values: Tensor, sizes: Tensor, impl: str | None = None) -> Built:
        """Summarise units.

        Args:
            keys: [N, T, D], tokens in the order of their units.
            values: [N, T, Dv].
            sizes: [N, U], rows summing to at most T, zeros last.
            impl: Implementation of the operations; None takes the best that can run.
        """

    def bundle(
        self,
        summaries: tuple[Tensor, ...],
        sizes: Tensor,
        begin: Tensor,
        counts: Tensor,
        bundled: tuple[Tensor, ...],
        *,
        most: int,
        bundle_size: int,
        impl: str | None = None,
    ) -> None:
        """Summarise anew, in place, the bundles of consecutive units in which some have come.

        Args:
            summaries: Of the units, as `build` makes them.
            sizes: [N, U] their tokens.
            begin: [N] the first that has come to each row.
            counts: [N] one more than the last.
            bundled: Tensors [N, U / bundle_size, ...], changed.
            most: Units that have come to a row at the most.
            bundle_size: Units of a bundle.
            impl: Implementation of the operation.

        Raises:
            NotImplementedError: Summaries of this kind cannot be summarised.
        """
        raise NotImplementedError(f"{self} has no bundles.")

    @abstractmethod
    def unit_bytes(self, key_dim: int, value_dim: int, item_size: int) -> float:
        """Bytes of one unit's summary, keys being of `item_size` bytes a number."""

    def token_bytes(self, key_dim: int) -> int:
        """Bytes of the details of one token."""
        return 0


@dataclass(frozen=True)
class MeanKey(Summary):
    """The mean of a unit's keys, its centroid (LouisKV, section 4.2 of arXiv 2510.11292)."""

    kind: ClassVar[str] = "dot"

    def build(self, keys: Tensor, values: Tensor, sizes: Tensor, impl: str | None = None) -> Built:
        """[N, U, D]."""
        return Built((means(keys, sizes, impl),))

    def unit_bytes(self, key_dim: int, value_dim: int, item_size: int) -> float:
        """One key."""
        return key_dim * item_size


@dataclass(frozen=True)
class MinMax(Summary):
    """The least and the greatest of each channel of a unit's keys (Quest, section 3.3 of arXiv 2406.10774)."""

    kind: ClassVar[str] = "bound"

    def build(self, keys: Tensor, values: Tensor, sizes: Tensor, impl: str | None = None) -> Built:
        """[N, U, 2 D]: the greatest, then the least."""
        return Built((summarise_units(keys, sizes, "extremes", impl=impl),))

    def unit_bytes(self, key_dim: int, value_dim: int, item_size: int) -> float:
        """Two keys."""
        return 2 * key_dim * item_size


@dataclass(frozen=True)
class BoundingVolume(Summary):
    """A box about the middle of a unit's keys, as wide as they lie from it on average (ArkVale, section 4.2).

    With `c = (max + min) / 2` and `r = mean |k - c|` for each channel, the box is `c - r` to `c + r`.
    """

    kind: ClassVar[str] = "bound"

    def build(self, keys: Tensor, values: Tensor, sizes: Tensor, impl: str | None = None) -> Built:
        """[N, U, 2 D]: `c + r`, then `c - r`."""
        return Built((summarise_units(keys, sizes, "volume", impl=impl),))

    def unit_bytes(self, key_dim: int, value_dim: int, item_size: int) -> float:
        """Two keys."""
        return 2 * key_dim * item_size


@dataclass(frozen=True)
class OneBit(Summary):
    """Keys in one bit a channel, scaled over groups of consecutive tokens (FIER, section 3.2 of arXiv 2508.08256).

    With `z = (max + min) / 2` and `s = (max - min) / 2` for each channel and group, a key is `sign(k - z) s + z`. Needs
    units of single tokens that come in whole groups.

    Attributes:
        group_size: Tokens that share a scale.
    """

    kind: ClassVar[str] = "one_bit"
    group_size: int = 32

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("group_size", self.group_size, 1)

    @property
    def strides(self) -> tuple[int, ...]:
        """Bits for each token, scales for each group."""
        return (1, self.group_size)

    def build(self, keys: Tensor, values: Tensor, sizes: Tensor, impl: str | None = None) -> Built:
        """Bits [N, U, ceil(D / 8)] uint8, and [N, ceil(U / group_size), 2 D]: scales, then middles."""
        num_tokens = -(-sizes.shape[1] // self.group_size) * self.group_size
        keys = keys[:, :num_tokens]
        whole = torch.nn.functional.pad(keys, (0, 0, 0, num_tokens - keys.shape[1]))
        groups = whole.unflatten(1, (-1, self.group_size))
        high, low = groups.amax(2), groups.amin(2)
        middle, scale = (high + low) / 2, (high - low) / 2
        bits = pack_bits((groups >= middle[:, :, None]).flatten(1, 2))
        return Built((bits, torch.cat([scale, middle], dim=-1)))

    def unit_bytes(self, key_dim: int, value_dim: int, item_size: int) -> float:
        """A bit a channel, and a share of two keys."""
        return -(-key_dim // 8) + 2 * key_dim * item_size / self.group_size


@dataclass(frozen=True)
class Sketch(Summary):
    """Mean key and mean value in 8 bits, and one bit a channel of what the key of each token is off the mean.

    The mean value is what a unit that is not resident can be estimated with (RetroInfer, arXiv 2505.02922, has it
    in full); the bits, of all tokens, choose the best tokens among the best units. A step, for what one bit stands
    for, is the mean distance of a unit's keys from their mean.

    Attributes:
        token_bits: Whether there are bits; without them units are chosen whole.
    """

    kind: ClassVar[str] = "sketch"
    token_bits: bool = True

    @property
    def strides(self) -> tuple[int, ...]:
        """All for each unit."""
        return (1, 1, 1)

    def build(self, keys: Tensor, values: Tensor, sizes: Tensor, impl: str | None = None) -> Built:
        """Codes [N, U, D] and [N, U, Dv] int8, and steps [N, U, 3] float16; signs [N, T, ceil(D / 8)] uint8."""
        *summaries, bits = sketch_units(keys, values, sizes, token_bits=self.token_bits, impl=impl)
        return Built(tuple(summaries), bits)

    def bundle(
        self,
        summaries: tuple[Tensor, ...],
        sizes: Tensor,
        begin: Tensor,
        counts: Tensor,
        bundled: tuple[Tensor, ...],
        *,
        most: int,
        bundle_size: int,
        impl: str | None = None,
    ) -> None:
        """The means over the tokens of each bundle; what no bit stands for has no step."""
        bundle_sketches(summaries, sizes, begin, counts, bundled, most=most, bundle_size=bundle_size, impl=impl)

    def unit_bytes(self, key_dim: int, value_dim: int, item_size: int) -> float:
        """A byte a number, and three steps."""
        return key_dim + value_dim + 6

    def token_bytes(self, key_dim: int) -> int:
        """A bit a channel."""
        return -(-key_dim // 8) if self.token_bits else 0


def means(rows: Tensor, sizes: Tensor, impl: str | None = None) -> Tensor:
    """Mean of each unit.

    Args:
        rows: [N, T, D], tokens in the order of their units.
        sizes: [N, U], rows summing to at most T.
        impl: Implementation of the operation.

    Returns:
        [N, U, D]; 0 for a unit without tokens.
    """
    return summarise_units(rows, sizes, "mean", impl=impl)
