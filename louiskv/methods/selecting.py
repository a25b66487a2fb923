"""What a decode step retrieves: the best units, or the best tokens of the best units."""

from torch import Tensor

from louiskv.methods.look import Look
from louiskv.ops.candidates import best_tokens, list_candidates
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


def select_inside(look: Look, room: Tensor, slot_place: Tensor, hold: float, oversample: int) -> Tensor:
    """Take the best tokens among those of the best units and those that are resident.

    Args:
        look: What the index says.
        room: [N] tokens to take.
        slot_place: [N, S] places of the resident tokens, -1 for none.
        hold: By how many nats the score of a resident token is raised.
        oversample: Tokens looked at for each that is taken.

    Returns:
        [N, S] places in the pool, -1 for none.
    """
    entries, impl, num_slots = look.entries, look.impl, slot_place.shape[1]
    take = look.select(look.scores, room * oversample)
    width = num_slots * oversample
    place, entry, resident = list_candidates(take, entries.offsets, slot_place, entries.table, width, impl=impl)
    scores = look.token_scores(entry, place)
    return best_tokens(scores, place, resident, room, num_slots, hold=hold, impl=impl)
