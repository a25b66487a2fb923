"""Windows and their runs, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_OPS = torch.ops.louiskv
_cut_runs = _OPS.cut_runs.default
_oldest_runs = _OPS.oldest_runs.default
_room_beside = _OPS.room_beside.default


def cut_runs(starts: Tensor, opened: Tensor, lengths: Tensor, boundary: Tensor, shortest: int, longest: int) -> None:
    """As `louiskv.ops.windows.cut_runs`."""
    _cut_runs(starts, opened, lengths, boundary, shortest, longest)


def oldest_runs(starts: Tensor, first: Tensor, end: Tensor, shortest: int, longest: int, most: int) -> Tensor:
    """As `louiskv.ops.windows.oldest_runs`."""
    counts: Tensor = _oldest_runs(starts, first, end, shortest, longest, most)
    return counts


def room_beside(first: Tensor, end: Tensor, budget: int, window: int, coming: int, taken_by: int, most: int) -> Tensor:
    """As `louiskv.ops.windows.room_beside`."""
    room: Tensor = _room_beside(first, end, budget, window, coming, taken_by, most)
    return room


@native.fake("cut_runs")
def _nothing(*_arguments: object) -> None:
    return None


@native.fake("room_beside")
def _like_first(first: Tensor, *_others: object) -> Tensor:
    return first.new_empty(first.shape)


@native.fake("oldest_runs")
def _like_oldest_runs(_starts: Tensor, first: Tensor, *_others: object) -> Tensor:
    return first.new_empty(first.shape)
