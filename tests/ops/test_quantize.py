"""Bits in bytes, and rows in codes of 8 bits, against arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.ops.quantize import pack_bits, signs_of, to_int8, unpack_bits

flags = st.integers(1, 40).flatmap(
    lambda dim: st.lists(st.lists(st.booleans(), min_size=dim, max_size=dim), min_size=1, max_size=4)
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(rows=flags)
def test_bit_j_of_a_byte_is_channel_j_of_its_eight(rows: list[list[bool]]) -> None:
    packed = pack_bits(torch.tensor(rows))
    assert packed.dtype == torch.uint8
    for row, got in zip(rows, packed.tolist(), strict=True):
        eights = [row[first : first + 8] for first in range(0, len(row), 8)]
        assert got == [sum(bit << place for place, bit in enumerate(eight)) for eight in eights]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(rows=flags)
def test_unpacking_gives_back_what_was_packed(rows: list[list[bool]]) -> None:
    bits = torch.tensor(rows)
    got = unpack_bits(pack_bits(bits), bits.shape[-1])
    assert got.dtype == torch.bool
    assert torch.equal(got, bits)


@pytest.mark.parametrize("shape", [(0,), (0, 9), (2, 0, 5), (3, 2, 17)])
def test_any_number_of_dimensions_also_empty_ones(shape: tuple[int, ...]) -> None:
    bits = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).bool()
    packed = pack_bits(bits)
    assert packed.shape == (*shape[:-1], -(-shape[-1] // 8))
    assert torch.equal(unpack_bits(packed, shape[-1]), bits)
    assert torch.equal(signs_of(packed, shape[-1], torch.bfloat16), bits.bfloat16() * 2 - 1)


def test_every_byte() -> None:
    packed = torch.arange(256, dtype=torch.uint8)[:, None]
    assert torch.equal(pack_bits(unpack_bits(packed, 8)), packed)


def test_bits_that_are_not_contiguous() -> None:
    bits = torch.randint(0, 2, (11, 6), generator=torch.Generator().manual_seed(0)).bool()
    assert torch.equal(pack_bits(bits.T), pack_bits(bits.T.contiguous()))


# Numbers of the size that keys and values have, and far smaller ones; the smallest step above 0 is 6e-8.
SMALLEST_STEP = 2.0**-24


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    shape=st.sampled_from([(1,), (3, 5), (2, 3, 17), (2, 0, 4), (1, 64)]),
    size=st.sampled_from([1e4, 100.0, 1.0, 0.01, 1e-3, 1e-4, 1e-6, 1e-9]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_a_code_times_its_step_is_near_the_number(
    shape: tuple[int, ...], size: float, dtype: torch.dtype, seed: int
) -> None:
    rows = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1).mul(size).to(dtype)
    codes, steps = to_int8(rows)
    assert (codes.dtype, steps.dtype) == (torch.int8, torch.float16)
    assert codes.shape == shape and steps.shape == shape[:-1]
    assert codes.numel() == 0 or -127 <= int(codes.min()) <= int(codes.max()) <= 127, "symmetric about 0"
    kept = codes.double() * steps.double()[..., None]
    greatest = rows.double().abs().amax(-1, keepdim=True)
    # Half a step, and what the greatest loses because the step is rounded itself.
    bound = 0.51 * greatest / 127 + greatest * torch.finfo(torch.float16).eps + 127 * SMALLEST_STEP / 2
    assert bool(((kept - rows.double()).abs() <= bound).all())
    assert bool((kept * rows.double() >= 0).all()), "no number changes its sign"


def test_zeros_stay_zeros_and_whole_codes_are_exact() -> None:
    codes, steps = to_int8(torch.zeros(2, 3))
    assert codes.eq(0).all() and steps.eq(0).all()
    whole = torch.tensor([[127.0, -127.0, 1.0, 0.0], [-508.0, 4.0, 0.0, 8.0]])
    codes, steps = to_int8(whole)
    assert torch.equal(codes * steps[:, None].float(), whole)
