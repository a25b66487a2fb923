"""Where points lie along the widest direction of their group, in Triton: one program for each group."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_runtime import dense, kernel

TINY = tl.constexpr(float(torch.finfo(torch.float32).tiny))
NOWHERE = tl.constexpr(2**30)
# Numbers of the points that a program has at a time, at the most.
MOST_NUMBERS = 8192


@triton.jit
def _index_at(order: tl.tensor, place: tl.tensor, width: tl.tensor) -> tl.tensor:
    """Indices at places of a group; behind its last, one that is none of a point."""
    return tl.load(order + place, mask=place < width, other=NOWHERE)


@triton.jit
def _offsets(
    points: tl.tensor,
    index: tl.tensor,
    count: tl.tensor,
    points_token: tl.tensor,
    centre: tl.tensor,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
) -> tl.tensor:
    """Where points are from the centre [tile, dim_block]; 0 where an index is none of a point."""
    channel = tl.arange(0, dim_block)
    mask = (index < count)[:, None] & (channel < dim)[None]
    point = tl.load(points + index[:, None] * points_token + channel[None], mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, point - centre[None], 0.0)


@kernel(
    checks=tuple(
        {"points": "*T", "order": "*i64", "counts": "*i64", "out": "*fp32"}
        | dict.fromkeys(("points_row", "points_token", "order_row", "width"), "i32")
        | {"dim": dim, "dim_block": dim_block, "tile": tile, "steps": 4}
        for dim, dim_block, tile in ((80, 128, 64), (128, 128, 32), (256, 256, 32))
    ),
    configs=({"num_warps": 8, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["order_row", "width"])
def _widest(
    points: tl.tensor,
    order: tl.tensor,
    counts: tl.tensor,
    out: tl.tensor,
    points_row: tl.tensor,
    points_token: tl.tensor,
    order_row: tl.tensor,
    width: tl.tensor,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    tile: tl.constexpr,
    steps: tl.constexpr,
) -> None:
    """Place the points of one group, some at a time."""
    group, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    order += row * order_row + group * width
    out += (row * tl.num_programs(0) + group) * width
    points, count, lane = points + row * points_row, tl.load(counts + row), tl.arange(0, tile)
    # What is summed or compared over all points is so for each place of a tile first, in which nobody waits for others.
    centre, sums, size = tl.zeros([dim_block], tl.float32), tl.zeros([tile, dim_block], tl.float32), lane * 0
    for start in range(0, width, tile):
        index = _index_at(order, start + lane, width)
        sums += _offsets(points, index, count, points_token, centre, dim, dim_block)
        size += (index < count).to(tl.int32)
    centre = tl.sum(sums, 0) / tl.maximum(tl.sum(size, 0), 1).to(tl.float32)
    longest, farthest = tl.full([tile], -1.0, tl.float32), lane * 0
    for start in range(0, width, tile):
        index = _index_at(order, start + lane, width)
        off = _offsets(points, index, count, points_token, centre, dim, dim_block)
        distance = tl.sum(off * off, 1)
        farther = (index < count) & (distance > longest)
        longest, farthest = tl.where(farther, distance, longest), tl.where(farther, start + lane, farthest)
    most = tl.max(longest, 0)
    # The first of equal ones.
    first = tl.min(tl.where(longest == most, farthest, NOWHERE), 0) + tl.zeros([1], tl.int32)
    one = _offsets(points, _index_at(order, first, width), count, points_token, centre, dim, dim_block)
    # None longer than 1, as in the reference.
    scale = tl.rsqrt(tl.maximum(most, TINY))
    direction = tl.sum(one, 0) * scale
    for _ in range(steps):
        sums = tl.zeros([tile, dim_block], tl.float32)
        for start in range(0, width, tile):
            index = _index_at(order, start + lane, width)
            off = _offsets(points, index, count, points_token, centre, dim, dim_block) * scale
            sums += off * tl.sum(off * direction[None], 1)[:, None]
        direction = tl.sum(sums, 0)
    for start in range(0, width, tile):
        index = _index_at(order, start + lane, width)
        off = _offsets(points, index, count, points_token, centre, dim, dim_block) * scale
        along = tl.sum(off * direction[None], 1)
        # What is no number is at 0.
        along = tl.where(index < count, tl.where(along == along, along, 0.0), float("inf"))
        tl.store(out + start + lane, along, mask=start + lane < width)


def along_widest(points: Tensor, order: Tensor, counts: Tensor, num_groups: int, steps: int) -> Tensor:
    """Twin of the reference."""
    num_rows, width = order.shape[0], order.shape[1] // num_groups
    points, order, dim = dense(points), dense(order), points.shape[2]
    out = points.new_empty(num_rows, num_groups, width, dtype=torch.float32)
    dim_block = triton.next_power_of_2(dim)
    tile = max(1, min(triton.next_power_of_2(width), MOST_NUMBERS // dim_block))
    numbers = (*points.stride()[:2], order.stride(0), width, dim, dim_block, tile, steps)
    _widest[num_groups, num_rows](points, order, dense(counts), out, *numbers)
    return out
