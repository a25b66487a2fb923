"""Windows and their runs in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_functions import NONE
from louiskv.ops.triton_runtime import as_bytes, dense, kernel

# Tokens, and numbers of a token, that one program copies at a time.
TOKENS = 8
NUMBERS = 512


@kernel(
    checks=(
        {"starts": "*i32", "opened": "*i64", "lengths": "*i64", "boundary": "*u8"}
        | dict.fromkeys(("num_rows", "window", "shortest", "longest"), "i32"),
    ),
    configs=({"block": 64, "num_warps": 1, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_rows", "window", "shortest", "longest"])
def _cut(
    starts: tl.tensor,
    opened: tl.tensor,
    lengths: tl.tensor,
    boundary: tl.tensor,
    num_rows: tl.tensor,
    window: tl.tensor,
    shortest: tl.tensor,
    longest: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Cut the runs of some rows."""
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = row < num_rows
    position = tl.load(lengths + row, mask=mask, other=0) - 1
    begun = position - tl.load(opened + row, mask=mask, other=0)
    begins = mask & (begun >= 0) & (begun % longest >= shortest)
    begins = begins & (tl.load(boundary + row, mask=mask, other=0) != 0)
    tl.store(starts + row * window + position % window, position.to(tl.int32), mask=begins)
    tl.store(opened + row, position, mask=begins)


def cut_runs(starts: Tensor, opened: Tensor, lengths: Tensor, boundary: Tensor, shortest: int, longest: int) -> None:
    """Twin of the reference."""
    num_rows, window = starts.shape
    sizes = (num_rows, window, shortest, longest)
    _cut[triton.cdiv(num_rows, 64),](starts, opened, dense(lengths), as_bytes(boundary), *sizes)


@kernel(
    checks=(
        {"starts": "*i32", "first": "*i64", "end": "*i64", "counts": "*i64"}
        | dict.fromkeys(("window", "shortest", "longest", "most"), "i32"),
    ),
    configs=({"block": 64, "num_warps": 1, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["window", "shortest", "longest", "most"])
def _oldest(
    starts: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    counts: tl.tensor,
    window: tl.tensor,
    shortest: tl.tensor,
    longest: tl.tensor,
    most: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Look for the next start in one row."""
    row = tl.program_id(0).to(tl.int64)
    oldest = tl.load(first + row)
    held = tl.load(end + row) - oldest
    size = tl.maximum(tl.minimum(held, longest), 1)
    if window > 0:
        for done in range(0, longest, block):
            step = done + 1 + tl.arange(0, block)
            position = oldest + step
            looked = (step >= shortest) & (step < size)
            start = tl.load(starts + row * window + position % window, mask=looked, other=-1)
            size = tl.minimum(size, tl.min(tl.where(looked & (start == position), step, longest), 0))
    tl.store(counts + row, tl.where(held > most, size, 0))


def oldest_runs(starts: Tensor, first: Tensor, end: Tensor, shortest: int, longest: int, most: int) -> Tensor:
    """Twin of the reference."""
    num_rows, window = starts.shape
    counts = first.new_empty(first.shape)
    _oldest[num_rows,](starts, dense(first), dense(end), counts, window, shortest, longest, most)
    return counts


@kernel(
    checks=(
        {"first": "*i64", "end": "*i64", "room": "*i64"}
        | dict.fromkeys(("num_rows", "budget", "window", "coming", "taken_by", "most"), "i32"),
    ),
    configs=({"block": 64, "num_warps": 1, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_rows", "budget", "window", "coming", "taken_by", "most"])
def _room(
    first: tl.tensor,
    end: tl.tensor,
    room: tl.tensor,
    num_rows: tl.tensor,
    budget: tl.tensor,
    window: tl.tensor,
    coming: tl.tensor,
    taken_by: tl.tensor,
    most: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Count what some windows leave."""
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    mask = row < num_rows
    held = tl.load(end + row, mask=mask, other=0) - tl.load(first + row, mask=mask, other=0)
    left = budget - tl.minimum(tl.maximum(held, 0) + coming, window)
    # Of a number under 0 the rest is not over 0.
    rest = (left % taken_by + taken_by) % taken_by
    tl.store(room + row, tl.minimum(left - rest, most), mask=mask)


def room_beside(first: Tensor, end: Tensor, budget: int, window: int, coming: int, taken_by: int, most: int) -> Tensor:
    """Twin of the reference."""
    room = first.new_empty(first.shape)
    sizes = (len(first), budget, window, coming, taken_by, most)
    _room[triton.cdiv(len(first), 64),](dense(first), dense(end), room, *sizes)
    return room


@kernel(
    checks=tuple(
        {"rows": "*T", "first": "*i64", "order": order, "taken": "*T", "positions": "*i32"}
        | dict.fromkeys(("rows_row", "rows_slot", "width", "size", "num_sinks", "window"), "i32")
        | {"tokens": 8, "numbers": 256}
        for order in (None, "*i64")
    ),
    configs=({"num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["width", "num_sinks", "window"])
def _take(
    rows: tl.tensor,
    first: tl.tensor,
    order: tl.tensor,
    taken: tl.tensor,
    positions: tl.tensor,
    rows_row: tl.tensor,
    rows_slot: tl.tensor,
    width: tl.tensor,
    size: tl.tensor,
    num_sinks: tl.tensor,
    window: tl.tensor,
    tokens: tl.constexpr,
    numbers: tl.constexpr,
) -> None:
    """Read some tokens of a window."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * tokens + tl.arange(0, tokens)
    number = tl.program_id(2) * numbers + tl.arange(0, numbers)
    which = token
    if order is not None:
        which = tl.load(order + row * width + token, mask=token < width, other=0)
    position = tl.load(first + row) + which
    slot = num_sinks + ((position - num_sinks) % window + window) % window
    mask = (token < width)[:, None] & (number < size)[None]
    read = tl.load(rows + row * rows_row + slot[:, None] * rows_slot + number[None], mask=mask)
    at = row * width + token
    tl.store(taken + at[:, None] * size + number[None], read, mask=mask)
    tl.store(positions + at, position.to(tl.int32), mask=token < width)


def take_runs(
    rows: Tensor, first: Tensor, width: int, num_sinks: int, window: int, order: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Twin of the reference."""
    num_rows, _, size = rows.shape
    taken = rows.new_empty(num_rows, width, size)
    positions = first.new_empty(num_rows, width, dtype=torch.int32)
    numbers = min(NUMBERS, triton.next_power_of_2(size))
    grid = (num_rows, triton.cdiv(width, TOKENS), triton.cdiv(size, numbers))
    sizes = (*rows.stride()[:2], width, size, num_sinks, window, TOKENS, numbers)
    order = None if order is None else order.contiguous()
    _take[grid](rows, dense(first), order, taken, positions, *sizes)
    return taken, positions


@kernel(
    checks=(
        {"bias": "*T", "first": "*i64", "counts": "*i64"} | dict.fromkeys(("bias_row", "num_sinks", "window"), "i32"),
    ),
    # One warp: where one of several has moved the window, the others would begin.
    configs=({"block": 64, "num_warps": 1, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["bias_row", "num_sinks", "window"])
def _release(
    bias: tl.tensor,
    first: tl.tensor,
    counts: tl.tensor,
    bias_row: tl.tensor,
    num_sinks: tl.tensor,
    window: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Release the oldest tokens of one window."""
    row = tl.program_id(0).to(tl.int64)
    oldest, count = tl.load(first + row), tl.load(counts + row)
    for start in range(0, count, block):
        token = start + tl.arange(0, block)
        slot = num_sinks + ((oldest + token - num_sinks) % window + window) % window
        shut = tl.full([block], NONE, tl.float32).to(bias.dtype.element_ty)
        tl.store(bias + row * bias_row + slot, shut, mask=token < count)
    tl.store(first + row, oldest + count)


def release_runs(bias: Tensor, first: Tensor, counts: Tensor, num_sinks: int, window: int) -> None:
    """Twin of the reference."""
    _release[len(first),](bias, first, dense(counts), bias.stride(0), num_sinks, window)
