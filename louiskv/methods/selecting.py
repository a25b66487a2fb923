"""What a decode step retrieves: the best units, or the best tokens of the best units."""

import torch
from torch import Tensor

from louiskv.methods.look import Look
from louiskv.ops.selection import places_of, select_units


def select_whole(look: Look, room: Tensor, slot_place: Tensor, hold: float, recent_units: int) -> Tensor:
    """Take units by descending score; the one that crosses the budget is cut.

    Args:
        look: What the index says.
        room: [N] tokens to take.
        slot_place: [N, S] places of the resident tokens, -1 for none.
        hold: By how many nats the score of a unit that has resident tokens is raised.
        recent_units: Newest units that are taken in any case.

    Returns:
        [N, S] places in the pool, -1 for none.
    """
    index, scores = look.index, look.scores
    if hold:
        scores = scores + hold * (index.resident > 0)
    if recent_units:
        age = index.counts[:, None] - torch.arange(scores.shape[1], device=scores.device)
        scores = scores.masked_fill((age > 0) & (age <= recent_units), torch.inf)
    take = select_units(scores, index.sizes, room, impl=look.impl)
    return places_of(take, index.offsets, slot_place.shape[1])[0]


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
    index, num_slots = look.index, slot_place.shape[1]
    take = select_units(look.scores, index.sizes, room * oversample, impl=look.impl)
    best, unit = places_of(take, index.offsets, num_slots * oversample)
    held = slot_place.clamp(min=0).long()
    unit_held = index.unit_of(held)
    among_best = held - index.offsets.gather(1, unit_held) < take.gather(1, unit_held)
    resident = _among(best, slot_place)
    place = torch.cat([best, slot_place.long().masked_fill(among_best, -1)], dim=1)
    unit, resident = torch.cat([unit, unit_held], dim=1), torch.cat([resident, slot_place >= 0], dim=1)
    scores = look.token_scores(unit, place.clamp(min=0)) + hold * resident
    chosen = scores.masked_fill(place < 0, -torch.inf).topk(num_slots, dim=1)
    rank = torch.arange(num_slots, device=place.device)
    return place.gather(1, chosen.indices).where((rank < room[:, None]) & (chosen.values > -torch.inf), -1)


def _among(place: Tensor, slot_place: Tensor) -> Tensor:
    """[N, W] which of these places [N, W] are those [N, S] of resident tokens."""
    held = slot_place.to(place.dtype).sort(dim=1).values
    at = torch.searchsorted(held, place).clamp(max=held.shape[1] - 1)
    return (held.gather(1, at) == place) & (place >= 0)
