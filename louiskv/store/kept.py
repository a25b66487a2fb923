"""The kept set: the few tokens that eviction leaves of one layer, each in a slot on the device."""

import torch
from torch import Tensor

from louiskv.ops.ragged import grown, take_rows


class KeptSet:
    """Slots of one layer on the device, and nothing anywhere else.

    Attributes:
        rows: [N, L, Dk + Dv], zero where never filled.
        positions: [N, L] int64 position of the token in each slot, -1 where there is none.
        votes: [N, L] float32, what is added to the logit of each slot; -inf where it is empty.
        stats: [N, L, k] float32, what is known of each token's importance.
        rest: [N, 1, Dk + Dv] float32 sum of what was dropped, if a slot stands for it: then the last one, with the mean
            key and value and the logarithm of the number as its vote.
        num_rest: [N] int64 tokens in that sum.
    """

    def __init__(
        self,
        num_rows: int,
        num_slots: int,
        key_dim: int,
        value_dim: int,
        num_stats: int,
        with_rest: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.key_dim, self.with_rest = key_dim, with_rest
        size = num_slots + with_rest
        self.rows = torch.zeros(num_rows, size, key_dim + value_dim, dtype=dtype, device=device)
        self.positions = torch.full((num_rows, size), -1, dtype=torch.int64, device=device)
        self.votes = torch.full((num_rows, size), -torch.inf, dtype=torch.float32, device=device)
        self.stats = torch.zeros(num_rows, size, num_stats, dtype=torch.float32, device=device)
        self.rest = torch.zeros(num_rows, int(with_rest), key_dim + value_dim, dtype=torch.float32, device=device)
        self.num_rest = torch.zeros(num_rows, dtype=torch.int64, device=device)

    @property
    def keys(self) -> Tensor:
        """[N, L, Dk], a view."""
        return self.rows[..., : self.key_dim]

    @property
    def values(self) -> Tensor:
        """[N, L, Dv], a view."""
        return self.rows[..., self.key_dim :]

    @property
    def counts(self) -> Tensor:
        """[N] tokens of each row."""
        return (self.positions >= 0).sum(1)

    @property
    def num_bytes(self) -> int:
        """Bytes of device memory."""
        tensors = (self.rows, self.positions, self.votes, self.stats, self.rest, self.num_rest)
        return sum(tensor.nbytes for tensor in tensors)

    def append(self, rows: Tensor, positions: Tensor) -> None:
        """Put one token [N, Dk + Dv] of each row, at these positions [N], into its first empty slot."""
        last = self.positions.shape[1] - self.with_rest
        slot = (self.positions[:, :last] < 0).to(torch.uint8).argmax(1, keepdim=True)
        self.rows.scatter_(1, slot[..., None].expand(-1, 1, rows.shape[1]), rows[:, None])
        self.positions.scatter_(1, slot, positions[:, None])
        self.votes.scatter_(1, slot, 0)
        self.stats.scatter_(1, slot[..., None].expand(-1, 1, self.stats.shape[2]), 0)

    def reserve(self, num_slots: int) -> None:
        """Make room for as many tokens; if there is too little now, all tokens must be written anew."""
        size = num_slots + self.with_rest
        if size > self.positions.shape[1]:
            for name in ("rows", "positions", "votes", "stats"):
                setattr(self, name, grown(getattr(self, name), size))
            self._write_rest()

    def fill(self, rows: Tensor, positions: Tensor, votes: Tensor, stats: Tensor) -> None:
        """Put these tokens [N, C, ...] in place of all that there are; positions are -1 where there is none."""
        count, last = rows.shape[1], self.positions.shape[1] - self.with_rest
        self.rows[:, :count], self.stats[:, :count] = rows, stats
        self.positions[:, :last], self.votes[:, :last] = -1, -torch.inf
        self.positions[:, :count], self.votes[:, :count] = positions, votes

    def drop(self, lost: Tensor) -> None:
        """Empty the slots where `lost` [N, L]."""
        self.positions.masked_fill_(lost, -1)
        self.votes.masked_fill_(lost, -torch.inf)

    def compensate(self, rows: Tensor, lost: Tensor) -> None:
        """Let the last slot stand also for the tokens of [N, C, Dk + Dv] where `lost` [N, C]."""
        self.rest = self.rest + (rows.float() * lost[..., None]).sum(1, keepdim=True)
        self.num_rest = self.num_rest + lost.sum(1)
        self._write_rest()

    def crop(self, end: Tensor) -> None:
        """Forget the tokens from `end` [N] on; of the rest, of which nobody knows where it stood, in proportion."""
        self.drop(self.positions >= end[:, None])
        if self.with_rest:
            num_rest = end - self.counts
            self.rest = self.rest * (num_rest / self.num_rest.clamp(min=1))[:, None, None]
            self.num_rest = num_rest
            self._write_rest()

    def select_rows(self, index: Tensor) -> None:
        """Make row i a copy of the former row `index[i]`."""
        for name in ("rows", "positions", "votes", "stats", "rest", "num_rest"):
            setattr(self, name, getattr(self, name).index_select(0, index))

    def blank(self, num_rows: int) -> "KeptSet":
        """A set with as many slots for so many rows, empty."""
        num_slots = self.positions.shape[1] - self.with_rest
        sizes = self.key_dim, self.rows.shape[2] - self.key_dim, self.stats.shape[2]
        return KeptSet(num_rows, num_slots, *sizes, self.with_rest, self.rows.dtype, self.rows.device)

    def put_rows(self, rows: slice, other: "KeptSet", others: slice) -> None:
        """Overwrite rows by those of another set, in place unless that has more slots."""
        before, last = (each.positions.shape[1] - each.with_rest for each in (self, other))
        if last > before:
            self.reserve(last)
            self.positions[:, before:], self.votes[:, before:] = -1, -torch.inf
        self.clear_rows(rows)
        for name in ("rows", "positions", "votes", "stats"):
            getattr(self, name)[rows, :last] = getattr(other, name)[others, :last]
        self.rest[rows], self.num_rest[rows] = other.rest[others], other.num_rest[others]
        self._write_rest()

    def clear_rows(self, rows: slice) -> None:
        """Empty rows, in place; what their slots held stays there, closed."""
        self.positions[rows], self.votes[rows] = -1, -torch.inf
        self.rest[rows], self.num_rest[rows] = 0, 0

    def sort(self) -> None:
        """Put the tokens in the order of their positions, empty slots first."""
        last = self.positions.shape[1] - self.with_rest
        order = self.positions[:, :last].argsort(dim=1)
        self.positions[:, :last] = self.positions.gather(1, order)
        self.votes[:, :last] = self.votes.gather(1, order)
        self.rows[:, :last] = take_rows(self.rows, order)
        self.stats[:, :last] = take_rows(self.stats, order)

    def _write_rest(self) -> None:
        if self.with_rest:
            self.rows[:, -1] = (self.rest[:, 0] / self.num_rest.clamp(min=1)[:, None]).to(self.rows.dtype)
            self.votes[:, -1] = self.num_rest.float().log()
            self.positions[:, -1] = -1
