"""Windows and their runs, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_OPS = torch.ops.louiskv
_cut_runs = _OPS.cut_runs.default
_oldest_runs = _OPS.oldest_runs.default
_room_beside = _OPS.room_beside.default
_take_runs = _OPS.take_runs.default
_release_runs = _OPS.release_runs.default


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


def take_runs(
    rows: Tensor, first: Tensor, width: int, num_sinks: int, window: int, order: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `louiskv.ops.windows.take_runs`."""
    taken = torch.empty(len(rows), width, rows.shape[2], dtype=rows.dtype)
    return taken, _take_runs(rows, first, taken, num_sinks, window, order)


def release_runs(bias: Tensor, first: Tensor, counts: Tensor, num_sinks: int, window: int) -> None:
    """As `louiskv.ops.windows.release_runs`."""
    _release_runs(bias, first, counts, num_sinks, window)


@native.fake("release_runs")
@native.fake("cut_runs")
def _nothing(*_arguments: object) -> None:
    return None


@native.fake("take_runs")
def _like_take_runs(_rows: Tensor, first: Tensor, taken: Tensor, *_others: object) -> Tensor:
    return first.new_empty(taken.shape[:2], dtype=torch.int32)


@native.fake("oldest_runs")
def _like_oldest_runs(_starts: Tensor, first: Tensor, *_others: object) -> Tensor:
    return first.new_empty(first.shape)


@native.fake("room_beside")
def _like_room_beside(first: Tensor, *_others: object) -> Tensor:
    return first.new_empty(first.shape)
