"""Units that come into an index, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_OPS = torch.ops.louiskv
_summarise_units = _OPS.summarise_units.default
_append_units = _OPS.append_units.default
_keep_runs = _OPS.keep_runs.default


def summarise_units(rows: Tensor, sizes: Tensor, kind: str) -> Tensor:
    """As `louiskv.ops.units.summarise_units`."""
    dense = rows if rows.stride(-1) == 1 else rows.contiguous()
    summaries: Tensor = _summarise_units(dense, sizes, kind != "mean", kind == "volume")
    return summaries


def append_units(
    offsets: Tensor, sizes: Tensor, counts: Tensor, num_tokens: Tensor, begin: Tensor, new_sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `louiskv.ops.units.append_units`."""
    first, new, first_token, tokens = _append_units(offsets, sizes, counts, num_tokens, begin, new_sizes)
    return first, new, first_token, tokens


def keep_runs(
    slot_place: Tensor, begin: Tensor, counts: Tensor, room: Tensor | int, spare: int, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `louiskv.ops.units.keep_runs`."""
    of_rows, of_all = (room, spare) if isinstance(room, Tensor) else (None, room + spare)
    comes, token = _keep_runs(slot_place, begin, counts, of_rows, of_all, bias)
    return comes, token


@native.fake("summarise_units")
def _like_summarise_units(rows: Tensor, sizes: Tensor, two: bool, _volume: bool) -> Tensor:
    return rows.new_empty(*sizes.shape, rows.shape[2] * (2 if two else 1))


@native.fake("append_units")
def _like_append_units(_offsets: Tensor, _sizes: Tensor, counts: Tensor, *_others: object) -> tuple[Tensor, ...]:
    return tuple(counts.new_empty(counts.shape) for _ in range(4))


@native.fake("keep_runs")
def _like_keep_runs(slot_place: Tensor, *_others: object) -> tuple[Tensor, Tensor]:
    return slot_place.new_empty(slot_place.shape, dtype=torch.bool), slot_place.new_empty(slot_place.shape)
