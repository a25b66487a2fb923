"""Summaries: what the index keeps of a unit, and which kind of score that allows."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from louiskv.errors import check_count
from louiskv.ops.quantize import pack_bits, to_int8
from louiskv.ops.ragged import sum_by_label, take_rows
from louiskv.ops.units import summarise_units, unit_of_place


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
    def build(self, keys: Tensor, values: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Summarise units.

        Args:
            keys: [N, T, D], tokens in the order of their units.
            values: [N, T, Dv].
            sizes: [N, U], rows summing to at most T, zeros last.

        Returns:
            Tensors [N, ceil(U / stride), ...]; what stands for a unit without tokens is finite.
        """

    def details(self, keys: Tensor, sizes: Tensor, summaries: tuple[Tensor, ...]) -> Tensor | None:
        """What the index keeps of each token beside the summaries of the units: [N, T, ...], None for nothing."""
        return None

    def coarsen(self, summaries: tuple[Tensor, ...], sizes: Tensor, bundle_size: int) -> tuple[Tensor, ...]:
        """Summarise bundles of so many consecutive units, of sizes [N, U]: tensors [N, U / bundle_size, ...].

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

    def build(self, keys: Tensor, values: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """[N, U, D]."""
        return (means(keys, sizes),)

    def unit_bytes(self, key_dim: int, value_dim: int, item_size: int) -> float:
        """One key."""
        return key_dim * item_size


@dataclass(frozen=True)
class MinMax(Summary):
    """The least and the greatest of each channel of a unit's keys (Quest, section 3.3 of arXiv 2406.10774)."""

    kind: ClassVar[str] = "bound"

    def build(self, keys: Tensor, values: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """[N, U, 2 D]: the greatest, then the least."""
        return (summarise_units(keys, sizes, "extremes"),)

    def unit_bytes(self, key_dim: int, value_dim: int, item_size: int) -> float:
        """Two keys."""
        return 2 * key_dim * item_size


@dataclass(frozen=True)
class BoundingVolume(Summary):
    """A box about the middle of a unit's keys, as wide as they lie from it on average (ArkVale, section 4.2).

    With `c = (max + min) / 2` and `r = mean |k - c|` for each channel, the box is `c - r` to `c + r`.
    """

    kind: ClassVar[str] = "bound"

    def build(self, keys: Tensor, values: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """[N, U, 2 D]: `c + r`, then `c - r`."""
        return (summarise_units(keys, sizes, "volume"),)

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

    def build(self, keys: Tensor, values: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Bits [N, U, ceil(D / 8)] uint8, and [N, ceil(U / group_size), 2 D]: scales, then middles."""
        num_tokens = -(-sizes.shape[1] // self.group_size) * self.group_size
        keys = keys[:, :num_tokens]
        whole = torch.nn.functional.pad(keys, (0, 0, 0, num_tokens - keys.shape[1]))
        groups = whole.unflatten(1, (-1, self.group_size))
        high, low = groups.amax(2), groups.amin(2)
        middle, scale = (high + low) / 2, (high - low) / 2
        bits = pack_bits((groups >= middle[:, :, None]).flatten(1, 2))
        return bits, torch.cat([scale, middle], dim=-1)

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

    def build(self, keys: Tensor, values: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Codes [N, U, D] and [N, U, Dv] int8, and steps [N, U, 3] float16: of key, value and bits."""
        key_codes, key_steps = to_int8(means(keys, sizes))
        value_codes, value_steps = to_int8(means(values, sizes))
        unit = unit_of_place(sizes, keys.shape[1])
        off = self._off(keys, unit, key_codes, key_steps).abs().mean(-1, keepdim=True)
        sums, _ = sum_by_label(off, unit, sizes.shape[1] + 1)
        spread = sums[:, :-1, 0] / sizes.clamp(min=1)
        return key_codes, value_codes, torch.stack([key_steps, value_steps, spread.half()], dim=-1)

    def details(self, keys: Tensor, sizes: Tensor, summaries: tuple[Tensor, ...]) -> Tensor | None:
        """Signs [N, T, ceil(D / 8)] uint8."""
        if not self.token_bits:
            return None
        codes, _, steps = summaries
        return pack_bits(self._off(keys, unit_of_place(sizes, keys.shape[1]), codes, steps[..., 0]) >= 0)

    def coarsen(self, summaries: tuple[Tensor, ...], sizes: Tensor, bundle_size: int) -> tuple[Tensor, ...]:
        """The means over the tokens of each bundle; what no bit stands for has no step."""
        *codes, steps = summaries
        weights = sizes.float().unflatten(1, (-1, bundle_size))
        total = weights.sum(2).clamp(min=1)
        coarse = []
        for code, step in zip(codes, steps.float().unbind(-1), strict=False):
            means_of_units = (code.float() * step[..., None]).unflatten(1, (-1, bundle_size))
            coarse.append(to_int8((means_of_units * weights[..., None]).sum(2) / total[..., None]))
        (key_codes, key_steps), (value_codes, value_steps) = coarse
        return key_codes, value_codes, torch.stack([key_steps, value_steps, torch.zeros_like(key_steps)], dim=-1)

    def unit_bytes(self, key_dim: int, value_dim: int, item_size: int) -> float:
        """A byte a number, and three steps."""
        return key_dim + value_dim + 6

    def token_bytes(self, key_dim: int) -> int:
        """A bit a channel."""
        return -(-key_dim // 8) if self.token_bits else 0

    def _off(self, keys: Tensor, unit: Tensor, codes: Tensor, steps: Tensor) -> Tensor:
        """How far keys [N, T, D] are from the mean key of their unit [N, T]; 0 past the last unit."""
        centre = torch.nn.functional.pad(codes.float() * steps.float()[..., None], (0, 0, 0, 1))
        off = keys.float() - take_rows(centre, unit)
        return off.masked_fill((unit == codes.shape[1])[..., None], 0.0)


def means(rows: Tensor, sizes: Tensor) -> Tensor:
    """Mean of each unit.

    Args:
        rows: [N, T, D], tokens in the order of their units.
        sizes: [N, U], rows summing to at most T.

    Returns:
        [N, U, D]; 0 for a unit without tokens.
    """
    return summarise_units(rows, sizes, "mean")
