"""Which single tokens to retrieve: those that come into question, and the best of them; and what is left of units."""

from typing import NamedTuple

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations
from louiskv.ops.selection import places_of, select_units


class UnitTable(NamedTuple):
    """Where all units of an index lie, and which of them are entries of a step.

    Attributes:
        offsets: [N, U] int32 where each unit begins: the units lie side by side, in their order, from place 0 on.
        counts: [N] units of each row; of what is behind them `offsets` may say anything.
        first_entry: [N, U / stretch] int32, for each stretch of units the entry that its first unit is, -1 where they
            are none; the others are the entries that follow. None where unit u is entry u.
        stretch: Units side by side that are entries side by side.
    """

    offsets: Tensor
    counts: Tensor
    first_entry: Tensor | None = None
    stretch: int = 1

    def find(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Entries [N, S] int64 of the tokens at places [N, S], -1 for none, and their numbers [N, S] in their units."""
        at, number = place.clamp(min=0).long(), torch.arange(self.offsets.shape[1], device=place.device)
        begin = self.offsets.long().masked_fill(number >= self.counts[:, None], torch.iinfo(torch.int64).max)
        found = torch.searchsorted(begin, at, right=True) - 1
        unit = found.clamp(min=0)
        entry = unit if self.first_entry is None else self._entry_of(unit, self.first_entry)
        return entry.masked_fill((place < 0) | (found < 0), -1), at - begin.gather(1, unit)

    def _entry_of(self, unit: Tensor, first_entry: Tensor) -> Tensor:
        stretch = torch.div(unit, self.stretch, rounding_mode="floor")
        first = first_entry.long().gather(1, stretch)
        return torch.where(first >= 0, first + unit - stretch * self.stretch, -1)


def list_candidates(
    take: Tensor, offsets: Tensor, slot_place: Tensor, units: UnitTable, width: int, *, impl: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """List the tokens that come into question: the first tokens of entries, and what else of the entries is resident.

    The first `width` are the first that are taken, entry by entry; the other S are those of the slots, in their order.

    Args:
        take: [N, E] how many tokens of each entry.
        offsets: [N, E] where each entry begins.
        slot_place: [N, S] places of the resident tokens, each once, -1 for none.
        units: Which entry a resident token is of.
        width: Most tokens taken of a row; what is beyond is left out.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, width + S] places, -1 for none, in the dtype of `slot_place`; their entries, 0 for none, alike; and whether
        they are resident, bool. A token stands in the list once.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("list_candidates", LIST_CANDIDATES, impl, slot_place)
    place, entry, resident = function(take, offsets, slot_place, units, width)
    return place, entry, resident


def _list_candidates(
    take: Tensor, offsets: Tensor, slot_place: Tensor, units: UnitTable, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = slot_place.dtype
    place, entry = places_of(take, offsets, width, impl="torch")
    held, within = units.find(slot_place)
    counts = take.gather(1, held.clamp(min=0)).long()
    before = (take.cumsum(1) - take).gather(1, held.clamp(min=0))
    taken = (held >= 0) & (within < counts) & (before + within < width)
    # What is not taken writes into a column of its own.
    is_held = torch.zeros(len(take), width + 1, dtype=torch.bool, device=take.device)
    is_held = is_held.scatter_(1, (before + within).where(taken, width), True)[:, :width]
    others = (held >= 0) & ~taken
    places = torch.cat([place.to(dtype), slot_place.where(others, -1)], dim=1)
    entries = torch.cat([entry.where(place >= 0, 0), held.where(others, 0)], dim=1)
    return places, entries.to(dtype), torch.cat([is_held, others], dim=1)


def best_tokens(
    scores: Tensor,
    place: Tensor,
    resident: Tensor,
    room: Tensor,
    num_wanted: int,
    *,
    hold: float,
    impl: str | None = None,
) -> Tensor:
    """Take the tokens that score best, resident ones with a start.

    Args:
        scores: [N, W] float32.
        place: [N, W] places, -1 for none.
        resident: [N, W] bool.
        room: [N] how many to take.
        num_wanted: Most places of a row; of more that are taken, the last listed are left out.
        hold: What is added to the score of a resident token.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, num_wanted] places in the dtype of `place` and in the order of the list, -1 behind the last; of tokens with
        one score those that are listed first.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("best_tokens", BEST_TOKENS, impl, scores)
    wanted: Tensor = function(scores, place, resident, room, num_wanted, hold)
    return wanted


def _best_tokens(scores: Tensor, place: Tensor, resident: Tensor, room: Tensor, num_wanted: int, hold: float) -> Tensor:
    # Each token is a unit of one.
    single = (place >= 0).int()
    held = (scores + hold * resident).masked_fill(place < 0, -torch.inf)
    chosen = select_units(held, single, room, impl="torch")
    number = torch.arange(place.shape[1], device=place.device).expand_as(place).contiguous()
    which, _ = places_of(chosen, number, num_wanted, impl="torch")
    return place.gather(1, which.clamp(min=0)).where(which >= 0, -1)


def count_rest(place: Tensor, sizes: Tensor, units: UnitTable, *, impl: str | None = None) -> Tensor:
    """Count what is left of each unit without some of its tokens.

    Args:
        place: [N, S] places of these tokens, each once, -1 for none.
        sizes: [N, U] tokens of each unit.
        units: Where the units lie; of which entries they are it need say nothing.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, U] in the dtype of `sizes`.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("count_rest", COUNT_REST, impl, place)
    left: Tensor = function(place, sizes, units)
    return left


def _count_rest(place: Tensor, sizes: Tensor, units: UnitTable) -> Tensor:
    unit, _ = UnitTable(units.offsets, units.counts).find(place)
    return sizes.scatter_add(1, unit.clamp(min=0), -(unit >= 0).to(sizes.dtype))


LIST_CANDIDATES = implementations("candidates", _list_candidates, ("cuda", "cpu"))
BEST_TOKENS = implementations("candidates", _best_tokens, ("cuda", "cpu"))
COUNT_REST = implementations("candidates", _count_rest, ("cuda", "triton", "cpu"))
