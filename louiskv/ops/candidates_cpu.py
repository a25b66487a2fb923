"""The single tokens that come into question, the best of them, and what is left of units, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_list_candidates = torch.ops.louiskv.list_candidates.default
_best_tokens = torch.ops.louiskv.best_tokens.default
_count_rest = torch.ops.louiskv.count_rest.default


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


def count_rest(place: Tensor, sizes: Tensor, units: tuple[Tensor, Tensor, Tensor | None, int]) -> Tensor:
    """As `louiskv.ops.candidates.count_rest`."""
    left: Tensor = _count_rest(place, sizes, *units[:2])
    return left


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


@native.fake("count_rest")
def _like_count_rest(_place: Tensor, sizes: Tensor, _unit_offsets: Tensor, _counts: Tensor) -> Tensor:
    return sizes.new_empty(sizes.shape)
