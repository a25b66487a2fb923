"""Bits in bytes against arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.ops.quantize import pack_bits, unpack_bits

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


def test_every_byte() -> None:
    packed = torch.arange(256, dtype=torch.uint8)[:, None]
    assert torch.equal(pack_bits(unpack_bits(packed, 8)), packed)


def test_bits_that_are_not_contiguous() -> None:
    bits = torch.randint(0, 2, (11, 6), generator=torch.Generator().manual_seed(0)).bool()
    assert torch.equal(pack_bits(bits.T), pack_bits(bits.T.contiguous()))
