"""The single tokens that come into question, and the best of them, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_list_candidates = torch.ops.louiskv.list_candidates.default
_best_tokens = torch.ops.louiskv.best_tokens.default


def list_candidates(
    take: Tensor, offsets: Tensor, slot_place: Tensor, units: tuple[Tensor, Tensor, Tensor | None, int], width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `louiskv.ops.candidates.list_candidates`."""
    place, entry, resident = _list_candidates(take, offsets, slot_place, *units, width)
    return place, entry, resident


def best_tokens(scores: Tensor, place: Tensor, resident: Tensor, room: Tensor, num_wanted: int, hold: float) -> Tensor:
    """As `louiskv.ops.candidates.best_tokens`."""
    wanted: Tensor = _best_tokens(scores, place, resident, room, num_wanted, hold)
    return wanted


@native.fake("list_candidates")
def _like_list_candidates(
    _take: Tensor,
    _offsets: Tensor,
    slot_place: Tensor,
    _unit_offsets: Tensor,
    _counts: Tensor,
    _first_entry: Tensor | None,
    _stretch: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (slot_place.shape[0], width + slot_place.shape[1])
    place, entry = slot_place.new_empty(shape), slot_place.new_empty(shape)
    return place, entry, slot_place.new_empty(shape, dtype=torch.bool)


@native.fake("best_tokens")
def _like_best_tokens(
    _scores: Tensor, place: Tensor, _resident: Tensor, _room: Tensor, num_wanted: int, _hold: float
) -> Tensor:
    return place.new_empty(place.shape[0], num_wanted)
