"""The choice of units in Triton; the scores by which they are chosen, and the slots, are in files of their own."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.logits_triton import score_tokens, unit_logits
from louiskv.ops.shares_triton import agree, unit_shares
from louiskv.ops.slots_triton import assign_slots
from louiskv.ops.triton_functions import NONE, first_over, order_of
from louiskv.ops.triton_runtime import as_bytes, dense, kernel

__all__ = [
    "agree",
    "assign_slots",
    "places_of",
    "raise_newest",
    "score_tokens",
    "select_units",
    "unit_logits",
    "unit_shares",
]

# Most units of a row that are read once and kept in registers, and how many are read at a time where there are more.
WHOLE = 8192
BLOCK = 8192
NEVER = tl.constexpr(-(2**31))
ALWAYS = 2**31 - 1


@kernel(
    checks=tuple(
        {"scores": "*fp32", "sizes": sizes, "budgets": budgets, "where": "*u8", "take": sizes, "budget": "i32"}
        | {"num_units": "i32", "scores_row": "i32", "sizes_row": "i32", "whole": whole, "block": block}
        for sizes, budgets, whole, block in (
            ("*i32", "*i64", True, 1024),
            ("*i64", None, True, 8192),
            ("*i32", "*i64", False, 8192),
        )
    ),
    configs=({"num_warps": 16, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["budget", "num_units", "scores_row", "sizes_row"])
def _select(
    scores: tl.tensor,
    sizes: tl.tensor,
    budgets: tl.tensor,
    where: tl.tensor,
    take: tl.tensor,
    budget: tl.tensor,
    num_units: tl.tensor,
    scores_row: tl.tensor,
    sizes_row: tl.tensor,
    whole: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Halve the range of scores until the one is found at which the budget is reached; at it the first units come."""
    row = tl.program_id(0).to(tl.int64)
    if where is not None:
        if tl.load(where + row) == 0:
            return
    scores += row * scores_row
    sizes += row * sizes_row
    left = budget
    if budgets is not None:
        left = tl.minimum(tl.load(budgets + row), 2147483647).to(tl.int32)
    order, size = _read(scores, sizes, 0, num_units, block)
    # Half of all integers are not under 0; then half of what is left, bit by bit.
    threshold = NEVER
    if _tokens(order, size, scores, sizes, 0, num_units, whole, block) >= left:
        threshold = 0
    for bit in range(31):
        candidate = threshold + (1 << (30 - bit))
        tokens = _tokens(order, size, scores, sizes, candidate, num_units, whole, block)
        threshold = tl.where(tokens >= left, candidate, threshold)
    over = tl.minimum(threshold, 2147483646) + 1
    left -= _tokens(order, size, scores, sizes, over, num_units, whole, block)
    for start in range(0, num_units, block):
        if not whole:
            order, size = _read(scores, sizes, start, num_units, block)
        tied = tl.where(order == threshold, size, 0)
        cut = tl.minimum(tl.maximum(left - (tl.cumsum(tied, 0) - tied), 0), tied)
        left -= tl.sum(tied, 0)
        unit = start + tl.arange(0, block)
        taken = tl.where(order > threshold, size, cut)
        tl.store(take + row * num_units + unit, taken.to(take.dtype.element_ty), mask=unit < num_units)


@triton.jit
def _tokens(
    order: tl.tensor,
    size: tl.tensor,
    scores: tl.tensor,
    sizes: tl.tensor,
    least: tl.tensor,
    num_units: tl.tensor,
    whole: tl.constexpr,
    block: tl.constexpr,
) -> tl.tensor:
    """Tokens of the units whose scores are not under the least, the first of which have been read."""
    tokens = tl.sum(tl.where(order >= least, size, 0), 0)
    if not whole:
        for start in range(block, num_units, block):
            further, more = _read(scores, sizes, start, num_units, block)
            tokens += tl.sum(tl.where(further >= least, more, 0), 0)
    return tokens


@triton.jit
def _read(
    scores: tl.tensor, sizes: tl.tensor, start: tl.tensor, num_units: tl.tensor, block: tl.constexpr
) -> tl.tensor:
    """Scores of some units as integers, and their sizes."""
    unit = start + tl.arange(0, block)
    score = tl.load(scores + unit, mask=unit < num_units, other=NONE).to(tl.float32)
    size = tl.load(sizes + unit, mask=unit < num_units, other=0).to(tl.int32)
    return order_of(score), size


def select_units(scores: Tensor, sizes: Tensor, budget: Tensor | int, where: Tensor | None) -> Tensor:
    """Twin of the reference; rows hold less than 2^31 tokens."""
    num_rows, num_units = scores.shape
    scores, sizes = dense(scores), dense(sizes)
    take = sizes.new_empty(sizes.shape)
    budgets, number = (dense(budget), 0) if isinstance(budget, Tensor) else (None, max(0, min(budget, ALWAYS)))
    whole = num_units <= WHOLE
    block = max(1024, triton.next_power_of_2(num_units)) if whole else BLOCK
    _select[num_rows,](
        scores,
        sizes,
        budgets,
        as_bytes(where),
        take,
        number,
        num_units,
        scores.stride(0),
        sizes.stride(0),
        whole,
        block,
    )
    return take


@kernel(
    checks=(
        {"scores": "*fp32", "counts": "*i64", "raised": "*fp32"}
        | dict.fromkeys(("scores_row", "num_units", "num"), "i32"),
    ),
    configs=({"block": 1024, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["scores_row", "num_units", "num"])
def _raise(
    scores: tl.tensor,
    counts: tl.tensor,
    raised: tl.tensor,
    scores_row: tl.tensor,
    num_units: tl.tensor,
    num: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Raise some units of a row."""
    row = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * block + tl.arange(0, block)
    age = tl.load(counts + row) - unit
    score = tl.load(scores + row * scores_row + unit, mask=unit < num_units, other=0.0).to(tl.float32)
    score = tl.where((age > 0) & (age <= num), float("inf"), score)
    tl.store(raised + row * num_units + unit, score, mask=unit < num_units)


def raise_newest(scores: Tensor, counts: Tensor, num: int) -> Tensor:
    """Twin of the reference."""
    num_rows, num_units = scores.shape
    scores = dense(scores)
    raised = scores.new_empty(scores.shape, dtype=torch.float32)
    grid = (num_rows, triton.cdiv(num_units, 1024))
    _raise[grid](scores, dense(counts), raised, scores.stride(0), num_units, num)
    return raised


@kernel(
    checks=(
        {"through": "*i64", "take": "*i32", "offsets": "*i32", "place": "*i64", "unit": "*i64"}
        | dict.fromkeys(("take_row", "offsets_row", "num_units", "halvings", "width"), "i32"),
    ),
    configs=({"block": 256, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["take_row", "offsets_row", "num_units", "halvings", "width"])
def _place(
    through: tl.tensor,
    take: tl.tensor,
    offsets: tl.tensor,
    place: tl.tensor,
    unit: tl.tensor,
    take_row: tl.tensor,
    offsets_row: tl.tensor,
    num_units: tl.tensor,
    halvings: tl.tensor,
    width: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Units and places of the tokens with some ordinals."""
    row = tl.program_id(0).to(tl.int64)
    ordinal = tl.program_id(1) * block + tl.arange(0, block)
    through += row * num_units
    found = tl.minimum(first_over(through, num_units, halvings, ordinal), num_units - 1)
    before = tl.load(through + found) - tl.load(take + row * take_row + found)
    at = tl.load(offsets + row * offsets_row + found) + ordinal - before
    at = tl.where(ordinal < tl.load(through + num_units - 1), at, -1)
    tl.store(place + row * width + ordinal, at.to(tl.int64), mask=ordinal < width)
    tl.store(unit + row * width + ordinal, found.to(tl.int64), mask=ordinal < width)


def places_of(take: Tensor, offsets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Twin of the reference."""
    num_rows, num_units = take.shape
    take, offsets = dense(take), dense(offsets)
    place = take.new_empty(num_rows, width, dtype=torch.int64)
    unit = torch.empty_like(place)
    sizes = (take.stride(0), offsets.stride(0), num_units, num_units.bit_length(), width)
    _place[num_rows, triton.cdiv(width, 256)](take.cumsum(1), take, offsets, place, unit, *sizes)
    return place, unit
