"""The index: what the device keeps of every unit of one layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.ops.ragged import append_rows, grown, take_rows
from louiskv.units.summaries import Summary

# Bytes of the table's entry for one unit: offset, size and how much of it is resident.
TABLE_BYTES = 12
# Room added when the index is full and few units come.
GROWTH = 64


@dataclass(frozen=True)
class Bundles:
    """The second level of an index: consecutive units have one more summary together.

    Attributes:
        size: Units of a bundle.
        summary: What summarises.
    """

    size: int
    summary: Summary


class UnitIndex:
    """Place, size and summary of every unit of one layer, and how much of it is resident.

    Attributes:
        offsets: [N, U] int32, where the unit begins in its row of the pool.
        sizes: [N, U] int32, its tokens; 0 past a row's count.
        resident: [N, U] int32, how many of its tokens lie in retrieved slots.
        summaries: Tensors [N, U / stride, ...], as `Summary.build` makes them; U is a multiple of every stride.
        details: [N, T, ...] what is kept of each token, as `Summary.details` makes it; None for nothing.
        bundled: What `summaries` is, of bundles [N, U / bundle size, ...]; empty without bundles.
        counts: [N] int64, units of each row.
        num_tokens: [N] int64, tokens in them.
    """

    def __init__(
        self, num_rows: int, strides: tuple[int, ...], device: torch.device, bundles: Bundles | None = None
    ) -> None:
        self.offsets = torch.zeros(num_rows, 0, dtype=torch.int32, device=device)
        self.sizes = torch.zeros_like(self.offsets)
        self.resident = torch.zeros_like(self.offsets)
        self.summaries: tuple[Tensor, ...] = ()
        self.bundled: tuple[Tensor, ...] = ()
        self.details: Tensor | None = None
        self.strides, self.bundles = strides, bundles
        self.counts = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.num_tokens = torch.zeros_like(self.counts)

    @property
    def summary_bytes(self) -> int:
        """Bytes of device memory that the summaries have allocated: what papers count as their index."""
        return sum(part.nbytes for part in (*self.summaries, *self.bundled)) + (
            0 if self.details is None else self.details.nbytes
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of device memory of it all: the summaries, and what says where the units lie."""
        tables = (self.offsets, self.sizes, self.resident, self.counts, self.num_tokens)
        return self.summary_bytes + sum(tensor.nbytes for tensor in tables)

    def append(
        self, offsets: Tensor, sizes: Tensor, summaries: tuple[Tensor, ...], details: Tensor | None = None
    ) -> Tensor:
        """Add units; of each row those that come before its first size of 0.

        Args:
            offsets: [N, u].
            sizes: [N, u], zeros last.
            summaries: Tensors [N, ceil(u / stride), ...].
            details: [N, t, ...] of their tokens, in the order of the units.

        Returns:
            [N] index of the first unit added to each row.
        """
        new = (sizes > 0).sum(1)
        needed = int((self.counts + new).max())
        if not self.summaries:
            self.summaries = tuple(part.new_zeros(len(part), 0, *part.shape[2:]) for part in summaries)
        if needed > self.sizes.shape[1]:
            capacity = needed if self.sizes.shape[1] == 0 else needed + GROWTH
            whole = max(self.strides) if self.bundles is None else self.bundles.size
            capacity = -(-capacity // whole) * whole
            for name in ("offsets", "sizes", "resident"):
                setattr(self, name, grown(getattr(self, name), capacity))
            self.summaries = tuple(
                grown(part, capacity // stride) for part, stride in zip(self.summaries, self.strides, strict=True)
            )
        append_rows(self.offsets, self.counts, offsets.to(torch.int32), new)
        append_rows(self.sizes, self.counts, sizes.to(torch.int32), new)
        for held, part, stride in zip(self.summaries, summaries, self.strides, strict=True):
            append_rows(held, self.counts // stride, part, new // stride)
        if details is not None:
            self._append_details(details, sizes.sum(1))
        begin = self.counts
        self.counts = begin + new
        if self.bundles is not None:
            self._bundle(self.bundles, begin)
        self.num_tokens = self.num_tokens + sizes.sum(1)
        return begin

    def _bundle(self, bundles: Bundles, begin: Tensor) -> None:
        """Summarise anew, in each row, the bundles of the units from `begin` [N] on."""
        num_bundles = self.sizes.shape[1] // bundles.size
        first, behind = begin // bundles.size, -(-self.counts // bundles.size)
        bundle = first[:, None] + torch.arange(int((behind - first).max()), device=begin.device)
        # Where a row has fewer new ones, others are summarised once more.
        bundle = bundle.clamp(max=max(0, num_bundles - 1))
        unit = (bundle[..., None] * bundles.size + torch.arange(bundles.size, device=begin.device)).flatten(1)
        units = tuple(take_rows(part, unit) for part in self.summaries)
        parts = bundles.summary.coarsen(units, self.sizes.gather(1, unit), bundles.size)
        if not self.bundled:
            self.bundled = tuple(part.new_zeros(len(part), 0, *part.shape[2:]) for part in parts)
        if self.bundled[0].shape[1] < num_bundles:
            self.bundled = tuple(grown(held, num_bundles) for held in self.bundled)
        for held, part in zip(self.bundled, parts, strict=True):
            held.scatter_(1, bundle[..., None].expand_as(part), part)

    def _append_details(self, details: Tensor, new: Tensor) -> None:
        held = details.new_zeros(len(details), 0, *details.shape[2:]) if self.details is None else self.details
        needed = int((self.num_tokens + new).max())
        if needed > held.shape[1]:
            held = grown(held, needed if held.shape[1] == 0 else needed + max(16 * GROWTH, needed // 16))
        append_rows(held, self.num_tokens, details, new)
        self.details = held

    def unit_of(self, place: Tensor) -> Tensor:
        """Units [N, S] of the tokens at these places [N, S] of the pool; any unit for a place without a token."""
        unit = torch.searchsorted(self.sizes.cumsum(1), place.long(), right=True)
        return unit.clamp(max=self.sizes.shape[1] - 1)

    def count_resident(self, place: Tensor) -> None:
        """Count the tokens of each unit at these places [N, S], -1 for none."""
        unit = self.unit_of(place.clamp(min=0))
        self.resident = torch.zeros_like(self.sizes).scatter_add_(1, unit, (place >= 0).to(self.sizes.dtype))

    def select_rows(self, index: Tensor) -> None:
        """Make row i a copy of the former row `index[i]`."""
        for name in ("offsets", "sizes", "resident", "counts", "num_tokens"):
            setattr(self, name, getattr(self, name).index_select(0, index))
        if self.details is not None:
            self.details = self.details.index_select(0, index)
        self.summaries, self.bundled = (
            tuple(part.index_select(0, index) for part in parts) for parts in (self.summaries, self.bundled)
        )
