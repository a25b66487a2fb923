"""How much a query attends to some keys altogether, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_functions import NONE, finite, logarithm, operand, product
from louiskv.ops.triton_runtime import LEAST_ROWS, dense, kernel, strides_of

_STRIDES = ("query_row", "query_head", "keys_row", "keys_slot", "bias_row", "bias_slot", "sinks_row", "sinks_head")


@kernel(
    checks=tuple(
        {"query": "*T", "keys": "*T", "bias": "*T", "sinks": sinks, "out": "*fp32", "scaling": "fp32"}
        | {"num_slots": "i32", **dict.fromkeys(_STRIDES, "i32")}
        | {"group": 4, "heads": 16, "dim": dim, "dim_block": dim}
        for sinks, dim in ((None, 128), ("*T", 256))
    ),
    configs=({"block": 64, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_slots", "bias_row", "bias_slot", "sinks_row"])
def _sum_up(
    query: tl.tensor,
    keys: tl.tensor,
    bias: tl.tensor,
    sinks: tl.tensor,
    out: tl.tensor,
    scaling: tl.tensor,
    num_slots: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    keys_row: tl.tensor,
    keys_slot: tl.tensor,
    bias_row: tl.tensor,
    bias_slot: tl.tensor,
    sinks_row: tl.tensor,
    sinks_head: tl.tensor,
    group: tl.constexpr,
    heads: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """All keys of one row: there are few, sinks and a window."""
    row = tl.program_id(0).to(tl.int64)
    head, channel = tl.arange(0, heads), tl.arange(0, dim_block)
    is_head, is_channel = head < group, (channel < dim)[None]
    here = query + row * query_row + head[:, None] * query_head + channel[None]
    asked = operand(tl.load(here, mask=is_head[:, None] & is_channel, other=0.0), query.dtype.element_ty)
    top = tl.full([heads], NONE, tl.float32)
    total = tl.zeros([heads], tl.float32)
    if sinks is not None:
        top = tl.load(sinks + row * sinks_row + head * sinks_head, mask=is_head, other=NONE).to(tl.float32)
        total = tl.where(top > NONE, 1.0, 0.0)
    for start in range(0, num_slots, block):
        slot = start + tl.arange(0, block)
        added = tl.load(bias + row * bias_row + slot * bias_slot, mask=slot < num_slots, other=NONE).to(tl.float32)
        at = keys + row * keys_row + slot.to(tl.int64)[:, None] * keys_slot + channel[None]
        key = tl.load(at, mask=(added > NONE)[:, None] & is_channel, other=0.0)
        logits = product(asked, tl.trans(operand(key, query.dtype.element_ty))) * scaling + added[None]
        higher = tl.maximum(top, tl.max(logits, 1))
        base = finite(higher)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(logits - base[:, None]), 1)
        top = higher
    tl.store(out + row * group + head, finite(top) + logarithm(total), mask=is_head)


def log_sums(query: Tensor, keys: Tensor, bias: Tensor, scaling: float, attention_sinks: Tensor | None) -> Tensor:
    """Twin of the reference; closed keys are not read."""
    num_rows, group, dim = query.shape
    query, keys = dense(query), dense(keys)
    out = query.new_empty(num_rows, group, dtype=torch.float32)
    strides = (*query.stride()[:2], *keys.stride()[:2], *strides_of(bias, 0, 2), *strides_of(attention_sinks, 0, 1))
    heads, dim_block = (max(LEAST_ROWS, triton.next_power_of_2(size)) for size in (group, dim))
    _sum_up[num_rows,](
        query, keys, bias, attention_sinks, out, scaling, keys.shape[1], *strides, group, heads, dim, dim_block
    )
    return out
