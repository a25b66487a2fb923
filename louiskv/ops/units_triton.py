"""Units that come into an index, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_runtime import dense, kernel


@kernel(
    checks=tuple(
        {"rows": "*T", "sizes": sizes, "through": through, "out": "*T", "extremes": extremes, "volume": volume}
        | dict.fromkeys(("rows_row", "rows_token", "sizes_row", "num_units"), "i32")
        | {"dim": 80, "dim_block": 128}
        for sizes, through, extremes, volume in (
            ("*i64", None, False, False),
            ("*i32", "*i64", True, False),
            ("*i64", "*i64", True, True),
        )
    ),
    configs=({"block": 16, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["sizes_row", "num_units"])
def _summarise(
    rows: tl.tensor,
    sizes: tl.tensor,
    through: tl.tensor,
    out: tl.tensor,
    rows_row: tl.tensor,
    rows_token: tl.tensor,
    sizes_row: tl.tensor,
    num_units: tl.tensor,
    extremes: tl.constexpr,
    volume: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Summarise one unit, some tokens at a time."""
    unit, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    size = tl.load(sizes + row * sizes_row + unit)
    rows += row * rows_row
    if through is not None:
        rows += (tl.load(through + row * num_units + unit) - size) * rows_token
    channel = tl.arange(0, dim_block)
    total = tl.zeros([dim_block], dtype=tl.float32)
    high = tl.full([dim_block], float("-inf"), tl.float32)
    low = tl.full([dim_block], float("inf"), tl.float32)
    if extremes:
        for start in range(0, size, block):
            token = start + tl.arange(0, block)
            mask = (token < size)[:, None] & (channel < dim)[None]
            read = tl.load(rows + token[:, None] * rows_token + channel[None], mask=mask, other=0.0).to(tl.float32)
            high = tl.maximum(high, tl.max(tl.where(mask, read, float("-inf")), 0))
            low = tl.minimum(low, tl.min(tl.where(mask, read, float("inf")), 0))
        present = (size > 0) & (channel < dim)
        high, low = tl.where(present, high, 0.0), tl.where(present, low, 0.0)
    middle = (high + low) / 2 if volume else total
    if volume or not extremes:
        for start in range(0, size, block):
            token = start + tl.arange(0, block)
            mask = (token < size)[:, None] & (channel < dim)[None]
            read = tl.load(rows + token[:, None] * rows_token + channel[None], mask=mask, other=0.0).to(tl.float32)
            read = tl.abs(read - middle[None]) if volume else read
            total += tl.sum(tl.where(mask, read, 0.0), 0)
    mean = total / tl.maximum(size, 1)
    if volume:
        high, low = middle + mean, middle - mean
    at = row * num_units + unit
    if extremes:
        tl.store(out + 2 * at * dim + channel, high.to(out.dtype.element_ty), mask=channel < dim)
        tl.store(out + (2 * at + 1) * dim + channel, low.to(out.dtype.element_ty), mask=channel < dim)
    else:
        tl.store(out + at * dim + channel, mean.to(out.dtype.element_ty), mask=channel < dim)


def summarise_units(rows: Tensor, sizes: Tensor, kind: str) -> Tensor:
    """Twin of the reference."""
    num_rows, num_units = sizes.shape
    rows, sizes, dim = dense(rows), dense(sizes), rows.shape[2]
    out = rows.new_empty(num_rows, num_units, dim if kind == "mean" else 2 * dim)
    through = sizes.cumsum(1) if num_units > 1 else None
    strides = (*rows.stride()[:2], sizes.stride(0), num_units)
    constants = (kind != "mean", kind == "volume", dim, triton.next_power_of_2(dim))
    _summarise[num_units, num_rows](rows, sizes, through, out, *strides, *constants)
    return out


@kernel(
    checks=(
        {"offsets": "*i32", "sizes": "*i32", "counts": "*i64", "num_tokens": "*i64", "told": "*i64"}
        | {"begin": "*i64", "new_sizes": "*i64"}
        | dict.fromkeys(("num_rows", "capacity", "sizes_row", "num_new"), "i32"),
    ),
    # One warp: what one of several has counted, the others would read.
    configs=({"block": 64, "num_warps": 1, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_rows", "capacity", "sizes_row", "num_new"])
def _append(
    offsets: tl.tensor,
    sizes: tl.tensor,
    counts: tl.tensor,
    num_tokens: tl.tensor,
    told: tl.tensor,
    begin: tl.tensor,
    new_sizes: tl.tensor,
    num_rows: tl.tensor,
    capacity: tl.tensor,
    sizes_row: tl.tensor,
    num_new: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Write the new units of one row."""
    row = tl.program_id(0).to(tl.int64)
    first, first_token = tl.load(counts + row), tl.load(num_tokens + row)
    units, tokens, begins = first - first, first - first, tl.load(begin + row)
    for start in range(0, num_new, block):
        unit = start + tl.arange(0, block)
        size = tl.load(new_sizes + row * sizes_row + unit, mask=unit < num_new, other=0)
        offset = begins + tokens + tl.cumsum(size, 0) - size
        at = row * capacity + first + unit
        tl.store(offsets + at, offset.to(tl.int32), mask=size > 0)
        tl.store(sizes + at, size.to(tl.int32), mask=size > 0)
        units += tl.sum((size > 0).to(tl.int64), 0)
        tokens += tl.sum(size.to(tl.int64), 0)
    tl.store(told + row, first)
    tl.store(told + num_rows + row, units)
    tl.store(told + 2 * num_rows + row, first_token)
    tl.store(told + 3 * num_rows + row, tokens)
    tl.store(counts + row, first + units)
    tl.store(num_tokens + row, first_token + tokens)


def append_units(
    offsets: Tensor, sizes: Tensor, counts: Tensor, num_tokens: Tensor, begin: Tensor, new_sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Twin of the reference."""
    num_rows, num_new = new_sizes.shape
    told = counts.new_empty(4, num_rows)
    new_sizes = dense(new_sizes)
    numbers = (num_rows, sizes.shape[1], new_sizes.stride(0), num_new)
    _append[num_rows,](offsets, sizes, counts, num_tokens, told, dense(begin), new_sizes, *numbers)
    first, new, first_token, tokens = told.unbind(0)
    return first, new, first_token, tokens


@kernel(
    checks=tuple(
        {"slot_place": "*i32", "begin": "*i64", "counts": "*i64", "rooms": rooms, "bias": bias}
        | {"comes": "*u8", "token": "*i32"}
        | dict.fromkeys(("room", "bias_row", "num_slots"), "i32")
        for rooms, bias in ((None, None), ("*i64", "*T"))
    ),
    configs=({"block": 512, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["room", "bias_row", "num_slots"])
def _keep(
    slot_place: tl.tensor,
    begin: tl.tensor,
    counts: tl.tensor,
    rooms: tl.tensor,
    bias: tl.tensor,
    comes: tl.tensor,
    token: tl.tensor,
    room: tl.tensor,
    bias_row: tl.tensor,
    num_slots: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Fill empty slots of one row."""
    row = tl.program_id(0).to(tl.int64)
    slot_place, comes, token = slot_place + row * num_slots, comes + row * num_slots, token + row * num_slots
    left = tl.load(counts + row) * 0 + room
    if rooms is not None:
        left += tl.load(rooms + row)
    for start in range(0, num_slots, block):
        slot = start + tl.arange(0, block)
        held = tl.load(slot_place + slot, mask=slot < num_slots, other=-1)
        left -= tl.sum((held >= 0).to(tl.int32), 0)
    left = tl.minimum(left, tl.load(counts + row))
    num_empty = 0
    for start in range(0, num_slots, block):
        slot = start + tl.arange(0, block)
        empty = (tl.load(slot_place + slot, mask=slot < num_slots, other=0) < 0).to(tl.int32)
        number = num_empty + tl.cumsum(empty, 0) - 1
        filled = (empty != 0) & (number < left)
        place = tl.load(begin + row) + number
        tl.store(slot_place + slot, place.to(tl.int32), mask=filled)
        tl.store(comes + slot, filled.to(tl.uint8), mask=slot < num_slots)
        tl.store(token + slot, number, mask=slot < num_slots)
        if bias is not None:
            tl.store(bias + row * bias_row + slot, tl.zeros([block], bias.dtype.element_ty), mask=filled)
        num_empty += tl.sum(empty, 0)


def keep_runs(
    slot_place: Tensor, begin: Tensor, counts: Tensor, room: Tensor | int, spare: int, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Twin of the reference."""
    num_rows, num_slots = slot_place.shape
    rooms, of_all = (dense(room), spare) if isinstance(room, Tensor) else (None, room + spare)
    comes = slot_place.new_empty(slot_place.shape, dtype=torch.uint8)
    token = torch.empty_like(slot_place)
    sizes = (of_all, 0 if bias is None else bias.stride(0), num_slots)
    _keep[num_rows,](slot_place, dense(begin), dense(counts), rooms, bias, comes, token, *sizes)
    return comes.view(torch.bool), token
