"""Shares of attention, and the score on which the heads of a query group agree, in Triton."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_functions import NONE, finite, log_sum, logarithm
from louiskv.ops.triton_runtime import as_bytes, dense, kernel, strides_of

# Units of one program, and most partial sums of a row.
BLOCK = 256
MOST_PARTS = tl.constexpr(256)
LEAST = tl.constexpr(float(torch.finfo(torch.float32).min))

_GROUP = {"group": 4, "heads": 4}
_TABLE = dict.fromkeys(("logits_row", "logits_head", "logits_unit", "sizes_row", "num_units"), "i32")


@kernel(
    checks=(
        {"logits": "*fp32", "sizes": "*i32", "parts": "*fp32", **_TABLE, "units_per_part": "i32", **_GROUP}
        | {"where": None, "weighted": True},
        {"logits": "*fp32", "sizes": "*i64", "parts": "*fp32", **_TABLE, "units_per_part": "i32", **_GROUP}
        | {"where": "*u8", "weighted": False},
    ),
    configs=({"block": 256, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_units", "units_per_part", "logits_row", "logits_head", "sizes_row"])
def _sum_up(
    logits: tl.tensor,
    sizes: tl.tensor,
    where: tl.tensor,
    parts: tl.tensor,
    logits_row: tl.tensor,
    logits_head: tl.tensor,
    logits_unit: tl.tensor,
    sizes_row: tl.tensor,
    num_units: tl.tensor,
    units_per_part: tl.tensor,
    weighted: tl.constexpr,
    group: tl.constexpr,
    heads: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Log-sum-exp of the logits of each head over part of the units, each once or as often as it has tokens."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if where is not None:
        if tl.load(where + row) == 0:
            return
    head = tl.arange(0, heads)
    top = tl.full([heads], NONE, tl.float32)
    total = tl.zeros([heads], tl.float32)
    first = part * units_per_part
    for start in range(first, tl.minimum(first + units_per_part, num_units), block):
        unit = start + tl.arange(0, block)
        size = tl.load(sizes + row * sizes_row + unit, mask=unit < num_units, other=0).to(tl.float32)
        at = logits + row * logits_row + head[:, None] * logits_head + unit[None] * logits_unit
        mask = (head < group)[:, None] & (size > 0.0)[None]
        logit = tl.load(at, mask=mask, other=NONE).to(tl.float32)
        if weighted:
            logit += logarithm(size)[None]
        higher = tl.maximum(top, tl.max(logit, 1))
        base = finite(higher)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(logit - base[:, None]), 1)
        top = higher
    at_part = parts + (row * tl.num_programs(1) + part) * group + head
    tl.store(at_part, finite(top) + logarithm(total), mask=head < group)


@triton.jit
def _total(parts: tl.tensor, row: tl.tensor, num_parts: tl.tensor, head: tl.tensor, group: tl.constexpr) -> tl.tensor:
    """Log-sum-exp over the parts of a row, for each head."""
    part = tl.arange(0, MOST_PARTS)
    at = parts + (row * num_parts + part)[:, None] * group + head[None]
    return log_sum(tl.load(at, mask=(part < num_parts)[:, None] & (head < group)[None], other=NONE))


@kernel(
    checks=tuple(
        {"logits": "*fp32", "sizes": "*i32", "parts": "*fp32", "beside": beside, "out": "*fp32", **_TABLE, **_GROUP}
        | {"num_parts": "i32", "beside_row": "i32", "beside_head": "i32"}
        for beside in (None, "*fp32")
    ),
    configs=({"block": 256, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_units", "num_parts", "logits_row", "logits_head", "sizes_row"])
def _share(
    logits: tl.tensor,
    sizes: tl.tensor,
    parts: tl.tensor,
    beside: tl.tensor,
    out: tl.tensor,
    logits_row: tl.tensor,
    logits_head: tl.tensor,
    logits_unit: tl.tensor,
    sizes_row: tl.tensor,
    num_units: tl.tensor,
    num_parts: tl.tensor,
    beside_row: tl.tensor,
    beside_head: tl.tensor,
    group: tl.constexpr,
    heads: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Logarithms of the shares of some units."""
    row = tl.program_id(0).to(tl.int64)
    head, unit = tl.arange(0, heads), tl.program_id(1) * block + tl.arange(0, block)
    total = _total(parts, row, num_parts, head, group)
    if beside is not None:
        other = tl.load(beside + row * beside_row + head * beside_head, mask=head < group, other=NONE).to(tl.float32)
        base = finite(tl.maximum(total, other))
        total = base + logarithm(tl.exp(total - base) + tl.exp(other - base))
    size = tl.load(sizes + row * sizes_row + unit, mask=unit < num_units, other=0)
    mask = (head < group)[:, None] & (size > 0)[None]
    at = logits + row * logits_row + head[:, None] * logits_head + unit[None] * logits_unit
    share = tl.load(at, mask=mask, other=NONE).to(tl.float32) - tl.maximum(total, LEAST)[:, None]
    at_out = out + (row * group + head)[:, None] * num_units + unit[None]
    tl.store(at_out, share, mask=(head < group)[:, None] & (unit < num_units)[None])


@kernel(
    checks=tuple(
        {"logits": "*fp32", "sizes": "*i32", "where": where, "parts": parts, "out": "*fp32", **_TABLE, **_GROUP}
        | {"num_parts": "i32", "log_group": "fp32", "reduce": reduce}
        for where, parts, reduce in (
            (None, "*fp32", "softmax_mean"),
            ("*u8", "*fp32", "softmax_max"),
            ("*u8", None, "share_mean"),
            (None, None, "logit_mean"),
            (None, None, "logit_max"),
        )
    ),
    configs=({"block": 256, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_units", "num_parts", "logits_row", "logits_head", "sizes_row"])
def _reduce(
    logits: tl.tensor,
    sizes: tl.tensor,
    where: tl.tensor,
    parts: tl.tensor,
    out: tl.tensor,
    log_group: tl.tensor,
    logits_row: tl.tensor,
    logits_head: tl.tensor,
    logits_unit: tl.tensor,
    sizes_row: tl.tensor,
    num_units: tl.tensor,
    num_parts: tl.tensor,
    reduce: tl.constexpr,
    group: tl.constexpr,
    heads: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """One score of each of some units."""
    row = tl.program_id(0).to(tl.int64)
    if where is not None:
        if tl.load(where + row) == 0:
            return
    head, unit = tl.arange(0, heads), tl.program_id(1) * block + tl.arange(0, block)
    size = tl.load(sizes + row * sizes_row + unit, mask=unit < num_units, other=0)
    at = logits + row * logits_row + head[:, None] * logits_head + unit[None] * logits_unit
    logit = tl.load(at, mask=(head < group)[:, None] & (size > 0)[None], other=NONE).to(tl.float32)
    if parts is not None:
        logit -= tl.maximum(_total(parts, row, num_parts, head, group), LEAST)[:, None]
    if reduce == "softmax_max" or reduce == "logit_max":
        score = tl.max(logit, 0)
    elif reduce == "softmax_mean" or reduce == "share_mean":
        score = log_sum(logit) - log_group
    else:
        score = tl.sum(tl.where((head < group)[:, None], logit, 0.0), 0) / group
    tl.store(out + row * num_units + unit, tl.where(size > 0, score, NONE), mask=unit < num_units)


def _parts(logits: Tensor, sizes: Tensor, where: Tensor | None, weighted: bool) -> Tensor:
    """[N, P, G] log-sum-exp of parts of the units."""
    num_rows, group, num_units = logits.shape
    blocks_per_part = triton.cdiv(triton.cdiv(num_units, BLOCK), MOST_PARTS.value)
    parts = logits.new_empty(num_rows, triton.cdiv(num_units, blocks_per_part * BLOCK), group, dtype=torch.float32)
    strides = (*logits.stride(), sizes.stride(0))
    _sum_up[num_rows, parts.shape[1]](
        logits, sizes, as_bytes(where), parts, *strides, num_units, blocks_per_part * BLOCK, weighted, *_heads(group)
    )
    return parts


def _heads(group: int) -> tuple[int, int]:
    """Heads of a group, and of a tile that holds them."""
    return group, triton.next_power_of_2(group)


def unit_shares(logits: Tensor, sizes: Tensor, beside: Tensor | None) -> Tensor:
    """Twin of the reference."""
    num_rows, group, num_units = logits.shape
    sizes = dense(sizes)
    parts = _parts(logits, sizes, None, weighted=True)
    out = logits.new_empty(logits.shape, dtype=torch.float32)
    strides = (*logits.stride(), sizes.stride(0), num_units, parts.shape[1], *strides_of(beside, 0, 1))
    _share[num_rows, triton.cdiv(num_units, BLOCK)](logits, sizes, parts, beside, out, *strides, *_heads(group))
    return out


def agree(logits: Tensor, sizes: Tensor, reduce: str, where: Tensor | None) -> Tensor:
    """Twin of the reference."""
    num_rows, group, num_units = logits.shape
    sizes = dense(sizes)
    parts = _parts(logits, sizes, where, weighted=False) if reduce.startswith("softmax") else None
    out = logits.new_empty(num_rows, num_units, dtype=torch.float32)
    strides = (*logits.stride(), sizes.stride(0), num_units, 0 if parts is None else parts.shape[1])
    _reduce[num_rows, triton.cdiv(num_units, BLOCK)](
        logits, sizes, as_bytes(where), parts, out, math.log(group), *strides, reduce, *_heads(group)
    )
    return out
