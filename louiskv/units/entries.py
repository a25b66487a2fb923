"""What a step reads of an index: all units, or those of the best bundles and the other bundles as they are."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from louiskv.ops.candidates import UnitTable
from louiskv.ops.ragged import take_rows
from louiskv.units.index import UnitIndex


class Entries(ABC):
    """The entries of one step, units first.

    Attributes:
        num_units: Entries that are units.
        offsets: [N, num_units] where they begin in the pool.
        summaries: Tensors [N, E, ...] of all entries.
        table: Which entries the units of the index are.
    """

    num_units: int
    offsets: Tensor
    summaries: tuple[Tensor, ...]
    table: UnitTable

    @abstractmethod
    def counted(self, tokens: Tensor) -> Tensor:
        """Tokens [N, E] of each entry, from those [N, U] of each unit of the index."""


class AllUnits(Entries):
    """Each unit is an entry."""

    def __init__(self, index: UnitIndex) -> None:
        self.num_units = index.sizes.shape[1]
        self.offsets, self.summaries = index.offsets, index.summaries
        self.table = UnitTable(index.offsets, index.counts)

    def counted(self, tokens: Tensor) -> Tensor:
        """They are those of the units."""
        return tokens


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
        num_bundles = self.summaries[0].shape[1] - self.num_units
        first = torch.full((len(chosen), num_bundles), -1, dtype=torch.int32, device=chosen.device)
        entry = torch.arange(0, self.num_units, self.bundle_size, dtype=torch.int32, device=chosen.device)
        first.scatter_(1, chosen, entry.expand_as(chosen))
        self.table = UnitTable(index.offsets, index.counts, first, self.bundle_size)
        self._is_chosen = first >= 0

    def counted(self, tokens: Tensor) -> Tensor:
        """Those of the units, and of each other bundle the sum."""
        outside = tokens.unflatten(1, (-1, self.bundle_size)).sum(-1, dtype=tokens.dtype)
        return torch.cat([self._of_units(tokens), outside.masked_fill(self._is_chosen, 0)], dim=1)

    def _of_units(self, per_unit: Tensor) -> Tensor:
        """[N, num_units] from [N, U]."""
        return take_rows(per_unit.unflatten(1, (-1, self.bundle_size)), self.chosen).flatten(1)

    def _of_bundles(self, part: Tensor) -> Tensor:
        """[N, num_units, ...] from [N, U, ...]."""
        flat = part.unflatten(1, (-1, self.bundle_size)).flatten(2)
        return take_rows(flat, self.chosen).view(len(part), self.num_units, *part.shape[2:])
