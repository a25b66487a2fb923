"""The budgeted choice of units, and the slots that it changes, in CUDA."""

import torch
from torch import Tensor

from louiskv.errors import ImplementationError
from louiskv.ops import nvcc

_WHOLE = (torch.int32, torch.int64)


def select_units(scores: Tensor, sizes: Tensor, budget: Tensor | int, where: Tensor | None) -> Tensor:
    """As `louiskv.ops.selection.select_units`; what is chosen where it is not asked for is not written.

    Scores are floats of at most 32 bits; a row has fewer than 2^31 tokens if the sizes are int32.

    Raises:
        ImplementationError: A dtype or a device is another.
    """
    if isinstance(budget, Tensor):
        taken: Tensor = _select_units(scores, sizes, budget, 0, where)
    else:
        taken = _select_units(scores, sizes, None, budget, where)
    return taken


def _like_select_units(
    _scores: Tensor, sizes: Tensor, _budgets: Tensor | None, _budget: int, _where: Tensor | None
) -> Tensor:
    return torch.empty(sizes.shape, dtype=sizes.dtype, device=sizes.device)


@nvcc.operation(
    "select_units(Tensor scores, Tensor sizes, Tensor? budgets, int budget, Tensor? where) -> Tensor",
    _like_select_units,
)
def _select_units(scores: Tensor, sizes: Tensor, budgets: Tensor | None, budget: int, where: Tensor | None) -> Tensor:
    if not scores.is_floating_point() or sizes.dtype not in _WHOLE:
        raise ImplementationError(f"scores are floats and sizes int32 or int64, not {scores.dtype} and {sizes.dtype}.")
    nvcc.check_same(scores.device, sizes=sizes, budget=budgets, where=where)
    scores, sizes = nvcc.dense(scores.float(), 1), nvcc.dense(sizes, 1)
    budgets = None if budgets is None else budgets.to(torch.int64).contiguous()
    where = None if where is None else where.to(torch.bool).contiguous()
    take = torch.empty(sizes.shape, dtype=sizes.dtype, device=sizes.device)
    nvcc.launch(
        "select_units",
        scores.device,
        *(scores.data_ptr(), scores.stride(0), sizes.data_ptr(), sizes.stride(0), sizes.itemsize),
        *(None if budgets is None else budgets.data_ptr(), budget, None if where is None else where.data_ptr()),
        *(take.data_ptr(), *sizes.shape),
    )
    return take


# The bits of -inf.
_CLOSED = {torch.float32: 0xFF800000, torch.bfloat16: 0xFF80, torch.float16: 0xFC00}


def assign_slots(
    slot_place: Tensor,
    wanted: Tensor,
    where: Tensor | None,
    counts: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `louiskv.ops.selection.assign_slots`; places are less than 2^31.

    Raises:
        ImplementationError: A dtype or a device is another.
    """
    if slot_place.dtype == torch.int32 and out is not None:
        return out, _assign_slots(slot_place, wanted, where, out, counts, bias)
    place = torch.empty(slot_place.shape, dtype=torch.int32, device=slot_place.device)
    missing: Tensor = _assign_slots(slot_place.int(), wanted, where, place, counts, bias)
    return (place.to(slot_place.dtype) if out is None else out.copy_(place)), missing


def _like_assign_slots(slot_place: Tensor, *_others: object) -> Tensor:
    return torch.empty(slot_place.shape, dtype=torch.bool, device=slot_place.device)


@nvcc.operation(
    "assign_slots(Tensor slot_place, Tensor wanted, Tensor? where, Tensor(a!) place, Tensor(b!)? counts, "
    "Tensor(c!)? bias) -> Tensor",
    _like_assign_slots,
)
def _assign_slots(
    slot_place: Tensor,
    wanted: Tensor,
    where: Tensor | None,
    place: Tensor,
    counts: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    device = slot_place.device
    _check_slots(slot_place, wanted, place, counts, bias)
    nvcc.check_same(device, wanted=wanted, where=where, place=place, counts=counts, bias=bias)
    slot_place, wanted = slot_place.contiguous(), wanted.contiguous()
    where = None if where is None else where.to(torch.bool).contiguous()
    missing = _like_assign_slots(slot_place)
    num_words = nvcc.loaded().louiskv_assign_slots_scratch(wanted.shape[1])
    scratch = torch.empty(len(wanted), num_words, dtype=torch.int32, device=device) if num_words else None
    biased: tuple[int | None, ...] = (None, 0, 0, 0)
    if bias is not None:
        biased = (bias.data_ptr(), nvcc.stride_bytes(bias, 0), bias.itemsize, _CLOSED[bias.dtype])
    nvcc.launch(
        "assign_slots",
        device,
        *(slot_place.data_ptr(), wanted.data_ptr(), wanted.itemsize, None if where is None else where.data_ptr()),
        *(None if scratch is None else scratch.data_ptr(), place.data_ptr(), missing.data_ptr(), *biased),
        *(None if counts is None else counts.data_ptr(), *slot_place.shape, wanted.shape[1]),
    )
    return missing


def _check_slots(slot_place: Tensor, wanted: Tensor, place: Tensor, counts: Tensor | None, bias: Tensor | None) -> None:
    if slot_place.dtype != torch.int32 or wanted.dtype not in _WHOLE:
        raise ImplementationError(f"places are int32 or int64, not {slot_place.dtype} and {wanted.dtype}.")
    if place.dtype != torch.int32 or not place.is_contiguous() or place.shape != slot_place.shape:
        raise ImplementationError(f"places are written to {list(slot_place.shape)} contiguous int32.")
    if counts is not None and (counts.dtype != torch.int64 or counts.shape != (2,) or not counts.is_contiguous()):
        raise ImplementationError(f"counts are int64 [2], not {counts.dtype} {list(counts.shape)}.")
    if bias is not None and (bias.dtype not in _CLOSED or not nvcc.is_dense(bias, 1) or bias.shape != place.shape):
        raise ImplementationError(f"a bias is real and dense, one for each slot: {bias.dtype} {list(bias.shape)}.")
