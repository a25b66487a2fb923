"""The index: what the device keeps of every unit of one layer."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.ops.moving import store_rows
from louiskv.ops.ragged import grown, put_rows
from louiskv.ops.units import append_units
from louiskv.units.summaries import Summary

# Bytes of the table's entry for one unit: offset and size.
TABLE_BYTES = 8
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
    """Place, size and summary of every unit of one layer.

    Attributes:
        offsets: [N, U] int32, where the unit begins in its row of the pool.
        sizes: [N, U] int32, its tokens; 0 past a row's count.
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
        self.summaries: tuple[Tensor, ...] = ()
        self.bundled: tuple[Tensor, ...] = ()
        self.details: Tensor | None = None
        self.strides, self.bundles = strides, bundles
        self.counts = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.num_tokens = torch.zeros_like(self.counts)
        self._token_room = 0

    @property
    def summary_bytes(self) -> int:
        """Bytes of device memory that the summaries have allocated: what papers count as their index."""
        return sum(part.nbytes for part in (*self.summaries, *self.bundled)) + (
            0 if self.details is None else self.details.nbytes
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of device memory of it all: the summaries, and what says where the units lie."""
        tables = (self.offsets, self.sizes, self.counts, self.num_tokens)
        return self.summary_bytes + sum(tensor.nbytes for tensor in tables)

    def append(
        self,
        begin: Tensor,
        sizes: Tensor,
        summaries: tuple[Tensor, ...],
        details: Tensor | None = None,
        impl: str | None = None,
        known: tuple[int, int] | None = None,
    ) -> Tensor:
        """Add the units of a prompt; of each row those that come before its first size of 0.

        Args:
            begin: [N] where the first of them begins in the pool; they lie side by side.
            sizes: [N, u], zeros last.
            summaries: Tensors [N, ceil(u / stride), ...].
            details: [N, t, ...] of their tokens, in the order of the units.
            impl: Implementation; None takes the best that can run.
            known: Units and tokens that no row has more of then; None to look, which waits for the device.

        Returns:
            [N] index of the first unit added to each row.
        """
        self._shape_like(summaries, details)
        if known is None:
            held = torch.stack([self.counts + (sizes > 0).sum(1), self.num_tokens + sizes.sum(1)])
            known = tuple(held.amax(1).tolist())
        self.reserve(*known)
        return self.append_few(begin, sizes, summaries, details, impl)

    def append_few(
        self,
        begin: Tensor,
        sizes: Tensor,
        summaries: tuple[Tensor, ...],
        details: Tensor | None = None,
        impl: str | None = None,
    ) -> Tensor:
        """The same for the units of one run, for which room was reserved; waits for nothing."""
        self._shape_like(summaries, details)
        table = (self.offsets, self.sizes, self.counts, self.num_tokens)
        first, new, first_token, tokens = append_units(*table, begin, sizes, impl=impl)
        for held, part, stride in zip(self.summaries, summaries, self.strides, strict=True):
            whole = (first, new) if stride == 1 else (first // stride, new // stride)
            store_rows(held, whole[0], part, whole[1], impl=impl)
        if details is not None:
            assert self.details is not None
            store_rows(self.details, first_token, details, tokens, impl=impl)
        if self.bundles is not None:
            self._bundle(self.bundles, first, sizes.shape[1], impl)
        return first

    def reserve(self, num_units: int, num_tokens: int) -> bool:
        """Make room for so many units of each row, and the details of so many tokens; whether there was too little."""
        capacity = self.sizes.shape[1]
        grows = num_units > capacity or num_tokens > self._token_room
        if num_units > capacity:
            capacity = num_units + (GROWTH if capacity else 0)
            whole = max(self.strides) if self.bundles is None else self.bundles.size
            capacity = -(-capacity // whole) * whole
            self.offsets, self.sizes = grown(self.offsets, capacity), grown(self.sizes, capacity)
        if num_tokens > self._token_room:
            self._token_room = num_tokens + (max(16 * GROWTH, num_tokens // 16) if self._token_room else 0)
        self._grow_kept()
        return grows

    def _shape_like(self, summaries: tuple[Tensor, ...], details: Tensor | None) -> None:
        """Learn from the first units what is kept of a unit and of a token."""
        if not self.summaries:
            self.summaries = tuple(part.new_empty(len(part), 0, *part.shape[2:]) for part in summaries)
            if details is not None:
                self.details = details.new_empty(len(details), 0, *details.shape[2:])
            self._grow_kept()

    def _grow_kept(self) -> None:
        """Give summaries, also those of bundles, and details the room that was reserved."""
        capacity = self.sizes.shape[1]
        self.summaries = tuple(
            part if part.shape[1] * stride == capacity else grown(part, capacity // stride)
            for part, stride in zip(self.summaries, self.strides, strict=bool(self.summaries))
        )
        if self.details is not None and self.details.shape[1] < self._token_room:
            self.details = grown(self.details, self._token_room)
        if self.bundles is not None and self.bundled and self.bundled[0].shape[1] < capacity // self.bundles.size:
            self.bundled = tuple(grown(held, capacity // self.bundles.size) for held in self.bundled)

    def _bundle(self, bundles: Bundles, first: Tensor, most: int, impl: str | None) -> None:
        """Summarise anew, in each row, the bundles of the units from `first` [N] on, `most` units at the most."""
        if not self.bundled:
            self.bundled = tuple(part.new_empty(len(part), 0, *part.shape[2:]) for part in self.summaries)
            self._grow_kept()
        given = (self.summaries, self.sizes, first, self.counts, self.bundled)
        bundles.summary.bundle(*given, most=most, bundle_size=bundles.size, impl=impl)

    def bundled_anew(self, impl: str | None = None) -> tuple[Tensor, ...]:
        """What `bundled` should be, from all units."""
        assert self.bundles is not None
        anew, first = tuple(torch.zeros_like(part) for part in self.bundled), torch.zeros_like(self.counts)
        given = (self.summaries, self.sizes, first, self.counts, anew)
        self.bundles.summary.bundle(*given, most=self.sizes.shape[1], bundle_size=self.bundles.size, impl=impl)
        return anew

    def blank(self, num_rows: int) -> "UnitIndex":
        """An index of the same kind for so many rows, without units."""
        return UnitIndex(num_rows, self.strides, self.counts.device, self.bundles)

    def put_rows(self, rows: slice, other: "UnitIndex", others: slice) -> None:
        """Overwrite rows by those of another index of the same kind; others are copied only if there is no room."""
        num_units, num_tokens = int(other.counts[others].max()), int(other.num_tokens[others].max())
        if other.summaries:
            self._shape_like(*other._shaped(len(self.counts)))
        self.reserve(num_units, num_tokens)
        for name in ("counts", "num_tokens"):
            getattr(self, name)[rows] = getattr(other, name)[others]
        for held, part, stride in self._beside(other):
            put_rows(held, rows, part[:, : -(-num_units // stride)], others)
        if self.details is not None and other.details is not None:
            put_rows(self.details, rows, other.details[:, :num_tokens], others)

    def clear_rows(self, rows: slice) -> None:
        """Empty rows, in place."""
        self.counts[rows], self.num_tokens[rows] = 0, 0
        for held in (self.offsets, self.sizes, *self.summaries, *self.bundled):
            held[rows] = 0

    def _shaped(self, num_rows: int) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Summaries and details of no units for so many rows."""
        details = None if self.details is None else self.details.new_zeros(num_rows, 0, *self.details.shape[2:])
        return tuple(part.new_zeros(num_rows, 0, *part.shape[2:]) for part in self.summaries), details

    def _beside(self, other: "UnitIndex") -> Iterator[tuple[Tensor, Tensor, int]]:
        """What this one and another have of units, each pair with the units that share an entry."""
        yield self.offsets, other.offsets, 1
        yield self.sizes, other.sizes, 1
        yield from zip(self.summaries, other.summaries, self.strides, strict=False)
        if self.bundles is not None and other.bundled:
            if not self.bundled:
                self.bundled = tuple(part.new_zeros(len(self.counts), 0, *part.shape[2:]) for part in other.bundled)
                self._grow_kept()
            for held, part in zip(self.bundled, other.bundled, strict=True):
                yield held, part, self.bundles.size

    def select_rows(self, index: Tensor) -> None:
        """Make row i a copy of the former row `index[i]`."""
        for name in ("offsets", "sizes", "counts", "num_tokens"):
            setattr(self, name, getattr(self, name).index_select(0, index))
        if self.details is not None:
            self.details = self.details.index_select(0, index)
        self.summaries, self.bundled = (
            tuple(part.index_select(0, index) for part in parts) for parts in (self.summaries, self.bundled)
        )
