"""What the slots hold from one selection to the next, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_functions import NONE, first_over
from louiskv.ops.triton_runtime import as_bytes, dense, kernel


@kernel(
    checks=tuple(
        {"slot_place": "*i32", "ordered": wanted, "held": "*u8", "lacking": wanted, "place": "*i32", "missing": "*u8"}
        | {"where": where, "counts": counts, "bias": bias, "bias_row": "i32"}
        | {"slot_row": "i32", "num_slots": "i32", "num_wanted": "i32", "halvings": "i32", "nowhere": nowhere}
        for wanted, nowhere, where, counts, bias in (
            ("*i64", "i64", "*u8", "*i64", "*T"),
            ("*i32", "i32", None, None, None),
        )
    ),
    configs=({"block": 1024, "num_warps": 8, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["bias_row", "slot_row", "num_slots", "num_wanted", "halvings", "nowhere"])
def _fill(
    slot_place: tl.tensor,
    ordered: tl.tensor,
    held: tl.tensor,
    lacking: tl.tensor,
    place: tl.tensor,
    missing: tl.tensor,
    where: tl.tensor,
    counts: tl.tensor,
    bias: tl.tensor,
    bias_row: tl.tensor,
    slot_row: tl.tensor,
    num_slots: tl.tensor,
    num_wanted: tl.tensor,
    halvings: tl.tensor,
    nowhere: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Find the slots that keep their token, the places that none holds, and give these to the other slots in order."""
    row = tl.program_id(0).to(tl.int64)
    slot_place += row * slot_row
    place, missing = place + row * num_slots, missing + row * num_slots
    ordered, held, lacking = ordered + row * num_wanted, held + row * num_wanted, lacking + row * num_wanted
    if where is not None:
        if tl.load(where + row) == 0:
            for start in range(0, num_slots, block):
                slot = start + tl.arange(0, block)
                holds = tl.load(slot_place + slot, mask=slot < num_slots, other=-1)
                tl.store(place + slot, holds, mask=slot < num_slots)
                tl.store(missing + slot, tl.zeros_like(holds).to(tl.uint8), mask=slot < num_slots)
            return
    for start in range(0, num_slots, block):
        slot = start + tl.arange(0, block)
        holds = tl.load(slot_place + slot, mask=slot < num_slots, other=-1)
        # Each place is wanted once, so that the one before the first over it is it.
        at = tl.maximum(first_over(ordered, num_wanted, halvings, holds) - 1, 0)
        kept = (holds >= 0) & (tl.load(ordered + at) == holds)
        tl.store(held + at, 1, mask=kept)
        tl.store(place + slot, tl.where(kept, holds, -1), mask=slot < num_slots)
    tl.debug_barrier()
    num_lacking = 0
    for start in range(0, num_wanted, block):
        number = start + tl.arange(0, block)
        wanted = tl.load(ordered + number, mask=number < num_wanted, other=nowhere)
        is_held = tl.load(held + number, mask=number < num_wanted, other=1)
        lacks = ((wanted != nowhere) & (is_held == 0)).to(tl.int32)
        tl.store(lacking + num_lacking + tl.cumsum(lacks, 0) - 1, wanted, mask=lacks != 0)
        num_lacking += tl.sum(lacks, 0)
    tl.debug_barrier()
    num_free = 0
    for start in range(0, num_slots, block):
        slot = start + tl.arange(0, block)
        free = (tl.load(place + slot, mask=slot < num_slots, other=0) < 0).to(tl.int32)
        ordinal = num_free + tl.cumsum(free, 0) - 1
        filled = (free != 0) & (ordinal < num_lacking)
        comes = tl.load(lacking + ordinal, mask=filled, other=0)
        tl.store(place + slot, comes.to(place.dtype.element_ty), mask=filled)
        tl.store(missing + slot, filled.to(tl.uint8), mask=slot < num_slots)
        if bias is not None:
            shut = tl.where((free != 0) & (filled == 0), NONE, 0.0)
            tl.store(bias + row * bias_row + slot, shut.to(bias.dtype.element_ty), mask=slot < num_slots)
        num_free += tl.sum(free, 0)
    if counts is not None:
        num_filled = tl.minimum(num_free, num_lacking)
        tl.atomic_add(counts, (num_slots - num_free + num_filled).to(tl.int64), sem="relaxed")
        tl.atomic_add(counts + 1, num_filled.to(tl.int64), sem="relaxed")


def assign_slots(
    slot_place: Tensor,
    wanted: Tensor,
    where: Tensor | None,
    counts: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Twin of the reference."""
    num_rows, num_slots = slot_place.shape
    num_wanted, nowhere = wanted.shape[1], torch.iinfo(wanted.dtype).max
    slot_place = dense(slot_place)
    ordered = wanted.masked_fill(wanted < 0, nowhere).sort(dim=1).values
    held = ordered.new_zeros(ordered.shape, dtype=torch.uint8)
    place = slot_place.new_empty(slot_place.shape) if out is None else out
    missing = slot_place.new_empty(slot_place.shape, dtype=torch.uint8)
    sizes = (slot_place.stride(0), num_slots, num_wanted, num_wanted.bit_length(), nowhere)
    also = (as_bytes(where), counts, bias, 0 if bias is None else bias.stride(0))
    _fill[num_rows,](slot_place, ordered, held, torch.empty_like(ordered), place, missing, *also, *sizes)
    return place, missing.view(torch.bool)
