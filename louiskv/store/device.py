"""The resident set: the few tokens of one layer that lie on the device, in slots that never grow."""

from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.ops.moving import append_token, fetch_rows
from louiskv.ops.selection import assign_slots
from louiskv.ops.units import keep_runs
from louiskv.ops.windows import release_runs, take_runs


@dataclass(frozen=True)
class Change:
    """What is to come into the retrieved slots.

    Attributes:
        place: [N, num_retrieved] place in the pool of the token in each slot, -1 for none.
        missing: [N, num_retrieved] True where the token is not there yet.
    """

    place: Tensor
    missing: Tensor


class ResidentSet:
    """Slots of one layer on the device: sinks, then the window as a ring, then retrieved tokens.

    A token's slot in the first two zones follows from its position p alone: p if p < num_sinks, otherwise
    num_sinks + (p - num_sinks) mod window. What lies in the third zone is written down slot by slot; where the pool is
    in the device's own memory, tokens are attended to there, and this zone has no rows.

    Attributes:
        in_place: Whether retrieved tokens stay where they are in the pool.
        rows: [N, L, Dk + Dv] with L = num_sinks + window, + num_retrieved if not in place; zero where never filled.
        bias: [N, 1, L], 0 where a slot is occupied and -inf where it is empty.
        lengths: [N] int64, tokens seen by each row.
        window_start: [N] int64, position of the oldest token in the window (num_sinks at the least).
        slot_place: [N, num_retrieved] int32, place in the pool of the token in each retrieved slot, -1 where empty.
    """

    def __init__(
        self,
        num_rows: int,
        num_sinks: int,
        window: int,
        num_retrieved: int,
        key_dim: int,
        value_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        in_place: bool = False,
    ) -> None:
        self.num_sinks, self.window, self.num_retrieved = num_sinks, window, num_retrieved
        self.key_dim, self.in_place = key_dim, in_place
        size = num_sinks + window + (0 if in_place else num_retrieved)
        self.rows = torch.zeros(num_rows, size, key_dim + value_dim, dtype=dtype, device=device)
        self.bias = torch.full((num_rows, 1, size), -torch.inf, dtype=dtype, device=device)
        self.lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.window_start = torch.full_like(self.lengths, num_sinks)
        self.slot_place = torch.full((num_rows, num_retrieved), -1, dtype=torch.int32, device=device)
        self.first_slot = torch.arange(num_rows, device=device) * size

    @property
    def keys(self) -> Tensor:
        """[N, L, Dk], a view."""
        return self.rows[..., : self.key_dim]

    @property
    def values(self) -> Tensor:
        """[N, L, Dv], a view."""
        return self.rows[..., self.key_dim :]

    @property
    def always(self) -> tuple[Tensor, Tensor]:
        """Keys [N, num_sinks + window, Dk] and bias [N, 1, num_sinks + window] of sinks and window, views."""
        end = self.num_sinks + self.window
        return self.keys[:, :end], self.bias[..., :end]

    @property
    def retrieved(self) -> Tensor:
        """[N, num_retrieved, Dk + Dv], a view of the retrieved slots; without slots if they are in place."""
        return self.rows[:, self.num_sinks + self.window :]

    @property
    def num_bytes(self) -> int:
        """Bytes of device memory this set has allocated."""
        tensors = (self.rows, self.bias, self.lengths, self.window_start, self.slot_place)
        return sum(tensor.nbytes for tensor in tensors) + self.first_slot.nbytes

    @property
    def token_size(self) -> int:
        """Bytes of one token's key and value."""
        return self.rows.shape[2] * self.rows.element_size()

    @property
    def num_resident(self) -> Tensor:
        """[N] tokens of each row that take part."""
        _, always = self.always
        return (always[:, 0] == 0).sum(1) + (self.slot_place >= 0).sum(1)

    def window_room(self) -> Tensor:
        """[N] tokens each row can still take in before its window is over-full."""
        to_fill = (self.num_sinks - self.lengths).clamp(min=0)
        return to_fill + self.window - (self.lengths - self.window_start).clamp(min=0)

    def slots_of(self, positions: Tensor) -> Tensor:
        """Slots [N, J] of the sink or window tokens at these positions [N, J]."""
        ring = self.num_sinks + (positions - self.num_sinks) % self.window
        return torch.where(positions < self.num_sinks, positions, ring)

    def positions(self) -> Tensor:
        """[N, num_sinks + window] position of the token in each sink and window slot, -1 where there is none."""
        _, always = self.always
        return self._positions_from(self.window_start).where(always[:, 0] == 0, -1)

    def layout(self, lengths: Tensor, window_start: Tensor) -> Tensor:
        """The same of rows with these [N] lengths and window starts, on any device."""
        position = self._positions_from(window_start)
        return position.where(position < lengths[:, None], -1)

    def _positions_from(self, window_start: Tensor) -> Tensor:
        """[N, num_sinks + window] position of the token that each slot has, if any."""
        slot, start = torch.arange(self.num_sinks + self.window, device=window_start.device), window_start[:, None]
        return torch.where(slot < self.num_sinks, slot, start + (slot - start) % self.window)

    def append(self, keys: Tensor, values: Tensor, impl: str | None = None) -> None:
        """Take in one token of each row, keys [N, Dk] and values; the window must have room."""
        sizes = {"num_sinks": self.num_sinks, "window": self.window}
        append_token(self.rows, self.bias, self.lengths, keys, values, **sizes, impl=impl)

    def put(self, row: Tensor, position: Tensor, rows: Tensor) -> None:
        """Write sink or window tokens [J, Dk + Dv] of the rows [J] at these positions [J]."""
        self.rows.flatten(0, 1).index_copy_(0, self.first_slot[row] + self.slots_of(position), rows)

    def advance(self, lengths: Tensor, window_start: Tensor, layout: Tensor | None = None) -> None:
        """Set how many tokens there are and where the window starts, and open or close slots accordingly.

        The layout [N, num_sinks + window] is computed if it is not given.
        """
        self.lengths, self.window_start = lengths, window_start
        layout = self.layout(lengths, window_start) if layout is None else layout
        _, always = self.always
        always.fill_(-torch.inf).masked_fill_((layout >= 0)[:, None], 0)

    def change_to(
        self,
        wanted: Tensor,
        impl: str | None = None,
        *,
        where: Tensor | None = None,
        counts: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Change:
        """What must change for the places `wanted` [N, W], -1 for none, to be those of the retrieved slots.

        Args:
            wanted: Each place once.
            impl: Implementation of the operation.
            where: [N] rows that change, None for all; the others may want anything.
            counts: [2] to which is added how many tokens these rows want, and how many of them are missing.
            out: [N, num_retrieved] where the new places are written; None for a tensor of its own.
        """
        return Change(*assign_slots(self.slot_place, wanted, where=where, counts=counts, out=out, impl=impl))

    def change(
        self, wanted: Tensor, impl: str | None = None, *, where: Tensor | None = None, counts: Tensor | None = None
    ) -> Change:
        """The same, and it is written down: from now on the slots are to hold these tokens."""
        bias, slots = None if self.in_place else self._retrieved_bias, self.slot_place
        return Change(*assign_slots(slots, wanted, where=where, counts=counts, bias=bias, out=slots, impl=impl))

    def take(self, width: int, impl: str | None = None, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The oldest tokens of the window [N, width, Dk + Dv], anything behind the newest, and their positions.

        By position, or in an order [N, width].
        """
        first, sinks, window = self.window_start, self.num_sinks, self.window
        return take_runs(self.rows, first, width, num_sinks=sinks, window=window, order=order, impl=impl)

    def release(self, counts: Tensor, impl: str | None = None) -> None:
        """Let the `counts` [N] oldest tokens of the window go."""
        ring = {"num_sinks": self.num_sinks, "window": self.window}
        release_runs(self.bias[:, 0], self.window_start, counts, **ring, impl=impl)

    def keep(
        self, begin: Tensor, counts: Tensor, rows: Tensor, room: Tensor | int, spare: int, impl: str | None = None
    ) -> None:
        """Retrieve what has just come into the pool as far as slots are empty, and a row holds no more than its room.

        Args:
            begin: [N] where it begins in the pool.
            counts: [N] how many tokens it has.
            rows: [N, T, Dk + Dv] the tokens.
            room: Tokens that the slots of a row may hold, [N] or one number for all.
            spare: So many more.
            impl: Implementation of the operations.
        """
        bias = None if self.in_place else self._retrieved_bias
        comes, token = keep_runs(self.slot_place, begin, counts, room, spare=spare, bias=bias, impl=impl)
        if not self.in_place:
            fetch_rows(rows, token, comes, self.retrieved, impl=impl)

    def fill(self, change: Change, rows: Tensor, place: Tensor, impl: str | None = None) -> None:
        """Make a change, the missing token of each slot being that of `rows` [N, T, Dk + Dv] at `place` [N, S]."""
        if not self.in_place:
            fetch_rows(rows, place, change.missing, self.retrieved, impl=impl)
        self.assign(change.place)

    def assign(self, slot_place: Tensor) -> None:
        """Write down what the retrieved slots hold from now on."""
        self.slot_place.copy_(slot_place)
        if not self.in_place:
            self._retrieved_bias.fill_(-torch.inf).masked_fill_(slot_place >= 0, 0)

    @property
    def _retrieved_bias(self) -> Tensor:
        """[N, num_retrieved], a view of the bias."""
        return self.bias[:, 0, self.num_sinks + self.window :]

    def forget_retrieved(self) -> None:
        """Empty all retrieved slots."""
        self.assign(torch.full_like(self.slot_place, -1))

    def blank(self, num_rows: int) -> "ResidentSet":
        """A set of the same sizes for so many rows, empty."""
        sizes = (self.num_sinks, self.window, self.num_retrieved, self.key_dim, self.rows.shape[2] - self.key_dim)
        return ResidentSet(num_rows, *sizes, self.rows.dtype, self.rows.device, self.in_place)

    def put_rows(self, rows: slice, other: "ResidentSet", others: slice) -> None:
        """Overwrite rows by those of another set of the same sizes, in place."""
        for name in ("rows", "bias", "lengths", "window_start", "slot_place"):
            getattr(self, name)[rows] = getattr(other, name)[others]

    def clear_rows(self, rows: slice) -> None:
        """Empty rows, in place; what their slots held stays there, closed."""
        self.bias[rows] = -torch.inf
        self.lengths[rows], self.window_start[rows], self.slot_place[rows] = 0, self.num_sinks, -1

    def select_rows(self, index: Tensor) -> None:
        """Make row i a copy of the former row `index[i]`."""
        size = self.rows.shape[1]
        for name in ("rows", "bias", "lengths", "window_start", "slot_place"):
            setattr(self, name, getattr(self, name).index_select(0, index))
        self.first_slot = torch.arange(len(index), device=self.rows.device) * size
