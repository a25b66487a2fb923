"""What k-means clusters, in Triton: keys as points around their mean, on a scale that float16 holds well."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_runtime import kernel

# Parts of a row's tokens that are measured apart: at the most, and tokens of one at the least.
MOST_PARTS, PART = 32, 256

_KEYS = {"keys": "*T", "counts": "*i64", **dict.fromkeys(("keys_row", "keys_token", "num_tokens"), "i32")}


@kernel(
    checks=({**_KEYS, "measured": "*fp32", "dim": 80, "dim_block": 128},),
    configs=({"block": 32, "num_warps": 4, "num_stages": 3},),
)
@triton.jit(do_not_specialize=["num_tokens"])
def _measure(
    keys: tl.tensor,
    counts: tl.tensor,
    measured: tl.tensor,
    keys_row: tl.tensor,
    keys_token: tl.tensor,
    num_tokens: tl.tensor,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Sum, least and greatest of each channel over one part of the tokens."""
    row, part, num_parts = tl.program_id(1).to(tl.int64), tl.program_id(0), tl.num_programs(0)
    channel = tl.arange(0, dim_block)
    count = tl.minimum(tl.load(counts + row).to(tl.int32), num_tokens)
    length = tl.cdiv(num_tokens, num_parts)
    total = tl.zeros([dim_block], tl.float32)
    low, high = tl.full([dim_block], float("inf"), tl.float32), tl.full([dim_block], float("-inf"), tl.float32)
    end = tl.minimum(part * length + length, count)
    for start in range(part * length, end, block):
        token = start + tl.arange(0, block)
        is_token = (token < end)[:, None]
        mask = is_token & (channel < dim)[None]
        place = keys + row * keys_row + token.to(tl.int64)[:, None] * keys_token + channel[None]
        key = tl.load(place, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(key, 0)
        low = tl.minimum(low, tl.min(tl.where(is_token, key, float("inf")), 0))
        high = tl.maximum(high, tl.max(tl.where(is_token, key, float("-inf")), 0))
    at = measured + (row * num_parts + part) * 3 * dim + channel
    tl.store(at, total, mask=channel < dim)
    tl.store(at + dim, low, mask=channel < dim)
    tl.store(at + 2 * dim, high, mask=channel < dim)


@kernel(
    checks=tuple(
        {"measured": "*fp32", "counts": "*i64", "mean": "*fp32", "scale": "*fp32", "cosine": cosine}
        | {"dim": 128, "dim_block": 128, "parts": 32}
        for cosine in (False, True)
    ),
    configs=({"num_warps": 4, "num_stages": 1},),
)
@triton.jit
def _find_scale(
    measured: tl.tensor,
    counts: tl.tensor,
    mean: tl.tensor,
    scale: tl.tensor,
    cosine: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    parts: tl.constexpr,
) -> None:
    """Mean of a row's keys, 0 for the cosine; and the power of two by which no number of a point is too great."""
    row, channel = tl.program_id(0).to(tl.int64), tl.arange(0, dim_block)
    part, mask = tl.arange(0, parts)[:, None], (channel < dim)[None]
    at = measured + (row * parts + part) * 3 * dim + channel[None]
    total = tl.sum(tl.load(at, mask=mask, other=0.0), 0)
    low = tl.min(tl.load(at + dim, mask=mask, other=float("inf")), 0)
    high = tl.max(tl.load(at + 2 * dim, mask=mask, other=float("-inf")), 0)
    middle = total / tl.maximum(tl.load(counts + row), 1).to(tl.float32)
    if cosine:
        middle = tl.zeros_like(middle)
    most = tl.max(tl.where(channel < dim, tl.maximum(high - middle, middle - low), 0.0), 0)
    # Where there is no token, or nothing but zeros, any scale is good.
    most = tl.minimum(tl.maximum(most, 1e-30), 1e30)
    # No number is above 2 ** 10; the least that float16 tells apart is 2 ** -24.
    tl.store(scale + row, tl.exp2(tl.floor(10.0 - tl.log2(most))))
    tl.store(mean + row * dim + channel, middle, mask=channel < dim)


@kernel(
    checks=({**_KEYS, "mean": "*fp32", "scale": "*fp32", "points": "*fp16", "dim": 80, "dim_block": 128},),
    configs=({"block": 32, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_tokens"])
def _centre(
    keys: tl.tensor,
    counts: tl.tensor,
    mean: tl.tensor,
    scale: tl.tensor,
    points: tl.tensor,
    keys_row: tl.tensor,
    keys_token: tl.tensor,
    num_tokens: tl.tensor,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Keys less their mean, scaled; 0 where no token is."""
    row = tl.program_id(1).to(tl.int64)
    token, channel = tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, dim_block)
    is_channel = channel < dim
    mask = (token < tl.load(counts + row))[:, None] & is_channel[None]
    keys += row * keys_row + token.to(tl.int64)[:, None] * keys_token + channel[None]
    key = tl.load(keys, mask=mask, other=0.0).to(tl.float32)
    middle = tl.load(mean + row * dim + channel, mask=is_channel, other=0.0)
    point = tl.where(mask, (key - middle[None]) * tl.load(scale + row), 0.0)
    at = points + (row * num_tokens + token)[:, None] * dim + channel[None]
    tl.store(at, point.to(points.dtype.element_ty), mask=(token < num_tokens)[:, None] & is_channel[None])


def points_of(keys: Tensor, counts: Tensor, cosine: bool) -> Tensor:
    """Points of the first `counts` [N] of the keys [N, T, D], dense in D; 0 for the others.

    Returns:
        [N, T, D] keys less their mean (for the cosine as they are) on a scale of each row's own: float16 for keys of 16
        bits, float32 for others.
    """
    num_rows, num_tokens, dim = keys.shape
    dtype = torch.float16 if keys.dtype.itemsize == 2 else torch.float32
    points = torch.empty(num_rows, num_tokens, dim, dtype=dtype, device=keys.device)
    parts = min(MOST_PARTS, triton.next_power_of_2(triton.cdiv(num_tokens, PART)))
    measured = torch.empty(num_rows, parts, 3, dim, device=keys.device)
    mean, scale = measured.new_empty(num_rows, dim), measured.new_empty(num_rows)
    strides, dims = (*keys.stride()[:2], num_tokens), (dim, triton.next_power_of_2(dim))
    _measure[parts, num_rows](keys, counts, measured, *strides, *dims)
    _find_scale[num_rows,](measured, counts, mean, scale, cosine, *dims, parts)
    _centre[triton.cdiv(num_tokens, 32), num_rows](keys, counts, mean, scale, points, *strides, *dims)
    return points
