"""How far queries have turned, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_runtime import dense, kernel

TINY = tl.constexpr(float(torch.finfo(torch.float32).tiny))


@kernel(
    checks=(
        {"query": "*T", "other": "*T", "cosines": "*fp32", "num_heads": "i32", "dim": 80, "dim_block": 128}
        | dict.fromkeys(("query_row", "query_head", "other_row", "other_head"), "i32"),
    ),
    configs=({"block": 8, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_heads"])
def _cosines(
    query: tl.tensor,
    other: tl.tensor,
    cosines: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    other_row: tl.tensor,
    other_head: tl.tensor,
    num_heads: tl.tensor,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Cosines of some heads."""
    row = tl.program_id(0).to(tl.int64)
    head, channel = tl.program_id(1) * block + tl.arange(0, block), tl.arange(0, dim_block)
    mask = (head < num_heads)[:, None] & (channel < dim)[None]
    at_query = query + row * query_row + head[:, None] * query_head + channel[None]
    at_other = other + row * other_row + head[:, None] * other_head + channel[None]
    left = tl.load(at_query, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(at_other, mask=mask, other=0.0).to(tl.float32)
    norm = tl.maximum(tl.sqrt(tl.sum(left * left, 1)), TINY) * tl.maximum(tl.sqrt(tl.sum(right * right, 1)), TINY)
    cosine = tl.sum(left * right, 1) / tl.maximum(norm, TINY)
    tl.store(cosines + row * num_heads + head, cosine, mask=head < num_heads)


def query_cosines(query: Tensor, other: Tensor) -> Tensor:
    """Twin of the reference."""
    num_rows, num_heads, dim = query.shape
    query, other = dense(query), dense(other)
    cosines = query.new_empty(num_rows, num_heads, dtype=torch.float32)
    strides = (*query.stride()[:2], *other.stride()[:2])
    block = triton.next_power_of_2(dim)
    _cosines[num_rows, triton.cdiv(num_heads, 8)](query, other, cosines, *strides, num_heads, dim, block)
    return cosines


# Numbers of queries that are held at once.
HELD = 8192


@kernel(
    checks=tuple(
        {"query": "*T", "previous": "*T", "similarity": "*fp32", "fired": "*u8", "tau": "*fp32", "by_group": by_group}
        | dict.fromkeys(("query_row", "query_head", "num_heads", "num_groups"), "i32")
        | {"dim": 80, "dim_block": 128, "head_block": 32, "group_block": 8}
        for by_group in (True, False)
    ),
    configs=({"num_warps": 8, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_heads", "num_groups"])
def _turns(
    query: tl.tensor,
    previous: tl.tensor,
    similarity: tl.tensor,
    fired: tl.tensor,
    tau: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    num_heads: tl.tensor,
    num_groups: tl.tensor,
    by_group: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    head_block: tl.constexpr,
    group_block: tl.constexpr,
) -> None:
    """Compare the queries of one sequence, some heads at a time."""
    row = tl.program_id(0).to(tl.int64)
    channel, group = tl.arange(0, dim_block), tl.arange(0, group_block)
    size = num_heads // num_groups
    of_all = 0.0
    of_groups = tl.zeros([group_block], dtype=tl.float32)
    for start in range(0, num_heads, head_block):
        head = start + tl.arange(0, head_block)
        mask = (head < num_heads)[:, None] & (channel < dim)[None]
        new = tl.load(query + row * query_row + head[:, None] * query_head + channel[None], mask=mask, other=0.0)
        at = previous + (row * num_heads + head[:, None]) * dim + channel[None]
        left, right = new.to(tl.float32), tl.load(at, mask=mask, other=0.0).to(tl.float32)
        tl.store(at, new, mask=mask)
        norm = tl.maximum(tl.sqrt(tl.sum(left * left, 1)), TINY) * tl.maximum(tl.sqrt(tl.sum(right * right, 1)), TINY)
        cosine = tl.sum(left * right, 1) / tl.maximum(norm, TINY)
        # Comparisons that NaN fails leave it NaN.
        cosine = tl.where(cosine > 1.0, 1.0, tl.where(cosine < -1.0, -1.0, cosine))
        cosine = tl.where(head < num_heads, cosine, 0.0)
        of_all += tl.sum(cosine, 0)
        if by_group:
            in_group = (head // size)[None] == group[:, None]
            of_groups += tl.sum(tl.where(in_group, cosine[None], 0.0), 1)
    mean = of_all / num_heads
    tl.store(similarity + row, mean)
    of_groups = of_groups / size if by_group else tl.zeros_like(of_groups) + mean
    turns = (of_groups >= tl.load(tau + row)) == 0
    tl.store(fired + row * num_groups + group, turns.to(tl.uint8), mask=group < num_groups)


def turned(query: Tensor, previous: Tensor, similarity: Tensor, tau: Tensor, num_groups: int, by_group: bool) -> Tensor:
    """Twin of the reference."""
    num_rows, num_heads, dim = query.shape
    query = dense(query)
    fired = query.new_empty(num_rows, num_groups, dtype=torch.uint8)
    dim_block = triton.next_power_of_2(dim)
    blocks = (max(1, min(triton.next_power_of_2(num_heads), HELD // dim_block)), triton.next_power_of_2(num_groups))
    strides = query.stride()[:2]
    _turns[num_rows,](
        *(query, previous, similarity, fired, tau, *strides, num_heads, num_groups),
        *(by_group, dim, dim_block, *blocks),
    )
    return fired.view(torch.bool)
