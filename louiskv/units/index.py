"""The index: what the device keeps of every unit of one layer."""

import torch
from torch import Tensor

from louiskv.ops.ragged import append_rows, grown, sum_by_label

# Room added when the index is full and one unit comes.
GROWTH = 64


class UnitIndex:
    """Place, size and summary of every unit of one layer, and how much of it is resident.

    Attributes:
        offsets: [N, U] int32, where the unit begins in its row of the host pool.
        sizes: [N, U] int32, its tokens; 0 past a row's count.
        resident: [N, U] int32, how many of its first tokens lie in retrieved slots.
        summaries: [N, U, D], the mean of its keys.
        counts: [N] int64, units of each row.
    """

    def __init__(self, num_rows: int, key_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.offsets = torch.zeros(num_rows, 0, dtype=torch.int32, device=device)
        self.sizes = torch.zeros_like(self.offsets)
        self.resident = torch.zeros_like(self.offsets)
        self.summaries = torch.zeros(num_rows, 0, key_dim, dtype=dtype, device=device)
        self.counts = torch.zeros(num_rows, dtype=torch.int64, device=device)

    @property
    def num_bytes(self) -> int:
        """Bytes of device memory this index has allocated."""
        tensors = (self.offsets, self.sizes, self.resident, self.summaries, self.counts)
        return sum(tensor.nbytes for tensor in tensors)

    def append(self, offsets: Tensor, sizes: Tensor, summaries: Tensor) -> Tensor:
        """Add units; of each row those count that come before its first size of 0.

        Args:
            offsets: [N, u].
            sizes: [N, u], zeros last.
            summaries: [N, u, D].

        Returns:
            [N] index of the first unit added to each row.
        """
        new = (sizes > 0).sum(1)
        needed = int((self.counts + new).max())
        if needed > self.sizes.shape[1]:
            capacity = needed if sizes.shape[1] > 1 else needed + GROWTH
            for name in ("offsets", "sizes", "resident", "summaries"):
                setattr(self, name, grown(getattr(self, name), capacity))
        append_rows(self.offsets, self.counts, offsets.to(torch.int32), new)
        append_rows(self.sizes, self.counts, sizes.to(torch.int32), new)
        append_rows(self.summaries, self.counts, summaries.to(self.summaries.dtype), new)
        begin = self.counts
        self.counts = begin + new
        return begin

    def select_rows(self, index: Tensor) -> None:
        """Make row i a copy of the former row `index[i]`."""
        for name in ("offsets", "sizes", "resident", "summaries", "counts"):
            setattr(self, name, getattr(self, name).index_select(0, index))


def mean_keys(keys: Tensor, sizes: Tensor) -> Tensor:
    """Mean key of each unit.

    Args:
        keys: [N, T, D], tokens in the order of their units.
        sizes: [N, U], rows summing to at most T.

    Returns:
        [N, U, D]; 0 for a unit without tokens.
    """
    sums, _ = sum_by_label(keys.float(), unit_of_place(sizes, keys.shape[1]), sizes.shape[1] + 1)
    return (sums[:, :-1] / sizes.clamp(min=1)[..., None]).to(keys.dtype)


def unit_of_place(sizes: Tensor, num_places: int) -> Tensor:
    """Unit [N, T] of each place when units of these sizes [N, U] lie side by side; U past the last one."""
    place = torch.arange(num_places, device=sizes.device).expand(len(sizes), -1).contiguous()
    return torch.searchsorted(sizes.cumsum(1), place, right=True)
