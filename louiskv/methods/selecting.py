"""What a decode step retrieves: the best units, or the best tokens of the best units."""

import torch
from torch import Tensor

from louiskv.methods.look import Look
from louiskv.ops.selection import places_of, raise_newest, select_units


def select_whole(look: Look, room: Tensor | int, slot_place: Tensor, hold: float, recent_units: int) -> Tensor:
    """Take units by descending score; the one that crosses the budget is cut.

    Args:
        look: What the index says.
        room: Tokens to take, of each row [N] or of all.
        slot_place: [N, S] places of the resident tokens, -1 for none.
        hold: By how many nats the score of a unit that has resident tokens is raised.
        recent_units: Newest units that are taken in any case.

    Returns:
        [N, S] places in the pool, -1 for none.
    """
    index, scores = look.index, look.scores
    if hold:
        scores = scores + hold * (look.num_resident[:, : scores.shape[1]] > 0)
    if recent_units:
        scores = raise_newest(scores, index.counts, recent_units, impl=look.impl)
    # In rows for which it is not asked, what is taken may be anything, and so may the places.
    take = select_units(scores, look.unit_sizes, room, where=look.where, impl=look.impl)
    return places_of(take, look.entries.offsets, slot_place.shape[1], impl=look.impl)[0]


def select_inside(look: Look, room: Tensor | int, slot_place: Tensor, hold: float, oversample: int) -> Tensor:
    """Take the best tokens among those of the best units and those that are resident.

    Args:
        look: What the index says.
        room: Tokens to take, of each row [N] or of all.
        slot_place: [N, S] places of the resident tokens, -1 for none.
        hold: By how many nats the score of a resident token is raised.
        oversample: Tokens looked at for each that is taken.

    Returns:
        [N, S] places in the pool, -1 for none.
    """
    entries, num_slots = look.entries, slot_place.shape[1]
    take = look.select(look.scores, room * oversample)
    best, entry = places_of(take, entries.offsets, num_slots * oversample, impl=look.impl)
    held = slot_place.clamp(min=0).long()
    entry_held = entries.entry_of(look.index.unit_of(held))
    seen, entry_held = (slot_place >= 0) & (entry_held >= 0), entry_held.clamp(min=0)
    among_best = held - entries.offsets.gather(1, entry_held) < take.gather(1, entry_held)
    place = torch.cat([best, held.masked_fill(~seen | among_best, -1)], dim=1)
    resident = torch.cat([look.is_resident(best), seen], dim=1)
    scores = look.token_scores(torch.cat([entry, entry_held], dim=1), place.clamp(min=0)) + hold * resident
    # Each token is a unit of one.
    single = (place >= 0).int()
    chosen = select_units(scores.masked_fill(place < 0, -torch.inf), single, room, impl=look.impl)
    which = torch.arange(place.shape[1], device=place.device).expand_as(place).contiguous()
    first, _ = places_of(chosen, which, num_slots, impl=look.impl)
    return place.gather(1, first.clamp(min=0)).where(first >= 0, -1)
