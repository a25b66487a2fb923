"""Tokens on the way in Triton; host memory is read and written where it lies, if it is pinned."""

import math

import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_runtime import as_bytes, dense, kernel

# Tokens, and numbers of a token, that one program copies at a time.
TOKENS = 8
NUMBERS = 512


@kernel(
    checks=(
        {"rows": "*T", "bias": "*T", "lengths": "*i64", "keys": "*T", "values": "*T"}
        | dict.fromkeys(("rows_row", "rows_slot", "bias_row", "keys_row", "values_row", "num_sinks", "window"), "i32")
        | {"key_dim": 128, "value_dim": 80, "block": 128},
    ),
    configs=({"num_warps": 1, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["bias_row", "num_sinks", "window"])
def _append(
    rows: tl.tensor,
    bias: tl.tensor,
    lengths: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    rows_row: tl.tensor,
    rows_slot: tl.tensor,
    bias_row: tl.tensor,
    keys_row: tl.tensor,
    values_row: tl.tensor,
    num_sinks: tl.tensor,
    window: tl.tensor,
    key_dim: tl.constexpr,
    value_dim: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Append the token of one row."""
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(lengths + row)
    slot = tl.where(position < num_sinks, position, num_sinks + (tl.maximum(position - num_sinks, 0) % window))
    channel = tl.arange(0, block)
    at = rows + row * rows_row + slot * rows_slot + channel
    tl.store(at, tl.load(keys + row * keys_row + channel, mask=channel < key_dim), mask=channel < key_dim)
    value = tl.load(values + row * values_row + channel, mask=channel < value_dim)
    tl.store(at + key_dim, value, mask=channel < value_dim)
    tl.store(bias + row * bias_row + slot, 0.0)
    tl.store(lengths + row, position + 1)


def append_token(
    rows: Tensor, bias: Tensor, lengths: Tensor, keys: Tensor, values: Tensor, num_sinks: int, window: int
) -> None:
    """Twin of the reference."""
    keys, values = dense(keys), dense(values)
    key_dim, value_dim = keys.shape[1], values.shape[1]
    strides = (*rows.stride()[:2], bias.stride(0), keys.stride(0), values.stride(0))
    block = triton.next_power_of_2(max(key_dim, value_dim))
    _append[len(rows),](rows, bias, lengths, keys, values, *strides, num_sinks, window, key_dim, value_dim, block)


@kernel(
    checks=tuple(
        {"source": kind, "place": "*i32", "missing": "*u8", "target": kind, "num_slots": "i32", "size": "i32"}
        | dict.fromkeys(("source_row", "source_token", "place_row", "missing_row", "target_row", "target_slot"), "i32")
        | {"tokens": 8, "numbers": 256}
        for kind in ("*T", "*i8")
    ),
    configs=({"num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_slots", "place_row", "missing_row"])
def _fetch(
    source: tl.tensor,
    place: tl.tensor,
    missing: tl.tensor,
    target: tl.tensor,
    source_row: tl.tensor,
    source_token: tl.tensor,
    place_row: tl.tensor,
    missing_row: tl.tensor,
    target_row: tl.tensor,
    target_slot: tl.tensor,
    num_slots: tl.tensor,
    size: tl.tensor,
    tokens: tl.constexpr,
    numbers: tl.constexpr,
) -> None:
    """Fill some slots, as far as they miss their token."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * tokens + tl.arange(0, tokens)
    misses = tl.load(missing + row * missing_row + slot, mask=slot < num_slots, other=0) != 0
    token = tl.load(place + row * place_row + slot, mask=misses, other=0).to(tl.int64)
    number = tl.program_id(2) * numbers + tl.arange(0, numbers)
    mask = misses[:, None] & (number < size)[None]
    fetched = tl.load(source + row * source_row + token[:, None] * source_token + number[None], mask=mask)
    at = target + row * target_row + slot.to(tl.int64)[:, None] * target_slot + number[None]
    tl.store(at, fetched, mask=mask)


def fetch_rows(source: Tensor, place: Tensor, missing: Tensor, target: Tensor) -> None:
    """Twin of the reference; the launch takes pinned host memory as it takes the device's."""
    num_rows, num_slots, size = target.shape
    place = dense(place)
    flags = as_bytes(missing)
    assert flags is not None
    numbers = min(NUMBERS, triton.next_power_of_2(size))
    strides = (*source.stride()[:2], place.stride(0), flags.stride(0), *target.stride()[:2])
    _fetch[num_rows, triton.cdiv(num_slots, TOKENS), triton.cdiv(size, numbers)](
        source, place, flags, target, *strides, num_slots, size, TOKENS, numbers
    )


@kernel(
    checks=tuple(
        {"target": kind, "lengths": "*i64", "rows": kind, "counts": "*i64", "num_tokens": "i32", "size": "i32"}
        | {"target_row": "i32", "rows_row": "i32", "rows_token": "i32", "tokens": 8, "numbers": 256}
        for kind in ("*T", "*i8", "*i32")
    ),
    configs=({"num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_tokens", "target_row"])
def _store(
    target: tl.tensor,
    lengths: tl.tensor,
    rows: tl.tensor,
    counts: tl.tensor,
    target_row: tl.tensor,
    rows_row: tl.tensor,
    rows_token: tl.tensor,
    num_tokens: tl.tensor,
    size: tl.tensor,
    tokens: tl.constexpr,
    numbers: tl.constexpr,
) -> None:
    """Write some tokens, as far as they count."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * tokens + tl.arange(0, tokens)
    number = tl.program_id(2) * numbers + tl.arange(0, numbers)
    mask = (token < tl.minimum(tl.load(counts + row), num_tokens))[:, None] & (number < size)[None]
    stored = tl.load(rows + row * rows_row + token.to(tl.int64)[:, None] * rows_token + number[None], mask=mask)
    place = row * target_row + (tl.load(lengths + row) + token)[:, None] * size
    tl.store(target + place + number[None], stored, mask=mask)


def store_rows(target: Tensor, lengths: Tensor, rows: Tensor, counts: Tensor) -> None:
    """Twin of the reference; the launch takes pinned host memory as it takes the device's."""
    num_rows, num_tokens = rows.shape[:2]
    size = math.prod(rows.shape[2:])
    rows = dense(rows.reshape(num_rows, num_tokens, size))
    numbers = min(NUMBERS, triton.next_power_of_2(size))
    _store[num_rows, triton.cdiv(num_tokens, TOKENS), triton.cdiv(size, numbers)](
        target,
        dense(lengths),
        rows,
        dense(counts),
        target.shape[1] * size,
        *rows.stride()[:2],
        num_tokens,
        size,
        TOKENS,
        numbers,
    )
