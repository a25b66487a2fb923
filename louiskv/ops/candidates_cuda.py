"""The single tokens that come into question, the best of them, and what is left of units, in CUDA."""

import torch
from torch import Tensor

from louiskv.errors import ImplementationError
from louiskv.ops import nvcc

_WHOLE = (torch.int32, torch.int64)


def _scratch(numbers: Tensor) -> Tensor | None:
    """Memory for the numbers [N, E] of rows that are too many for a block's own."""
    num_words = nvcc.loaded().louiskv_candidates_scratch(numbers.shape[1])
    return torch.empty(numbers.shape, dtype=torch.int32, device=numbers.device) if num_words else None


def list_candidates(
    take: Tensor, offsets: Tensor, slot_place: Tensor, units: tuple[Tensor, Tensor, Tensor | None, int], width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `louiskv.ops.candidates.list_candidates`; places are less than 2^31.

    Raises:
        ImplementationError: A dtype or a device is another.
    """
    place, entry, resident = _list_candidates(take, offsets, slot_place, *units, width)
    return place, entry, resident


def _like_list_candidates(
    _take: Tensor,
    _offsets: Tensor,
    slot_place: Tensor,
    _unit_offsets: Tensor,
    _counts: Tensor,
    _first_entry: Tensor | None,
    _stretch: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, num_slots = slot_place.shape
    place = torch.empty(num_rows, width + num_slots, dtype=slot_place.dtype, device=slot_place.device)
    return place, torch.empty_like(place), torch.empty_like(place, dtype=torch.bool)


@nvcc.operation(
    "list_candidates(Tensor take, Tensor offsets, Tensor slot_place, Tensor unit_offsets, Tensor counts, "
    "Tensor? first_entry, int stretch, int width) -> (Tensor, Tensor, Tensor)",
    _like_list_candidates,
)
def _list_candidates(
    take: Tensor,
    offsets: Tensor,
    slot_place: Tensor,
    unit_offsets: Tensor,
    counts: Tensor,
    first_entry: Tensor | None,
    stretch: int,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    device, dtype = slot_place.device, slot_place.dtype
    given = {"take": take, "offsets": offsets, "slot_place": slot_place, "unit_offsets": unit_offsets}
    nvcc.check_same(device, **given, counts=counts, first_entry=first_entry)
    for name, tensor in given.items():
        if tensor.dtype not in _WHOLE:
            raise ImplementationError(f"{name} is int32 or int64, not {tensor.dtype}.")
    take, offsets, slots, unit_offsets = (tensor.int().contiguous() for tensor in given.values())
    counts = counts.long().contiguous()
    first_entry = None if first_entry is None else first_entry.int().contiguous()
    place, entry, resident = _like_list_candidates(take, offsets, slots, unit_offsets, counts, None, stretch, width)
    scratch = _scratch(take)
    nvcc.launch(
        "list_candidates",
        device,
        *(take.data_ptr(), offsets.data_ptr(), slots.data_ptr(), unit_offsets.data_ptr(), counts.data_ptr()),
        *(None if first_entry is None else first_entry.data_ptr(), stretch),
        None if scratch is None else scratch.data_ptr(),
        *(place.data_ptr(), entry.data_ptr(), resident.data_ptr()),
        *(*take.shape, slots.shape[1], unit_offsets.shape[1], width),
    )
    return place.to(dtype), entry.to(dtype), resident


def _like_best_tokens(
    _scores: Tensor, place: Tensor, _resident: Tensor, _room: Tensor, num_wanted: int, _hold: float
) -> Tensor:
    return torch.empty(len(place), num_wanted, dtype=place.dtype, device=place.device)


@nvcc.operation(
    "best_tokens(Tensor scores, Tensor place, Tensor resident, Tensor room, int num_wanted, float hold) -> Tensor",
    _like_best_tokens,
)
def best_tokens(scores: Tensor, place: Tensor, resident: Tensor, room: Tensor, num_wanted: int, hold: float) -> Tensor:
    """As `louiskv.ops.candidates.best_tokens`; scores are floats of at most 32 bits, places less than 2^31.

    Raises:
        ImplementationError: A dtype or a device is another.
    """
    if not scores.is_floating_point() or place.dtype not in _WHOLE or resident.dtype != torch.bool:
        dtypes = f"{scores.dtype}, {place.dtype} and {resident.dtype}"
        raise ImplementationError(f"scores are floats, places int32 or int64 and residents bool, not {dtypes}.")
    nvcc.check_same(scores.device, place=place, resident=resident, room=room)
    dtype, place = place.dtype, place.int().contiguous()
    scores, resident, room = scores.float().contiguous(), resident.contiguous(), room.long().contiguous()
    wanted = _like_best_tokens(scores, place, resident, room, num_wanted, hold)
    nvcc.launch(
        "best_tokens",
        scores.device,
        *(scores.data_ptr(), place.data_ptr(), resident.data_ptr(), room.data_ptr(), hold),
        *(wanted.data_ptr(), *place.shape, num_wanted),
    )
    return wanted.to(dtype)


def count_rest(place: Tensor, sizes: Tensor, units: tuple[Tensor, Tensor, Tensor | None, int]) -> Tensor:
    """As `louiskv.ops.candidates.count_rest`; places are less than 2^31.

    Raises:
        ImplementationError: A dtype or a device is another.
    """
    left: Tensor = _count_rest(place, sizes, *units[:2])
    return left


def _like_count_rest(_place: Tensor, sizes: Tensor, _unit_offsets: Tensor, _counts: Tensor) -> Tensor:
    return torch.empty(sizes.shape, dtype=sizes.dtype, device=sizes.device)


@nvcc.operation(
    "count_rest(Tensor place, Tensor sizes, Tensor unit_offsets, Tensor counts) -> Tensor", _like_count_rest
)
def _count_rest(place: Tensor, sizes: Tensor, unit_offsets: Tensor, counts: Tensor) -> Tensor:
    nvcc.check_same(place.device, sizes=sizes, unit_offsets=unit_offsets, counts=counts)
    for name, tensor in (("place", place), ("sizes", sizes), ("unit_offsets", unit_offsets)):
        if tensor.dtype not in _WHOLE:
            raise ImplementationError(f"{name} is int32 or int64, not {tensor.dtype}.")
    place, unit_offsets = place.int().contiguous(), unit_offsets.int().contiguous()
    sizes, counts = sizes.contiguous(), counts.long().contiguous()
    left, scratch = _like_count_rest(place, sizes, unit_offsets, counts), _scratch(sizes)
    nvcc.launch(
        "count_rest",
        place.device,
        *(place.data_ptr(), place.shape[1], sizes.data_ptr(), sizes.itemsize, unit_offsets.data_ptr()),
        *(counts.data_ptr(), None if scratch is None else scratch.data_ptr(), left.data_ptr(), *sizes.shape),
    )
    return left
