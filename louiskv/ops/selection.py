"""Which units to retrieve: scores that a query group agrees on, the budgeted choice, and the slots that must change."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from louiskv.ops.dispatch import Implementation, choose
from louiskv.ops.quantize import unpack_bits

# How the query heads of a group agree on one score for a unit.
REDUCES = ("softmax_mean", "softmax_max", "logit_mean", "logit_max", "query_mean")


def score_units(
    query: Tensor,
    summaries: tuple[Tensor, ...],
    sizes: Tensor,
    *,
    kind: str = "dot",
    reduce: str = "softmax_mean",
    scaling: float,
    impl: str | None = None,
) -> Tensor:
    """Score units for a whole query group, so that it agrees on one set.

    The logit of a unit is, by `kind`,
    - "dot": `scaling q.c`, c its mean key;
    - "bound": `scaling sum_j max(q_j high_j, q_j low_j)`, the most that a key in the box could reach (Quest);
    - "one_bit": `scaling q.k`, k the key of one token in one bit a channel (FIER).
    The score is, by `reduce`, the logarithm of the mean or the maximum over the heads of the softmax over units (mean:
    the group-consistent selection of LouisKV, arXiv 2510.11292, section 4.3), or the mean or maximum of the logits, or
    the logit of the mean query. As a logarithm even a share too small for a float still has its place in the order.

    Args:
        query: [N, G, D].
        summaries: By `kind`: means [N, U, D]; boxes [N, U, 2 D], high before low; bits [N, U, ceil(D / 8)] with scales
            and middles [N, U / g, 2 D] of groups of g units.
        sizes: [N, U] tokens of each unit; 0 where there is none.
        kind: What the summaries are.
        reduce: How the group agrees.
        scaling: Factor of the logits.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, U] float32; a unit of size 0 scores -inf.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("score_units", SCORE_UNITS, impl, query.device)
    scores: Tensor = function(query, summaries, sizes, kind, reduce, scaling)
    return scores


def _score_units(
    query: Tensor, summaries: tuple[Tensor, ...], sizes: Tensor, kind: str, reduce: str, scaling: float
) -> Tensor:
    if reduce == "query_mean":
        query = query.mean(1, keepdim=True)
    logits = _LOGITS[kind](query * scaling, *summaries)
    logits = logits.float().masked_fill((sizes == 0)[:, None], -torch.inf)
    if not reduce.startswith("softmax"):
        return logits.amax(1) if reduce.endswith("max") else logits.mean(1)
    shares = logits - logits.logsumexp(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    return shares.amax(1) if reduce.endswith("max") else shares.logsumexp(1) - math.log(query.shape[1])


def _dot(query: Tensor, means: Tensor) -> Tensor:
    return torch.bmm(query, means.transpose(1, 2))


def _bound(query: Tensor, boxes: Tensor) -> Tensor:
    # Unscaled, the sum leaves the range of 16 bits. Where q_j is positive the greatest key reaches most, otherwise the
    # least.
    query, boxes = query.float(), boxes.float()
    halves = torch.cat([query.clamp(min=0), query.clamp(max=0)], dim=-1)
    return torch.bmm(halves, boxes.transpose(1, 2))


def _one_bit(query: Tensor, bits: Tensor, scales: Tensor) -> Tensor:
    num_units, dim = bits.shape[1], query.shape[-1]
    scale, middle = scales.split(dim, dim=-1)
    group_size = num_units // scales.shape[1]
    signs = unpack_bits(bits, dim).to(query.dtype) * 2 - 1
    spread = scale.repeat_interleave(group_size, dim=1)
    moved = torch.bmm(query, middle.transpose(1, 2)).repeat_interleave(group_size, dim=2)
    return torch.bmm(query, (signs * spread).transpose(1, 2)) + moved


_LOGITS: dict[str, Callable[..., Tensor]] = {"dot": _dot, "bound": _bound, "one_bit": _one_bit}


def select_units(scores: Tensor, sizes: Tensor, budget: Tensor | int, *, impl: str | None = None) -> Tensor:
    """Take units by descending score until the budget is taken; the unit that crosses it is cut to fit.

    Args:
        scores: [N, U]; ties go to the lower index.
        sizes: [N, U] tokens of each unit.
        budget: [N] tokens to take for each row, or one number for all.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, U] tokens taken of each unit, in the dtype of `sizes`; rows sum to `min(budget, sizes.sum())`.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("select_units", SELECT_UNITS, impl, scores.device)
    take: Tensor = function(scores, sizes, budget)
    return take


def _select_units(scores: Tensor, sizes: Tensor, budget: Tensor | int) -> Tensor:
    order = scores.argsort(dim=1, descending=True, stable=True)
    ordered = sizes.gather(1, order)
    before = ordered.cumsum(1) - ordered
    left = (budget[:, None] if isinstance(budget, Tensor) else budget) - before
    take = left.clamp(min=0).minimum(ordered)
    return torch.zeros_like(sizes).scatter_(1, order, take.to(sizes.dtype))


def assign_slots(
    slot_unit: Tensor, slot_rank: Tensor, have: Tensor, take: Tensor, *, impl: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Change what the slots hold from one selection to the next, moving nothing that both contain.

    Of each unit a prefix is resident: ranks 0 to `have - 1` before, 0 to `take - 1` after.

    Args:
        slot_unit: [N, S] unit of the token in each slot, -1 where the slot is empty.
        slot_rank: [N, S] rank of that token in its unit.
        have: [N, U] tokens resident of each unit.
        take: [N, U] tokens wanted of each unit; rows sum to at most S.
        impl: Implementation; None takes the best that can run.

    Returns:
        New `slot_unit`, new `slot_rank`, and [N, S] True where a slot must be filled from the host.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("assign_slots", ASSIGN_SLOTS, impl, slot_unit.device)
    unit, rank, fetched = function(slot_unit, slot_rank, have, take)
    return unit, rank, fetched


def _assign_slots(slot_unit: Tensor, slot_rank: Tensor, have: Tensor, take: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    unit_of_slot = slot_unit.clamp(min=0).long()
    kept = (slot_unit >= 0) & (slot_rank < take.gather(1, unit_of_slot))
    missing = (take - have).clamp(min=0)
    through = missing.cumsum(1)
    ordinal = (~kept).cumsum(1) - 1
    fetched = ~kept & (ordinal < through[:, -1:])
    unit = torch.searchsorted(through, ordinal, right=True).clamp(max=take.shape[1] - 1)
    first_missing = take.minimum(have).gather(1, unit)
    rank = first_missing + ordinal - (through - missing).gather(1, unit)
    empty = torch.full_like(slot_unit, -1)
    new_unit = torch.where(fetched, unit.to(slot_unit.dtype), torch.where(kept, slot_unit, empty))
    new_rank = torch.where(fetched, rank.to(slot_rank.dtype), slot_rank)
    return new_unit, new_rank, fetched


SCORE_UNITS = (Implementation("torch", _score_units),)
SELECT_UNITS = (Implementation("torch", _select_units),)
ASSIGN_SLOTS = (Implementation("torch", _assign_slots),)
