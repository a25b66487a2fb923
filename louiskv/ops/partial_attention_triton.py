"""Attention of many queries in Triton, block of keys by block of keys: scores are never held.

Idea: FlashAttention-2 (Dao, 2023). The G query heads of a group lie side by side in a tile, and so share its keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_functions import NONE, capped, finite, logarithm, operand, product, weighed
from louiskv.ops.triton_runtime import LEAST_ROWS, as_bytes, dense, kernel, strides_of

# Queries of a tile at the most; fewer where heads are wide, where products of float32 take three of tensor cores, and
# where each query has a mask of its own.
TILE = 128
_TILE_SIZE = TILE * 128 * 4

_SIZES = ("num_queries", "num_keys")
_QUERY_STRIDES = ("query_row", "query_head", "query_token")
_STRIDES = (*_QUERY_STRIDES, "keys_row", "keys_token", "values_row", "values_token")
_MASK_STRIDES = ("mask_row", "mask_query", "mask_key")
_ARGUMENTS = {
    "query": "*T",
    "keys": "*T",
    "values": "*T",
    "mask": None,
    "out": "*fp32",
    "lse": "*fp32",
    "scaling": "fp32",
    "softcap": None,
    **dict.fromkeys((*_SIZES, *_STRIDES, *_MASK_STRIDES), "i32"),
    "causal": False,
    "additive": False,
    "by_query": False,
    "group": 4,
    "dim": 128,
    "value_dim": 128,
    "dim_block": 128,
    "value_block": 128,
    "tile": 64,
}


@kernel(
    checks=(
        {**_ARGUMENTS, "causal": True},
        {**_ARGUMENTS, "mask": "*u8", "softcap": "fp32", "tile": 128},
        {**_ARGUMENTS, "mask": "*u8", "by_query": True},
        {**_ARGUMENTS, "mask": "*T", "additive": True, "by_query": True},
        {**_ARGUMENTS, "dim": 256, "value_dim": 256, "dim_block": 256, "value_block": 256},
    ),
    configs=(
        {"block": 32, "num_warps": 8, "num_stages": 2},
        {"block": 64, "num_warps": 8, "num_stages": 2},
        {"block": 64, "num_warps": 8, "num_stages": 3},
        {"block": 64, "num_warps": 4, "num_stages": 2},
    ),
    key=("causal", "by_query", "group", "dim", "value_dim", "tile"),
)
@triton.jit(do_not_specialize=[*_SIZES, "query_row", "mask_row", "mask_query"])
def _attend(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    mask: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    scaling: tl.tensor,
    softcap: tl.tensor,
    num_queries: tl.tensor,
    num_keys: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    query_token: tl.tensor,
    keys_row: tl.tensor,
    keys_token: tl.tensor,
    values_row: tl.tensor,
    values_token: tl.tensor,
    mask_row: tl.tensor,
    mask_query: tl.tensor,
    mask_key: tl.tensor,
    causal: tl.constexpr,
    additive: tl.constexpr,
    by_query: tl.constexpr,
    group: tl.constexpr,
    dim: tl.constexpr,
    value_dim: tl.constexpr,
    dim_block: tl.constexpr,
    value_block: tl.constexpr,
    tile: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Attend with the queries of one tile, all heads of the first tokens first, to all keys of a row."""
    # The last tiles see the most where it is causal: they begin first.
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * tile
    number = first + tl.arange(0, tile)
    row, first_token = tl.program_id(1).to(tl.int64), (first // group).to(tl.int64)
    channel, value_channel = tl.arange(0, dim_block), tl.arange(0, value_block)
    is_channel, is_value = channel[None] < dim, value_channel[None] < value_dim
    token, head = number // group, number % group
    is_query = token < num_queries
    # What is far is reckoned in 64 bits once for the tile.
    in_tile = token - first // group
    query += row * query_row + first_token * query_token
    here = query + head[:, None] * query_head + in_tile[:, None] * query_token + channel[None]
    asked = tl.load(here, mask=is_query[:, None] & is_channel, other=0.0)
    asked = operand(asked, query.dtype.element_ty)
    top = tl.full([tile], NONE, tl.float32)
    total = tl.zeros([tile], tl.float32)
    acc = tl.zeros([tile, value_block], tl.float32)

    # Keys up to its own are seen by a query, the keys' last one by the last of them.
    own = token + (num_keys - num_queries)
    end = num_keys
    if causal:
        end = tl.minimum(end, tl.max(own) + 1)
    keys += row * keys_row
    values += row * values_row
    if mask is not None:
        mask += row * mask_row + first_token * mask_query
    for start in range(0, end, block):
        key_place = start + tl.arange(0, block)
        is_key = key_place < num_keys
        is_open = is_key[None]
        added = 0.0
        if causal:
            is_open = is_open & (key_place[None] <= own[:, None])
        if mask is not None:
            there = mask + key_place[None] * mask_key
            if by_query:
                is_open = is_open & is_query[:, None]
                there += in_tile[:, None] * mask_query
            if additive:
                added = tl.load(there, mask=is_open, other=NONE).to(tl.float32)
                is_open = added > NONE
            else:
                is_open = is_open & (tl.load(there, mask=is_open, other=0) != 0)
            # What nobody sees is not read: it may be anything.
            is_key = tl.max(is_open.to(tl.int32), 0) > 0
        wide = key_place.to(tl.int64)[:, None]
        at = keys + wide * keys_token + channel[None]
        key = operand(tl.load(at, mask=is_key[:, None] & is_channel, other=0.0), query.dtype.element_ty)
        scores = capped(product(asked, tl.trans(key)) * scaling, softcap) + added
        top, total, kept, weights = weighed(tl.where(is_open, scores, NONE), top, total)
        at = values + wide * values_token + value_channel[None]
        value = operand(tl.load(at, mask=is_key[:, None] & is_value, other=0.0), query.dtype.element_ty)
        acc = acc * kept[:, None] + product(operand(weights, query.dtype.element_ty), value)

    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    place = (row * group + head) * num_queries + token
    tl.store(lse + place, finite(top) + logarithm(total), mask=is_query)
    tl.store(out + place[:, None] * value_dim + value_channel[None], acc, mask=is_query[:, None] & is_value)


def partial_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float,
    causal: bool,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Twin of the reference; NaN in keys and values that no query sees is never read."""
    num_rows, group, num_queries, dim = query.shape
    num_keys, value_dim = values.shape[1:]
    out = query.new_empty(num_rows, group, num_queries, value_dim, dtype=torch.float32)
    lse = query.new_empty(num_rows, group, num_queries, dtype=torch.float32)
    if not out.numel():
        return out, lse
    query, keys, values = (dense(tensor) for tensor in (query, keys, values))
    additive = mask is not None and mask.dtype != torch.bool
    mask = mask if additive else as_bytes(mask)
    dim_block = max(LEAST_ROWS, triton.next_power_of_2(dim))
    by_query = mask is not None and mask.shape[2] > 1
    most = min(TILE // 2 if by_query else TILE, _TILE_SIZE // (dim_block * query.itemsize**2))
    tile = max(LEAST_ROWS, min(most, triton.next_power_of_2(group * num_queries)))
    _attend[triton.cdiv(group * num_queries, tile), num_rows](
        *(query, keys, values, mask, out, lse, scaling, softcap, num_queries, num_keys),
        *query.stride()[:3],
        *(stride for tensor in (keys, values) for stride in tensor.stride()[:2]),
        *strides_of(mask, 0, 2, 3),
        causal=causal,
        additive=additive,
        by_query=by_query,
        group=group,
        dim=dim,
        value_dim=value_dim,
        dim_block=dim_block,
        value_block=max(LEAST_ROWS, triton.next_power_of_2(value_dim)),
        tile=tile,
    )
    return out, lse
