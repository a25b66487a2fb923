"""Decode attention in Triton: the keys are split into parts that are attended to at once, then the parts are merged.

Idea: flash-decoding (Dao and others, 2023). All G query heads of a group use each key that is loaded.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_functions import NONE, capped, finite, logarithm, operand, product, weighed
from louiskv.ops.triton_runtime import LEAST_ROWS, bucket, dense, kernel, strides_of

# A part is a multiple of this many keys, whatever the configuration, so that configurations split alike.
SPLIT = tl.constexpr(64)
# As many programs as fill a large GPU twice; more rows than these need no splits.
PROGRAMS = 256

_SIZES = dict.fromkeys(("num_slots", "num_chosen", "num_entries", "num_parts", "splits_per_part", "_bucket"), "i32")
_SLOT_STRIDES = ("query_row", "query_head", "keys_row", "keys_slot", "values_row", "values_slot", "bias_row")
_CHOSEN_STRIDES = ("rows_row", "rows_place", "place_row")
_LOGIT_STRIDES = ("logits_row", "logits_head", "logits_entry", "left_row", "left_entry")
_REST_STRIDES = (*_LOGIT_STRIDES, "rest_values_row", "rest_values_entry", "steps_row", "steps_entry")
_STRIDES = dict.fromkeys((*_SLOT_STRIDES, *_CHOSEN_STRIDES, *_REST_STRIDES), "i32")
_BLOCKS = {"dim": 128, "value_dim": 128, "group": 4, "dim_block": 128, "value_block": 128, "heads": 16}
_SLOTS = {"query": "*T", "keys": "*T", "values": "*T", "out": "*fp32", "lse": "*fp32", "scaling": "fp32"}
_SLOTS_ALONE = dict.fromkeys(("bias", "rows", "place", "logits", "left", "rest_values", "steps", "softcap"))
_BESIDE = {"bias": "*T", "rows": "*T", "place": "*i32", "logits": "*fp32", "left": "*i32", "softcap": "fp32"}
_CODES = {"rest_values": "*i8", "steps": "*fp16"}


@kernel(
    checks=(
        {**_SLOTS, **_BESIDE, **_CODES, **_SIZES, **_STRIDES, **_BLOCKS, "rest_precision": "tf32"},
        {**_SLOTS, **_SLOTS_ALONE, **_SIZES, **_STRIDES, **_BLOCKS, "rest_precision": "tf32"},
        {**_SLOTS, **_SLOTS_ALONE, **_SIZES, **_STRIDES, **_BLOCKS, "rest_precision": "tf32"}
        | {"dim": 256, "value_dim": 256, "dim_block": 256, "value_block": 256},
    ),
    configs=(
        {"block": 32, "num_warps": 4, "num_stages": 2},
        {"block": 64, "num_warps": 4, "num_stages": 2},
        {"block": 64, "num_warps": 4, "num_stages": 3},
        {"block": 32, "num_warps": 2, "num_stages": 4},
    ),
    key=("dim", "value_dim", "group", "_bucket"),
)
@triton.jit(do_not_specialize=[*_SIZES, "left_row", "bias_row", "logits_row", "logits_head", "steps_row"])
def _attend(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    place: tl.tensor,
    logits: tl.tensor,
    left: tl.tensor,
    rest_values: tl.tensor,
    steps: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    scaling: tl.tensor,
    softcap: tl.tensor,
    num_slots: tl.tensor,
    num_chosen: tl.tensor,
    num_entries: tl.tensor,
    num_parts: tl.tensor,
    splits_per_part: tl.tensor,
    query_row: tl.tensor,
    query_head: tl.tensor,
    keys_row: tl.tensor,
    keys_slot: tl.tensor,
    values_row: tl.tensor,
    values_slot: tl.tensor,
    bias_row: tl.tensor,
    rows_row: tl.tensor,
    rows_place: tl.tensor,
    place_row: tl.tensor,
    logits_row: tl.tensor,
    logits_head: tl.tensor,
    logits_entry: tl.tensor,
    left_row: tl.tensor,
    left_entry: tl.tensor,
    rest_values_row: tl.tensor,
    rest_values_entry: tl.tensor,
    steps_row: tl.tensor,
    steps_entry: tl.tensor,
    _bucket: tl.tensor,
    dim: tl.constexpr,
    value_dim: tl.constexpr,
    group: tl.constexpr,
    dim_block: tl.constexpr,
    value_block: tl.constexpr,
    heads: tl.constexpr,
    rest_precision: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Attend over one part of what a row attends to: slots, then chosen tokens, then entries of the rest."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head, channel, value_channel = tl.arange(0, heads), tl.arange(0, dim_block), tl.arange(0, value_block)
    is_channel, is_value = channel[None] < dim, value_channel[None] < value_dim
    here = query + row * query_row + head[:, None] * query_head + channel[None]
    asked = tl.load(here, mask=(head[:, None] < group) & is_channel, other=0.0)
    asked = operand(asked, query.dtype.element_ty)
    top = tl.full([heads], NONE, tl.float32)
    total = tl.zeros([heads], tl.float32)
    acc = tl.zeros([heads, value_block], tl.float32)

    # From here on the first key of the part is counted from the first key of each source.
    first = part * splits_per_part * SPLIT
    length = splits_per_part * SPLIT
    for start in range(tl.minimum(first, num_slots), tl.minimum(first + length, num_slots), block):
        slot = start + tl.arange(0, block)
        is_open = slot < num_slots
        if bias is not None:
            added = tl.load(bias + row * bias_row + slot, mask=is_open, other=NONE).to(tl.float32)
            is_open = added > NONE
        wide = slot.to(tl.int64)[:, None]
        at = keys + row * keys_row + wide * keys_slot + channel[None]
        key = operand(tl.load(at, mask=is_open[:, None] & is_channel, other=0.0), query.dtype.element_ty)
        scores = capped(product(asked, tl.trans(key)) * scaling, softcap)
        if bias is not None:
            scores += added[None]
        top, total, kept, weights = weighed(tl.where(is_open[None], scores, NONE), top, total)
        at = values + row * values_row + wide * values_slot + value_channel[None]
        value = operand(tl.load(at, mask=is_open[:, None] & is_value, other=0.0), query.dtype.element_ty)
        acc = acc * kept[:, None] + product(operand(weights, query.dtype.element_ty), value)
    first -= tl.cdiv(num_slots, SPLIT) * SPLIT

    if rows is not None:
        begin = tl.minimum(tl.maximum(first, 0), num_chosen)
        for start in range(begin, tl.minimum(tl.maximum(first + length, 0), num_chosen), block):
            number = start + tl.arange(0, block)
            chosen = tl.load(place + row * place_row + number, mask=number < num_chosen, other=-1).to(tl.int64)
            is_open = chosen >= 0
            at = rows + row * rows_row + chosen[:, None] * rows_place
            key = tl.load(at + channel[None], mask=is_open[:, None] & is_channel, other=0.0)
            key = operand(key, query.dtype.element_ty)
            scores = capped(product(asked, tl.trans(key)) * scaling, softcap)
            top, total, kept, weights = weighed(tl.where(is_open[None], scores, NONE), top, total)
            value = tl.load(at + dim + value_channel[None], mask=is_open[:, None] & is_value, other=0.0)
            value = operand(value, query.dtype.element_ty)
            acc = acc * kept[:, None] + product(operand(weights, query.dtype.element_ty), value)
        first -= tl.cdiv(num_chosen, SPLIT) * SPLIT

    if logits is not None:
        begin = tl.minimum(tl.maximum(first, 0), num_entries)
        for start in range(begin, tl.minimum(tl.maximum(first + length, 0), num_entries), block):
            entry = start + tl.arange(0, block)
            at_left = left + row * left_row + entry * left_entry
            count = tl.load(at_left, mask=entry < num_entries, other=0).to(tl.float32)
            is_open = count > 0.0
            at = logits + row * logits_row + head[:, None] * logits_head + entry[None] * logits_entry
            scores = tl.load(at, mask=is_open[None] & (head[:, None] < group), other=0.0).to(tl.float32)
            scores = tl.where(is_open[None], capped(scores, softcap) + logarithm(count)[None], NONE)
            top, total, kept, weights = weighed(scores, top, total)
            step = tl.load(steps + row * steps_row + entry * steps_entry, mask=is_open, other=0.0).to(tl.float32)
            at = rest_values + row * rest_values_row + entry.to(tl.int64)[:, None] * rest_values_entry
            value = tl.load(at + value_channel[None], mask=is_open[:, None] & is_value, other=0).to(tl.float32)
            # A small weight times a small step leaves the range of float16, but not that of tensor floats.
            estimated = tl.dot(weights * step[None], value, input_precision=rest_precision)
            acc = acc * kept[:, None] + estimated

    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    place_of_part = (row * num_parts + part) * group + head
    tl.store(lse + place_of_part, finite(top) + logarithm(total), mask=head < group)
    at = out + place_of_part[:, None] * value_dim + value_channel[None]
    tl.store(at, acc, mask=(head[:, None] < group) & is_value)


@kernel(
    checks=(
        {"out": "*fp32", "lse": "*fp32", "sinks": None, "merged": "*T"}
        | dict.fromkeys(("num_parts", "sinks_row", "sinks_head"), "i32")
        | {"group": 4, "value_dim": 128, "value_block": 128},
        {"out": "*fp32", "lse": "*fp32", "sinks": "*T", "merged": "*T"}
        | dict.fromkeys(("num_parts", "sinks_row", "sinks_head"), "i32")
        | {"group": 4, "value_dim": 128, "value_block": 128},
    ),
    configs=({"block": 32, "num_warps": 4, "num_stages": 2},),
)
@triton.jit(do_not_specialize=["num_parts", "sinks_row"])
def _merge(
    out: tl.tensor,
    lse: tl.tensor,
    sinks: tl.tensor,
    merged: tl.tensor,
    num_parts: tl.tensor,
    sinks_row: tl.tensor,
    sinks_head: tl.tensor,
    group: tl.constexpr,
    value_dim: tl.constexpr,
    value_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Merge the parts of one head."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, value_block)
    top = tl.full([1], NONE, tl.float32)
    total = tl.zeros([1], tl.float32)
    if sinks is not None:
        top = tl.zeros([1], tl.float32) + tl.load(sinks + row * sinks_row + head * sinks_head).to(tl.float32)
        total = tl.full([1], 1.0, tl.float32)
    acc = tl.zeros([value_block], tl.float32)
    for start in range(0, num_parts, block):
        part = start + tl.arange(0, block)
        at = (row * num_parts + part) * group + head
        scores = tl.load(lse + at, mask=part < num_parts, other=NONE)
        is_part = (part < num_parts)[:, None] & (channel[None] < value_dim)
        of_part = tl.load(out + at[:, None] * value_dim + channel[None], mask=is_part, other=0.0)
        top, total, kept, weights = weighed(scores[None], top, total)
        acc = acc * kept + tl.sum(tl.trans(weights) * of_part, 0)
    acc = acc / tl.where(total > 0.0, total, 1.0)
    tl.store(merged + (row * group + head) * value_dim + channel, acc, mask=channel < value_dim)


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scaling: float,
    softcap: float | None,
    attention_sinks: Tensor | None,
    chosen: tuple[Tensor, Tensor] | None,
    rest: tuple[Tensor, Tensor, Tensor, Tensor] | None,
) -> Tensor:
    """Twin of the reference; NaN in closed slots is never read."""
    num_rows, group, dim = query.shape
    num_slots, value_dim = keys.shape[1], values.shape[2]
    rows, place = (None, None) if chosen is None else map(dense, chosen)
    logits, left, rest_values, steps = (None, None, None, None) if rest is None else rest
    rest_values = None if rest_values is None else dense(rest_values)
    num_chosen = 0 if place is None else place.shape[1]
    num_entries = 0 if logits is None else logits.shape[2]
    num_splits = sum(triton.cdiv(size, SPLIT.value) for size in (num_slots, num_chosen, num_entries))
    splits_per_part = triton.cdiv(num_splits, triton.cdiv(PROGRAMS, num_rows))
    num_parts = triton.cdiv(num_splits, splits_per_part)
    out = query.new_empty(num_rows, num_parts, group, value_dim, dtype=torch.float32)
    lse = query.new_empty(num_rows, num_parts, group, dtype=torch.float32)
    value_block = max(LEAST_ROWS, triton.next_power_of_2(value_dim))
    query, keys, values = (dense(tensor) for tensor in (query, keys, values))
    tensors = (query, keys, values, bias, rows, place, logits, left, rest_values, steps, out, lse)
    sizes = (num_slots, num_chosen, num_entries, num_parts, splits_per_part)
    strides = (
        *(stride for tensor in (query, keys, values) for stride in tensor.stride()[:2]),
        0 if bias is None or len(bias) == 1 else bias.stride(0),
        *strides_of(rows, 0, 1),
        *strides_of(place, 0),
        *strides_of(logits, 0, 1, 2),
        *strides_of(left, 0, 1),
        *strides_of(rest_values, 0, 1),
        *strides_of(steps, 0, 1),
    )
    _attend[num_rows, num_parts](
        *tensors,
        scaling,
        softcap,
        *sizes,
        *strides,
        _bucket=bucket(num_slots + num_chosen + num_entries),
        dim=dim,
        value_dim=value_dim,
        group=group,
        dim_block=max(LEAST_ROWS, triton.next_power_of_2(dim)),
        value_block=value_block,
        heads=max(LEAST_ROWS, triton.next_power_of_2(group)),
        rest_precision="ieee" if query.dtype == torch.float32 else "tf32",
    )
    merged = query.new_empty(num_rows, group, value_dim)
    _merge[num_rows, group](
        out, lse, attention_sinks, merged, num_parts, *strides_of(attention_sinks, 0, 1), group, value_dim, value_block
    )
    return merged
