"""What a step reads of an index: all units, or those of the best bundles and the other bundles as they are."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from louiskv.ops.ragged import take_rows
from louiskv.units.index import UnitIndex


class Entries(ABC):
    """The entries of one step, units first.

    Attributes:
        num_units: Entries that are units.
        offsets: [N, num_units] where they begin in the pool.
        summaries: Tensors [N, E, ...] of all entries.
    """

    num_units: int
    offsets: Tensor
    summaries: tuple[Tensor, ...]

    @abstractmethod
    def counted(self, tokens: Tensor) -> Tensor:
        """Tokens [N, E] of each entry, from those [N, U] of each unit of the index."""

    @abstractmethod
    def entry_of(self, unit: Tensor) -> Tensor:
        """Entries [N, S] that units [N, S] of the index are, -1 for those that are none."""


class AllUnits(Entries):
    """Each unit is an entry."""

    def __init__(self, index: UnitIndex) -> None:
        self.num_units = index.sizes.shape[1]
        self.offsets, self.summaries = index.offsets, index.summaries

    def counted(self, tokens: Tensor) -> Tensor:
        """They are those of the units."""
        return tokens

    def entry_of(self, unit: Tensor) -> Tensor:
        """The unit itself."""
        return unit


class BestBundles(Entries):
    """The units of some bundles; then all bundles, of which those have no tokens left."""

    def __init__(self, index: UnitIndex, chosen: Tensor) -> None:
        """Look into the bundles `chosen` [N, M] of each row."""
        assert index.bundles is not None
        self.bundle_size, self.chosen = index.bundles.size, chosen
        self.num_units = chosen.shape[1] * self.bundle_size
        self.offsets = self._of_units(index.offsets)
        inside = (self._of_bundles(part) for part in index.summaries)
        self.summaries = tuple(
            torch.cat([unit, bundle], dim=1) for unit, bundle in zip(inside, index.bundled, strict=True)
        )
        self.rank = chosen.new_full((len(chosen), self.summaries[0].shape[1] - self.num_units), -1)
        self.rank.scatter_(1, chosen, torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen))

    def counted(self, tokens: Tensor) -> Tensor:
        """Those of the units, and of each other bundle the sum."""
        outside = tokens.unflatten(1, (-1, self.bundle_size)).sum(-1, dtype=tokens.dtype)
        return torch.cat([self._of_units(tokens), outside.masked_fill(self.rank >= 0, 0)], dim=1)

    def entry_of(self, unit: Tensor) -> Tensor:
        """Where the units of its bundle are, if they are entries."""
        bundle = torch.div(unit, self.bundle_size, rounding_mode="floor")
        rank = self.rank.gather(1, bundle)
        return torch.where(rank >= 0, rank * self.bundle_size + unit - bundle * self.bundle_size, -1)

    def _of_units(self, per_unit: Tensor) -> Tensor:
        """[N, num_units] from [N, U]."""
        return take_rows(per_unit.unflatten(1, (-1, self.bundle_size)), self.chosen).flatten(1)

    def _of_bundles(self, part: Tensor) -> Tensor:
        """[N, num_units, ...] from [N, U, ...]."""
        flat = part.unflatten(1, (-1, self.bundle_size)).flatten(2)
        return take_rows(flat, self.chosen).view(len(part), self.num_units, *part.shape[2:])
