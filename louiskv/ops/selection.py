"""Which units to retrieve: scores that a query group agrees on, the budgeted choice, and the slots that must change."""

import torch
from torch import Tensor

from louiskv.ops.dispatch import Implementation, choose


def score_units(query: Tensor, summaries: Tensor, sizes: Tensor, *, scaling: float, impl: str | None = None) -> Tensor:
    """Score units for a whole query group: the mean over its heads of the softmax over units of `scaling * q.c`.

    Group-consistent selection of LouisKV (arXiv 2510.11292, section 4.3): one score, hence one set, for one KV head.

    Args:
        query: [N, G, D].
        summaries: [N, U, D], the mean key of each unit.
        sizes: [N, U] tokens of each unit; 0 where there is none.
        scaling: Factor of the logits.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, U] float32; rows sum to 1, and a unit of size 0 scores 0.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("score_units", SCORE_UNITS, impl, query.device)
    scores: Tensor = function(query, summaries, sizes, scaling)
    return scores


def _score_units(query: Tensor, summaries: Tensor, sizes: Tensor, scaling: float) -> Tensor:
    logits = torch.bmm(query * scaling, summaries.transpose(1, 2))
    logits = logits.masked_fill((sizes == 0)[:, None], -torch.inf)
    return torch.softmax(logits, dim=-1, dtype=torch.float32).mean(1)


def select_units(scores: Tensor, sizes: Tensor, budget: int, *, impl: str | None = None) -> Tensor:
    """Take units by descending score until `budget` tokens are taken; the unit that crosses it is cut to fit.

    Args:
        scores: [N, U]; ties go to the lower index.
        sizes: [N, U] tokens of each unit.
        budget: Tokens to take for each row.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, U] tokens taken of each unit, in the dtype of `sizes`; rows sum to `min(budget, sizes.sum())`.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("select_units", SELECT_UNITS, impl, scores.device)
    take: Tensor = function(scores, sizes, budget)
    return take


def _select_units(scores: Tensor, sizes: Tensor, budget: int) -> Tensor:
    order = scores.argsort(dim=1, descending=True, stable=True)
    ordered = sizes.gather(1, order)
    before = ordered.cumsum(1) - ordered
    take = (budget - before).clamp(min=0).minimum(ordered)
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
