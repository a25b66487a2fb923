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
