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


def _like_assign_slots(slot_place: Tensor, _wanted: Tensor) -> tuple[Tensor, Tensor]:
    place = torch.empty(slot_place.shape, dtype=slot_place.dtype, device=slot_place.device)
    return place, torch.empty_like(place, dtype=torch.bool)


@nvcc.operation("assign_slots(Tensor slot_place, Tensor wanted) -> (Tensor, Tensor)", _like_assign_slots)
def assign_slots(slot_place: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """As `louiskv.ops.selection.assign_slots`; places are less than 2^31.

    Raises:
        ImplementationError: A dtype or a device is another.
    """
    dtype, device = slot_place.dtype, slot_place.device
    if dtype not in _WHOLE or wanted.dtype not in _WHOLE:
        raise ImplementationError(f"places are int32 or int64, not {dtype} and {wanted.dtype}.")
    nvcc.check_same(device, wanted=wanted)
    slot_place, wanted = slot_place.int().contiguous(), wanted.int().contiguous()
    place, missing = _like_assign_slots(slot_place, wanted)
    num_words = nvcc.loaded().louiskv_assign_slots_scratch(wanted.shape[1])
    scratch = torch.empty(len(wanted), num_words, dtype=torch.int32, device=device) if num_words else None
    nvcc.launch(
        "assign_slots",
        device,
        *(slot_place.data_ptr(), wanted.data_ptr(), None if scratch is None else scratch.data_ptr()),
        *(place.data_ptr(), missing.data_ptr(), *place.shape, wanted.shape[1]),
    )
    return place.to(dtype), missing
