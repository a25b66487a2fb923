"""Sketches of units and of bundles, in Triton: one program for each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_functions import rounded
from louiskv.ops.triton_runtime import dense, kernel

# Sizes that a program adds up itself, to know where its unit begins.
FEW_UNITS = 64
# Added to a number and taken off again it leaves the nearest whole one, of two the even one; up to 2 ** 22.
ROUNDS = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def _tokens_at(
    rows: tl.tensor,
    start: tl.tensor,
    size: tl.tensor,
    rows_token: tl.tensor,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    block: tl.constexpr,
) -> tl.tensor:
    """Some tokens [block, dim_block] of a unit in float32; 0 where there is none."""
    token, channel = start + tl.arange(0, block), tl.arange(0, dim_block)
    mask = (token < size)[:, None] & (channel < dim)[None]
    return tl.load(rows + token.to(tl.int64)[:, None] * rows_token + channel[None], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _mean(
    rows: tl.tensor,
    size: tl.tensor,
    rows_token: tl.tensor,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    block: tl.constexpr,
) -> tl.tensor:
    """Mean of the tokens of a unit, in the dtype of the rows."""
    total = tl.zeros([dim_block], tl.float32)
    for start in range(0, size, block):
        total += tl.sum(_tokens_at(rows, start, size, rows_token, dim, dim_block, block), 0)
    return rounded(tl.div_rn(total, tl.maximum(size, 1).to(tl.float32)), rows.dtype.element_ty)


@triton.jit
def _coded(mean: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """A vector in 8 bits: its codes, and its step in float32."""
    most = tl.max(tl.abs(mean), 0)
    step = rounded(tl.div_rn(most, 127.0 + most * 0.0), tl.float16)
    code = tl.div_rn(mean, tl.where(step > 0.0, step, 1.0) + mean * 0.0)
    code = tl.minimum(tl.maximum((code + ROUNDS) - ROUNDS, -127.0), 127.0)
    return code, step


_ROWS = {"keys": "*T", "values": "*T"}
_OUT = {"key_codes": "*i8", "value_codes": "*i8", "steps": "*fp16"}
_DIMS = {"dim": 80, "dim_block": 128, "value_dim": 128, "value_block": 128}


@kernel(
    checks=tuple(
        {**_ROWS, "sizes": sizes, "through": through, **_OUT, "bits": bits, "num_units": "i32"}
        | dict.fromkeys(("keys_row", "keys_token", "values_row", "values_token", "sizes_row", "num_tokens"), "i32")
        | {**_DIMS, "unit_block": 64}
        for sizes, through, bits in (("*i64", None, "*u8"), ("*i32", "*i64", None))
    ),
    configs=({"block": 16, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["sizes_row", "num_tokens", "num_units"])
def _sketch(
    keys: tl.tensor,
    values: tl.tensor,
    sizes: tl.tensor,
    through: tl.tensor,
    key_codes: tl.tensor,
    value_codes: tl.tensor,
    steps: tl.tensor,
    bits: tl.tensor,
    keys_row: tl.tensor,
    keys_token: tl.tensor,
    values_row: tl.tensor,
    values_token: tl.tensor,
    sizes_row: tl.tensor,
    num_tokens: tl.tensor,
    num_units: tl.tensor,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    value_dim: tl.constexpr,
    value_block: tl.constexpr,
    unit_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Sketch one unit and its tokens."""
    unit, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    size = tl.load(sizes + row * sizes_row + unit).to(tl.int32)
    if through is None:
        lane = tl.arange(0, unit_block)
        first = tl.sum(tl.load(sizes + row * sizes_row + lane, mask=lane < unit, other=0), 0).to(tl.int64)
    else:
        first = tl.load(through + row * num_units + unit) - size
    keys += row * keys_row + first * keys_token
    channel = tl.arange(0, dim_block)
    code, step = _coded(_mean(keys, size, keys_token, dim, dim_block, block))
    centre, away = code * step, tl.zeros([block], tl.float32)
    for start in range(0, size, block):
        token = start + tl.arange(0, block)
        is_token, is_channel = token < size, channel < dim
        off = _tokens_at(keys, start, size, keys_token, dim, dim_block, block) - centre[None]
        mask = is_token[:, None] & is_channel[None]
        away += tl.sum(tl.where(mask, tl.abs(off), 0.0), 1)
        if bits is not None:
            byte = tl.arange(0, dim_block // 8)
            one = tl.reshape((mask & (off >= 0.0)).to(tl.int32), [block, dim_block // 8, 8])
            packed = tl.sum(one << tl.arange(0, 8)[None, None], 2)
            at = (row * num_tokens + first + token)[:, None] * ((dim + 7) // 8) + byte[None]
            tl.store(bits + at, packed.to(tl.uint8), mask=is_token[:, None] & (byte < (dim + 7) // 8)[None])
    spread = tl.sum(away, 0) / dim / tl.maximum(size, 1).to(tl.float32)
    at = row * num_units + unit
    tl.store(key_codes + at * dim + channel, code.to(tl.int8), mask=channel < dim)
    tl.store(steps + at * 3, step.to(tl.float16))
    tl.store(steps + at * 3 + 2, spread.to(tl.float16))
    values, channel = values + row * values_row + first * values_token, tl.arange(0, value_block)
    code, step = _coded(_mean(values, size, values_token, value_dim, value_block, block))
    tl.store(value_codes + at * value_dim + channel, code.to(tl.int8), mask=channel < value_dim)
    tl.store(steps + at * 3 + 1, step.to(tl.float16))


def sketch_units(
    keys: Tensor, values: Tensor, sizes: Tensor, token_bits: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Twin of the reference."""
    num_rows, num_units = sizes.shape
    keys, values, sizes = dense(keys), dense(values), dense(sizes)
    num_tokens, dims = keys.shape[1], (keys.shape[2], values.shape[2])
    key_codes, value_codes = (keys.new_empty(num_rows, num_units, dim, dtype=torch.int8) for dim in dims)
    steps = keys.new_empty(num_rows, num_units, 3, dtype=torch.float16)
    bits = keys.new_empty(num_rows, num_tokens, -(-dims[0] // 8), dtype=torch.uint8) if token_bits else None
    through = sizes.cumsum(1) if num_units > FEW_UNITS else None
    strides = (*keys.stride()[:2], *values.stride()[:2], sizes.stride(0), num_tokens, num_units)
    constants = [size for dim in dims for size in (dim, max(8, triton.next_power_of_2(dim)))]
    out = (key_codes, value_codes, steps, bits)
    _sketch[num_units, num_rows](keys, values, sizes, through, *out, *strides, *constants, FEW_UNITS)
    return out


@triton.jit
def _bundle_of(
    codes: tl.tensor,
    steps: tl.tensor,
    size: tl.tensor,
    unit: tl.tensor,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Codes and step of the mean over the tokens of units [units] whose codes and steps begin there."""
    channel, here = tl.arange(0, dim_block), size > 0.0
    code = tl.load(codes + unit[:, None] * dim + channel[None], mask=here[:, None] & (channel < dim)[None], other=0)
    step = tl.load(steps + unit * 3, mask=here, other=0.0).to(tl.float32)
    total = tl.sum(code.to(tl.float32) * step[:, None] * size[:, None], 0)
    coded, coded_step = _coded(tl.div_rn(total, tl.maximum(tl.sum(size, 0), 1.0) + total * 0.0))
    return coded, coded_step


@kernel(
    checks=(
        {**_OUT, "sizes": "*i32", "begin": "*i64", "counts": "*i64"}
        | {"bundled_keys": "*i8", "bundled_values": "*i8", "bundled_steps": "*fp16", "num_bundles": "i32"}
        | {**_DIMS, "bundle_size": 15, "units": 16},
    ),
    configs=({"num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_bundles"])
def _bundle(
    key_codes: tl.tensor,
    value_codes: tl.tensor,
    steps: tl.tensor,
    sizes: tl.tensor,
    begin: tl.tensor,
    counts: tl.tensor,
    bundled_keys: tl.tensor,
    bundled_values: tl.tensor,
    bundled_steps: tl.tensor,
    num_bundles: tl.tensor,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    value_dim: tl.constexpr,
    value_block: tl.constexpr,
    bundle_size: tl.constexpr,
    units: tl.constexpr,
) -> None:
    """Sketch one bundle anew, if units have come to it."""
    row = tl.program_id(1).to(tl.int64)
    bundle = tl.load(begin + row) // bundle_size + tl.program_id(0)
    if (bundle < num_bundles) & (bundle * bundle_size < tl.load(counts + row)):
        lane, at = tl.arange(0, units), row * num_bundles + bundle
        unit = at * bundle_size + lane
        size = tl.load(sizes + unit, mask=lane < bundle_size, other=0).to(tl.float32)
        code, step = _bundle_of(key_codes, steps, size, unit, dim, dim_block)
        channel = tl.arange(0, dim_block)
        tl.store(bundled_keys + at * dim + channel, code.to(tl.int8), mask=channel < dim)
        tl.store(bundled_steps + at * 3, step.to(tl.float16))
        code, step = _bundle_of(value_codes, steps + 1, size, unit, value_dim, value_block)
        channel = tl.arange(0, value_block)
        tl.store(bundled_values + at * value_dim + channel, code.to(tl.int8), mask=channel < value_dim)
        tl.store(bundled_steps + at * 3 + 1, step.to(tl.float16))
        tl.store(bundled_steps + at * 3 + 2, (step * 0.0).to(tl.float16))


def bundle_sketches(
    key_codes: Tensor,
    value_codes: Tensor,
    steps: Tensor,
    sizes: Tensor,
    begin: Tensor,
    counts: Tensor,
    bundled_keys: Tensor,
    bundled_values: Tensor,
    bundled_steps: Tensor,
    most: int,
    bundle_size: int,
) -> None:
    """Twin of the reference."""
    num_rows, num_bundles = bundled_steps.shape[:2]
    given = (key_codes.contiguous(), value_codes.contiguous(), steps.contiguous(), sizes.contiguous())
    blocks = [size for codes in given[:2] for size in (codes.shape[2], triton.next_power_of_2(codes.shape[2]))]
    width = min(most // bundle_size + 2, num_bundles)
    if width:
        _bundle[width, num_rows](
            *given,
            dense(begin),
            dense(counts),
            bundled_keys,
            bundled_values,
            bundled_steps,
            num_bundles,
            *blocks,
            bundle_size,
            triton.next_power_of_2(bundle_size),
        )
