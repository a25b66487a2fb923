"""Estimated logits of units and scores of tokens in Triton."""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_functions import NONE, log_sum, operand, product
from louiskv.ops.triton_runtime import LEAST_ROWS, as_bytes, bucket, dense, kernel, strides_of


@triton.jit
def _signs(at: tl.tensor, is_there: tl.tensor, dim: tl.constexpr, dim_block: tl.constexpr) -> tl.tensor:
    """Signs [tokens, dim_block], one bit each, of the bytes that begin at `at` [tokens]: each byte is read once."""
    octet = tl.arange(0, dim_block // 8)
    byte = tl.load(at[:, None] + octet[None], mask=is_there[:, None] & (8 * octet < dim)[None], other=0).to(tl.int32)
    bit = (byte[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bit * 2 - 1, [at.shape[0], dim_block])


_LOGITS: dict[str, Any] = {"query": "*T", "out": "*fp32", "scaling": "fp32", "num_units": "i32", "_bucket": "i32"}
_LOGITS |= dict.fromkeys(("query_row", "query_head", "first_row", "first_unit", "second_row", "second_unit"), "i32")
_LOGITS |= {"units_per_scale": "i32", "group": 4, "heads": 16, "dim": 128, "dim_block": 128}


@kernel(
    checks=(
        {**_LOGITS, "first": "*T", "second": None, "where": None, "kind": "dot"},
        {**_LOGITS, "first": "*i8", "second": "*fp16", "where": "*u8", "kind": "sketch"},
        {**_LOGITS, "first": "*T", "second": None, "where": None, "kind": "bound"},
        {**_LOGITS, "first": "*u8", "second": "*T", "where": None, "kind": "one_bit"},
    ),
    configs=(
        {"block": 32, "num_warps": 4, "num_stages": 1},
        {"block": 64, "num_warps": 4, "num_stages": 1},
        {"block": 128, "num_warps": 8, "num_stages": 1},
    ),
    key=("kind", "dim", "group", "_bucket"),
)
@triton.jit(do_not_specialize=["num_units", "units_per_scale", "_bucket"])
def _estimate(
    query: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    where: tl.tensor,
    out: tl.tensor,
    scaling: tl.tensor,
    num_units: tl.tensor,
    units_per_scale: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    first_row: tl.tensor,
    first_unit: tl.tensor,
    second_row: tl.tensor,
    second_unit: tl.tensor,
    _bucket: tl.tensor,
    kind: tl.constexpr,
    group: tl.constexpr,
    heads: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Logits of some units."""
    row = tl.program_id(0).to(tl.int64)
    if where is not None:
        if tl.load(where + row) == 0:
            return
    head, channel = tl.arange(0, heads), tl.arange(0, dim_block)
    unit = tl.program_id(1) * block + tl.arange(0, block)
    is_head, is_channel, is_unit = head < group, channel < dim, unit < num_units
    mask = is_unit[:, None] & is_channel[None]
    at_query = query + row * query_row + head[:, None] * query_head + channel[None]
    asked = tl.load(at_query, mask=is_head[:, None] & is_channel[None], other=0.0)
    of_unit = first + row * first_row + unit.to(tl.int64) * first_unit
    kind_of: tl.constexpr = query.dtype.element_ty
    if kind == "one_bit":
        signs = _signs(of_unit, is_unit, dim, dim_block).to(tl.float32)
        at_scale = second + row * second_row + (unit // units_per_scale)[:, None] * second_unit + channel[None]
        scale = tl.load(at_scale, mask=mask, other=0.0).to(tl.float32)
        middle = tl.load(at_scale + dim, mask=mask, other=0.0)
        logits = product(operand(asked, kind_of), tl.trans(operand(signs * scale, kind_of)))
        logits += product(operand(asked, kind_of), tl.trans(operand(middle, kind_of)))
    elif kind == "bound":
        high = tl.load(of_unit[:, None] + channel[None], mask=mask, other=0.0)
        low = tl.load(of_unit[:, None] + dim + channel[None], mask=mask, other=0.0)
        wide = asked.to(tl.float32)
        logits = product(operand(tl.maximum(wide, 0.0), kind_of), tl.trans(operand(high, kind_of)))
        logits += product(operand(tl.minimum(wide, 0.0), kind_of), tl.trans(operand(low, kind_of)))
    else:
        summary = tl.load(of_unit[:, None] + channel[None], mask=mask, other=0)
        logits = product(operand(asked, kind_of), tl.trans(operand(summary, kind_of)))
    if kind == "sketch":
        at_step = second + row * second_row + unit * second_unit
        logits *= tl.load(at_step, mask=is_unit, other=0.0).to(tl.float32)[None]
    at = out + (row * group + head)[:, None] * num_units + unit[None]
    tl.store(at, logits * scaling, mask=is_head[:, None] & is_unit[None])


def unit_logits(
    query: Tensor, summaries: tuple[Tensor, ...], kind: str, scaling: float, where: Tensor | None
) -> Tensor:
    """Twin of the reference."""
    num_rows, group, dim = query.shape
    query, first = dense(query), dense(summaries[0])
    second = {"sketch": summaries[-1], "one_bit": summaries[-1]}.get(kind)
    num_units = first.shape[1]
    out = query.new_empty(num_rows, group, num_units, dtype=torch.float32)
    _estimate[lambda config: (num_rows, triton.cdiv(num_units, config["block"]))](
        query,
        first,
        second,
        as_bytes(where),
        out,
        scaling,
        num_units,
        num_units // second.shape[1] if kind == "one_bit" and second is not None else 1,
        *query.stride()[:2],
        *first.stride()[:2],
        *strides_of(second, 0, 1),
        _bucket=bucket(num_units),
        kind=kind,
        group=group,
        heads=max(LEAST_ROWS, triton.next_power_of_2(group)),
        dim=dim,
        dim_block=max(16, triton.next_power_of_2(dim)),
    )
    return out


@kernel(
    checks=(
        {"query": "*T", "shares": "*fp32", "bits": "*u8", "steps": "*fp32", "unit": "*i64", "place": "*i64"}
        | {"out": "*fp32", "scaling": "fp32", "log_group": "fp32", "num_wanted": "i32", "_bucket": "i32"}
        | dict.fromkeys(("query_row", "query_head", "shares_row", "shares_head", "bits_row", "bits_token"), "i32")
        | dict.fromkeys(("steps_row", "steps_unit", "unit_row", "place_row"), "i32")
        | {"group": 4, "heads": 16, "dim": 128, "dim_block": 128},
    ),
    configs=(
        {"block": 32, "num_warps": 4, "num_stages": 1},
        {"block": 64, "num_warps": 4, "num_stages": 1},
        {"block": 128, "num_warps": 4, "num_stages": 1},
        {"block": 128, "num_warps": 8, "num_stages": 1},
    ),
    key=("dim", "group", "_bucket"),
)
@triton.jit(
    do_not_specialize=["num_wanted", "_bucket", "shares_row", "shares_head", "steps_row", "unit_row", "place_row"]
)
def _score(
    query: tl.tensor,
    shares: tl.tensor,
    bits: tl.tensor,
    steps: tl.tensor,
    unit: tl.tensor,
    place: tl.tensor,
    out: tl.tensor,
    scaling: tl.tensor,
    log_group: tl.tensor,
    num_wanted: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    shares_row: tl.tensor,
    shares_head: tl.tensor,
    bits_row: tl.tensor,
    bits_token: tl.tensor,
    steps_row: tl.tensor,
    steps_unit: tl.tensor,
    unit_row: tl.tensor,
    place_row: tl.tensor,
    _bucket: tl.tensor,
    group: tl.constexpr,
    heads: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Scores of some tokens."""
    row = tl.program_id(0).to(tl.int64)
    head, channel = tl.arange(0, heads), tl.arange(0, dim_block)
    wanted = tl.program_id(1) * block + tl.arange(0, block)
    is_head, is_channel, is_wanted = head < group, channel < dim, wanted < num_wanted
    of_token = tl.load(unit + row * unit_row + wanted, mask=is_wanted, other=0)
    where = tl.load(place + row * place_row + wanted, mask=is_wanted, other=0).to(tl.int64)
    at_query = query + row * query_row + head[:, None] * query_head + channel[None]
    asked = tl.load(at_query, mask=is_head[:, None] & is_channel[None], other=0.0)
    # Where there is no token any will do.
    where = tl.maximum(where, 0)
    signs = _signs(bits + row * bits_row + where * bits_token, is_wanted, dim, dim_block)
    off = product(operand(asked, query.dtype.element_ty), tl.trans(operand(signs, query.dtype.element_ty))) * scaling
    off *= tl.load(steps + row * steps_row + of_token * steps_unit, mask=is_wanted, other=0.0).to(tl.float32)[None]
    at_share = shares + row * shares_row + head[:, None] * shares_head + of_token[None]
    share = tl.load(at_share, mask=is_head[:, None] & is_wanted[None], other=NONE).to(tl.float32)
    tl.store(out + row * num_wanted + wanted, log_sum(share + off) - log_group, mask=is_wanted)


def score_tokens(
    query: Tensor, shares: Tensor, bits: Tensor, steps: Tensor, unit: Tensor, place: Tensor, scaling: float
) -> Tensor:
    """Twin of the reference."""
    num_rows, group, dim = query.shape
    query, shares, bits, unit, place = (dense(tensor) for tensor in (query, shares, bits, unit, place))
    num_wanted = unit.shape[1]
    out = query.new_empty(unit.shape, dtype=torch.float32)
    strides = (*query.stride()[:2], *shares.stride()[:2], *bits.stride()[:2], *steps.stride())
    _score[lambda config: (num_rows, triton.cdiv(num_wanted, config["block"]))](
        query,
        shares,
        bits,
        steps,
        unit,
        place,
        out,
        scaling,
        math.log(group),
        num_wanted,
        *strides,
        unit.stride(0),
        place.stride(0),
        _bucket=bucket(num_rows * num_wanted),
        group=group,
        heads=max(LEAST_ROWS, triton.next_power_of_2(group)),
        dim=dim,
        dim_block=max(16, triton.next_power_of_2(dim)),
    )
    return out
