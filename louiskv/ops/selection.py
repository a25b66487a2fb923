"""Which units to retrieve: scores that a query group agrees on, the budgeted choice, and the slots that must change."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations
from louiskv.ops.quantize import signs_of
from louiskv.ops.ragged import left_aligned, take_rows

# How the query heads of a group agree on one score for a unit.
REDUCES = ("softmax_mean", "softmax_max", "share_mean", "logit_mean", "logit_max", "query_mean")


def unit_logits(
    query: Tensor,
    summaries: tuple[Tensor, ...],
    *,
    kind: str = "dot",
    scaling: float,
    where: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Estimate the logit that each query head gives to a token of each unit.

    By `kind` it is
    - "dot": `scaling q.c`, c its mean key;
    - "sketch": the same, c in few bits;
    - "bound": `scaling sum_j max(q_j high_j, q_j low_j)`, the most that a key in the box could reach (Quest);
    - "one_bit": `scaling q.k`, k the key of one token in one bit a channel (FIER).

    Args:
        query: [N, G, D].
        summaries: By `kind`: means [N, U, D]; codes of mean keys [N, U, D] and values [N, U, Dv] with steps [N, U, 3];
            boxes [N, U, 2 D], high before low; bits [N, U, ceil(D / 8)] with scales and middles [N, U / g, 2 D] of
            groups of g units.
        kind: What the summaries are.
        scaling: Factor of the logits.
        where: [N] rows for which it is asked, None for all; the others get anything.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, G, U] float32; anything for a unit without tokens.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("unit_logits", UNIT_LOGITS, impl, query)
    logits: Tensor = function(query, summaries, kind, scaling, where)
    return logits


def _unit_logits(
    query: Tensor, summaries: tuple[Tensor, ...], kind: str, scaling: float, _where: Tensor | None
) -> Tensor:
    return _LOGITS[kind](query * scaling, *summaries).float()


def unit_shares(logits: Tensor, sizes: Tensor, beside: Tensor | None = None, *, impl: str | None = None) -> Tensor:
    """The share of its attention that each query head gives to one token of each unit.

    Args:
        logits: [N, G, U] of a token of each unit.
        sizes: [N, U] tokens of each unit.
        beside: [N, G] log-sum-exp of the logits of all that is attended to beside the units; None for nothing.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, G, U] float32, logarithm of the share; -inf where there is no unit.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("unit_shares", UNIT_SHARES, impl, logits)
    shares: Tensor = function(logits, sizes, beside)
    return shares


def _unit_shares(logits: Tensor, sizes: Tensor, beside: Tensor | None) -> Tensor:
    total = (logits + sizes[:, None].log()).logsumexp(-1)
    if beside is not None:
        total = torch.logaddexp(total, beside)
    shares = logits - total.clamp(min=torch.finfo(torch.float32).min)[..., None]
    return shares.masked_fill((sizes == 0)[:, None], -torch.inf)


def agree(
    logits: Tensor, sizes: Tensor, reduce: str, *, where: Tensor | None = None, impl: str | None = None
) -> Tensor:
    """Let the heads of a query group agree on one score for each unit, so that they choose one set.

    The score is, by `reduce`, the logarithm of the mean or the maximum over the heads of the softmax over units (mean:
    the group-consistent selection of LouisKV, arXiv 2510.11292, section 4.3) or of the mean of shares, or the mean or
    maximum of the logits. As a logarithm even a share too small for a float still has its place in the order.

    Args:
        logits: [N, G, U]; for "share_mean" the logarithms of `unit_shares`, in which a head that attends elsewhere
            counts for less.
        sizes: [N, U] tokens of each unit; 0 where there is none.
        reduce: Of REDUCES; "query_mean" has one head left, the mean query.
        where: [N] rows for which it is asked, None for all; the others get anything.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, U] float32; a unit of size 0 scores -inf.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("agree", AGREE, impl, logits)
    scores: Tensor = function(logits, sizes, reduce, where)
    return scores


def _agree(logits: Tensor, sizes: Tensor, reduce: str, _where: Tensor | None) -> Tensor:
    logits = logits.masked_fill((sizes == 0)[:, None], -torch.inf)
    if reduce == "share_mean":
        return _log_mean(logits)
    if not reduce.startswith("softmax"):
        return logits.amax(1) if reduce.endswith("max") else logits.mean(1)
    shares = logits - logits.logsumexp(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    return shares.amax(1) if reduce.endswith("max") else _log_mean(shares)


def _log_mean(shares: Tensor) -> Tensor:
    """Logarithm of the mean over the heads, of logarithms [N, G, U]."""
    return shares.logsumexp(1) - math.log(shares.shape[1])


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
    """Score units [N, U] for a whole query group: `unit_logits`, then `agree`."""
    if reduce == "query_mean":
        query = query.mean(1, keepdim=True)
    logits = unit_logits(query, summaries, kind=kind, scaling=scaling, impl=impl)
    return agree(unit_shares(logits, sizes, impl=impl) if reduce == "share_mean" else logits, sizes, reduce, impl=impl)


def score_tokens(
    query: Tensor,
    shares: Tensor,
    bits: Tensor,
    steps: Tensor,
    unit: Tensor,
    place: Tensor,
    *,
    scaling: float,
    impl: str | None = None,
) -> Tensor:
    """Score single tokens: what their unit's mean key says, and one bit a channel of what each key is off it.

    The key of a token is estimated as `c + s sign(k - c)`, c its unit's mean key and s the unit's step.

    Args:
        query: [N, G, D].
        shares: [N, G, U] logarithm of the share of attention that each head gives to one token of each unit.
        bits: [N, T, ceil(D / 8)] signs of all tokens, in their places.
        steps: [N, U].
        unit: [N, W] units of the tokens to score.
        place: [N, W] their places, -1 for none.
        scaling: Factor of the logits.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, W] float32, logarithm of the mean share over the heads; anything where there is no token.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("score_tokens", SCORE_TOKENS, impl, query)
    scores: Tensor = function(query, shares, bits, steps, unit, place, scaling)
    return scores


def _score_tokens(
    query: Tensor, shares: Tensor, bits: Tensor, steps: Tensor, unit: Tensor, place: Tensor, scaling: float
) -> Tensor:
    heads, unit = query.shape[1], unit.long()
    signs = signs_of(take_rows(bits, place.clamp(min=0)), query.shape[-1], query.dtype)
    off = torch.bmm(query * scaling, signs.transpose(1, 2)).float() * steps.gather(1, unit)[:, None]
    return _log_mean(shares.gather(2, unit[:, None].expand(-1, heads, -1)) + off)


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
    signs = signs_of(bits, dim, query.dtype)
    spread = scale.repeat_interleave(group_size, dim=1)
    moved = torch.bmm(query, middle.transpose(1, 2)).repeat_interleave(group_size, dim=2)
    return torch.bmm(query, (signs * spread).transpose(1, 2)) + moved


def _sketch(query: Tensor, codes: Tensor, _values: Tensor, steps: Tensor) -> Tensor:
    # Before it is multiplied by the step, the sum leaves the range of float16.
    return torch.bmm(query.float(), codes.float().transpose(1, 2)) * steps[:, None, :, 0]


_LOGITS: dict[str, Callable[..., Tensor]] = {"dot": _dot, "bound": _bound, "one_bit": _one_bit, "sketch": _sketch}


def raise_newest(scores: Tensor, counts: Tensor, num: int, *, impl: str | None = None) -> Tensor:
    """Raise the scores of the newest units above all others.

    Args:
        scores: [N, U].
        counts: [N] int64, units of each row.
        num: How many of them are raised, the last ones.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, U] float32, infinite for the raised.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("raise_newest", RAISE_NEWEST, impl, scores)
    raised: Tensor = function(scores, counts, num)
    return raised


def _raise_newest(scores: Tensor, counts: Tensor, num: int) -> Tensor:
    age = counts[:, None] - torch.arange(scores.shape[1], device=scores.device)
    return scores.float().masked_fill((age > 0) & (age <= num), torch.inf)


def select_units(
    scores: Tensor,
    sizes: Tensor,
    budget: Tensor | int,
    *,
    where: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Take units by descending score until the budget is taken; the unit that crosses it is cut to fit.

    Args:
        scores: [N, U]; ties go to the lower index.
        sizes: [N, U] tokens of each unit.
        budget: [N] tokens to take for each row, or one number for all.
        where: [N] rows for which it is asked, None for all; the others get anything.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, U] tokens taken of each unit, in the dtype of `sizes`; rows sum to `min(budget, sizes.sum())`.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("select_units", SELECT_UNITS, impl, scores)
    take: Tensor = function(scores, sizes, budget, where)
    return take


def _select_units(scores: Tensor, sizes: Tensor, budget: Tensor | int, _where: Tensor | None) -> Tensor:
    # A GPU would sort -0 behind 0, which are a tie.
    order = (scores + 0.0).argsort(dim=1, descending=True, stable=True)
    ordered = sizes.gather(1, order)
    before = ordered.cumsum(1) - ordered
    left = (budget[:, None] if isinstance(budget, Tensor) else budget) - before
    take = left.clamp(min=0).minimum(ordered)
    return torch.zeros_like(sizes).scatter_(1, order, take.to(sizes.dtype))


def places_of(take: Tensor, offsets: Tensor, width: int, *, impl: str | None = None) -> tuple[Tensor, Tensor]:
    """Places of the first tokens of units, unit by unit.

    Args:
        take: [N, U] how many of each unit.
        offsets: [N, U] where each unit begins.
        width: Most places of a row; what is beyond is left out.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, width] int64 places, -1 behind the last of a row, and [N, width] int64 the units they belong to, any where
        there is none.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("places_of", PLACES_OF, impl, take)
    place, unit = function(take, offsets, width)
    return place, unit


def _places_of(take: Tensor, offsets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    through = take.cumsum(1)
    ordinal = torch.arange(width, device=take.device).expand(len(take), -1).contiguous()
    unit = torch.searchsorted(through, ordinal, right=True).clamp(max=take.shape[1] - 1)
    place = offsets.gather(1, unit) + ordinal - (through - take).gather(1, unit)
    return place.where(ordinal < through[:, -1:], -1), unit


def assign_slots(
    slot_place: Tensor,
    wanted: Tensor,
    *,
    where: Tensor | None = None,
    counts: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Change what the slots hold from one selection to the next, moving nothing that both contain.

    Args:
        slot_place: [N, S] place of the token in each slot, -1 where the slot is empty.
        wanted: [N, W] places wanted, each once, in any order, -1 for none; at most S of each row.
        where: [N] rows whose slots change, None for all; of the others anything may be wanted.
        counts: [2] int64, to which is added how many tokens these rows hold then, and how many of them are missing.
        bias: [N, S], set in these rows to 0 where a slot holds a token and to -inf where it is empty.
        out: [N, S] where the new `slot_place` is written, which may be the old one; None for a tensor of its own.
        impl: Implementation; None takes the best that can run.

    Returns:
        New `slot_place`, and [N, S] True where a slot must be filled from the pool.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("assign_slots", ASSIGN_SLOTS, impl, slot_place)
    place, missing = function(slot_place, wanted, where, counts, bias, out)
    return place, missing


def _assign_slots(
    slot_place: Tensor,
    wanted: Tensor,
    where: Tensor | None,
    counts: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    asked = torch.ones_like(slot_place[:, :1], dtype=torch.bool) if where is None else where[:, None]
    place, missing = _changed_slots(slot_place, wanted)
    place, missing = torch.where(asked, place, slot_place), missing & asked
    if counts is not None:
        counts += torch.stack([((place >= 0) & asked).sum(), missing.sum()])
    if bias is not None:
        bias.copy_(torch.where(asked, torch.zeros_like(bias).masked_fill(place < 0, -torch.inf), bias))
    return (place if out is None else out.copy_(place)), missing


def _changed_slots(slot_place: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    nowhere = torch.iinfo(wanted.dtype).max
    ordered = wanted.masked_fill(wanted < 0, nowhere).sort(dim=1).values
    last = ordered.shape[1] - 1
    at = torch.searchsorted(ordered, slot_place.to(ordered.dtype)).clamp(max=last)
    kept = (slot_place >= 0) & (ordered.gather(1, at) == slot_place)
    # Slots that keep nothing write into a column of their own.
    here = torch.zeros(len(ordered), last + 2, dtype=torch.bool, device=ordered.device)
    here = here.scatter_(1, at.where(kept, last + 1), True)[:, :-1]
    missing = ~here & (ordered != nowhere)
    first_missing, num_missing = left_aligned(missing)
    ordinal = (~kept).cumsum(1) - 1
    filled = ~kept & (ordinal < num_missing[:, None])
    fetched = ordered.gather(1, first_missing.gather(1, ordinal.clamp(0, last)))
    return torch.where(filled, fetched.to(slot_place.dtype), slot_place.masked_fill(~kept, -1)), filled


UNIT_LOGITS = implementations("selection", _unit_logits, ("triton", "cpu"))
UNIT_SHARES = implementations("selection", _unit_shares, ("triton", "cpu"))
AGREE = implementations("selection", _agree, ("triton", "cpu"))
SCORE_TOKENS = implementations("selection", _score_tokens, ("triton", "cpu"))
PLACES_OF = implementations("selection", _places_of, ("triton", "cpu"))
RAISE_NEWEST = implementations("selection", _raise_newest, ("triton", "cpu"))
SELECT_UNITS = implementations("selection", _select_units, ("cuda", "triton", "cpu"))
ASSIGN_SLOTS = implementations("selection", _assign_slots, ("cuda", "triton", "cpu"))
