"""The index: what the device keeps of every unit of one layer."""

import torch
from torch import Tensor

from louiskv.ops.ragged import append_rows, grown

# Bytes of the table's entry for one unit: offset, size and how much of it is resident.
TABLE_BYTES = 12
# Room added when the index is full and few units come.
GROWTH = 64


class UnitIndex:
    """Place, size and summary of every unit of one layer, and how much of it is resident.

    Attributes:
        offsets: [N, U] int32, where the unit begins in its row of the pool.
        sizes: [N, U] int32, its tokens; 0 past a row's count.
        resident: [N, U] int32, how many of its first tokens lie in retrieved slots.
        summaries: Tensors [N, U / stride, ...], as `Summary.build` makes them; U is a multiple of every stride.
        counts: [N] int64, units of each row.
    """

    def __init__(self, num_rows: int, strides: tuple[int, ...], device: torch.device) -> None:
        self.offsets = torch.zeros(num_rows, 0, dtype=torch.int32, device=device)
        self.sizes = torch.zeros_like(self.offsets)
        self.resident = torch.zeros_like(self.offsets)
        self.summaries: tuple[Tensor, ...] = ()
        self.strides = strides
        self.counts = torch.zeros(num_rows, dtype=torch.int64, device=device)

    @property
    def summary_bytes(self) -> int:
        """Bytes of device memory that the summaries have allocated: what papers count as their index."""
        return sum(part.nbytes for part in self.summaries)

    @property
    def num_bytes(self) -> int:
        """Bytes of device memory of it all: the summaries, and what says where the units lie."""
        tables = (self.offsets, self.sizes, self.resident, self.counts)
        return self.summary_bytes + sum(tensor.nbytes for tensor in tables)

    def append(self, offsets: Tensor, sizes: Tensor, summaries: tuple[Tensor, ...]) -> Tensor:
        """Add units; of each row those that come before its first size of 0.

        Args:
            offsets: [N, u].
            sizes: [N, u], zeros last.
            summaries: Tensors [N, ceil(u / stride), ...].

        Returns:
            [N] index of the first unit added to each row.
        """
        new = (sizes > 0).sum(1)
        needed = int((self.counts + new).max())
        if not self.summaries:
            self.summaries = tuple(part.new_zeros(len(part), 0, *part.shape[2:]) for part in summaries)
        if needed > self.sizes.shape[1]:
            capacity = needed if self.sizes.shape[1] == 0 else needed + GROWTH
            capacity = -(-capacity // max(self.strides)) * max(self.strides)
            for name in ("offsets", "sizes", "resident"):
                setattr(self, name, grown(getattr(self, name), capacity))
            self.summaries = tuple(
                grown(part, capacity // stride) for part, stride in zip(self.summaries, self.strides, strict=True)
            )
        append_rows(self.offsets, self.counts, offsets.to(torch.int32), new)
        append_rows(self.sizes, self.counts, sizes.to(torch.int32), new)
        for held, part, stride in zip(self.summaries, summaries, self.strides, strict=True):
            append_rows(held, self.counts // stride, part, new // stride)
        begin = self.counts
        self.counts = begin + new
        return begin

    def select_rows(self, index: Tensor) -> None:
        """Make row i a copy of the former row `index[i]`."""
        for name in ("offsets", "sizes", "resident", "counts"):
            setattr(self, name, getattr(self, name).index_select(0, index))
        self.summaries = tuple(part.index_select(0, index) for part in self.summaries)
