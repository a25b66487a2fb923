"""Which units to retrieve, in C++."""

from collections.abc import Callable

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_OPS = torch.ops.louiskv
_dot = _OPS.dot_logits.default
_sketch = _OPS.sketch_logits.default
_bound = _OPS.bound_logits.default
_one_bit = _OPS.one_bit_logits.default
_unit_shares = _OPS.unit_shares.default
_agree = _OPS.agree.default
_score_tokens = _OPS.score_tokens.default
_raise_newest = _OPS.raise_newest.default
_select_units = _OPS.select_units.default
_places_of = _OPS.places_of.default
_assign_slots = _OPS.assign_slots.default

# By `reduce`: whether by softmax over the units, and whether the logarithm of the mean, or the maximum.
_REDUCES = {
    "softmax_mean": (True, True, False),
    "softmax_max": (True, False, True),
    "share_mean": (False, True, False),
    "logit_mean": (False, False, False),
    "logit_max": (False, False, True),
    "query_mean": (False, False, False),
}


def unit_logits(
    query: Tensor, summaries: tuple[Tensor, ...], kind: str, scaling: float, where: Tensor | None
) -> Tensor:
    """As `louiskv.ops.selection.unit_logits`."""
    logits: Tensor = _LOGITS[kind](query, *summaries, scaling, where)
    return logits


def _sketch_logits(
    query: Tensor, codes: Tensor, _values: Tensor, steps: Tensor, scaling: float, where: Tensor | None
) -> Tensor:
    logits: Tensor = _sketch(query, codes, steps, scaling, where)
    return logits


_LOGITS: dict[str, Callable[..., Tensor]] = {
    "dot": _dot,
    "sketch": _sketch_logits,
    "bound": _bound,
    "one_bit": _one_bit,
}


def unit_shares(logits: Tensor, sizes: Tensor, beside: Tensor | None) -> Tensor:
    """As `louiskv.ops.selection.unit_shares`."""
    shares: Tensor = _unit_shares(logits, sizes, beside)
    return shares


def agree(logits: Tensor, sizes: Tensor, reduce: str, where: Tensor | None) -> Tensor:
    """As `louiskv.ops.selection.agree`."""
    scores: Tensor = _agree(logits, sizes, *_REDUCES[reduce], where)
    return scores


def score_tokens(
    query: Tensor, shares: Tensor, bits: Tensor, steps: Tensor, unit: Tensor, place: Tensor, scaling: float
) -> Tensor:
    """As `louiskv.ops.selection.score_tokens`."""
    scores: Tensor = _score_tokens(query, shares, bits, steps, unit, place, scaling)
    return scores


def raise_newest(scores: Tensor, counts: Tensor, num: int) -> Tensor:
    """As `louiskv.ops.selection.raise_newest`."""
    raised: Tensor = _raise_newest(scores, counts, num)
    return raised


def select_units(scores: Tensor, sizes: Tensor, budget: Tensor | int, where: Tensor | None) -> Tensor:
    """As `louiskv.ops.selection.select_units`."""
    of_rows, of_all = (budget, 0) if isinstance(budget, Tensor) else (None, budget)
    take: Tensor = _select_units(scores, sizes, of_rows, of_all, where)
    return take


def places_of(take: Tensor, offsets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """As `louiskv.ops.selection.places_of`."""
    place, unit = _places_of(take, offsets, width)
    return place, unit


def assign_slots(
    slot_place: Tensor,
    wanted: Tensor,
    where: Tensor | None,
    counts: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `louiskv.ops.selection.assign_slots`."""
    place = torch.empty(slot_place.shape, dtype=slot_place.dtype) if out is None else out
    return place, _assign_slots(slot_place, wanted, where, place, counts, bias)


@native.fake("dot_logits")
@native.fake("sketch_logits")
@native.fake("bound_logits")
@native.fake("one_bit_logits")
def _like_logits(query: Tensor, units: Tensor, *_others: object) -> Tensor:
    return query.new_empty(*query.shape[:2], units.shape[1], dtype=torch.float32)


@native.fake("unit_shares")
def _like_unit_shares(logits: Tensor, _sizes: Tensor, _beside: Tensor | None) -> Tensor:
    return logits.new_empty(logits.shape, dtype=torch.float32)


@native.fake("agree")
def _like_agree(logits: Tensor, *_others: object) -> Tensor:
    return logits.new_empty(logits.shape[0], logits.shape[2], dtype=torch.float32)


@native.fake("score_tokens")
def _like_score_tokens(
    query: Tensor, _shares: Tensor, _bits: Tensor, _steps: Tensor, _unit: Tensor, place: Tensor, _scaling: float
) -> Tensor:
    return query.new_empty(place.shape, dtype=torch.float32)


@native.fake("raise_newest")
def _like_raise_newest(scores: Tensor, _counts: Tensor, _num: int) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.float32)


@native.fake("select_units")
def _like_select_units(_scores: Tensor, sizes: Tensor, *_others: object) -> Tensor:
    return sizes.new_empty(sizes.shape)


@native.fake("places_of")
def _like_places_of(take: Tensor, _offsets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    shape = (take.shape[0], width)
    return take.new_empty(shape, dtype=torch.int64), take.new_empty(shape, dtype=torch.int64)


@native.fake("assign_slots")
def _like_assign_slots(slot_place: Tensor, *_others: object) -> Tensor:
    return slot_place.new_empty(slot_place.shape, dtype=torch.bool)
