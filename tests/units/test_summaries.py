"""What the index keeps of a unit, against loops over units, tokens and channels."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv import SettingsError
from louiskv.ops.quantize import unpack_bits
from louiskv.units.summaries import BoundingVolume, MeanKey, MinMax, OneBit, Sketch, Summary

# What a channel of a unit becomes in each part of its summary, from its numbers in the unit's keys.
Channel = Callable[[list[float]], float]


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def centre(numbers: list[float]) -> float:
    return (max(numbers) + min(numbers)) / 2


def radius(numbers: list[float]) -> float:
    return mean([abs(number - centre(numbers)) for number in numbers])


BY_CHANNEL: list[tuple[Summary, list[Channel]]] = [
    (MeanKey(), [mean]),
    (MinMax(), [max, min]),
    (BoundingVolume(), [lambda k: centre(k) + radius(k), lambda k: centre(k) - radius(k)]),
]
SUMMARIES = [summary for summary, _ in BY_CHANNEL]


def by_loops(keys: Tensor, sizes: list[int], parts: list[Channel]) -> list[list[float]]:
    """The summaries of the units of one row: keys [T, D] in their order."""
    built, first = [], 0
    for size in sizes:
        channels = [channel.tolist() for channel in keys[first : first + size].double().T]
        built.append([part(channel) for part in parts for channel in channels])
        first += size
    return built


@pytest.mark.parametrize(("summary", "parts"), BY_CHANNEL, ids=["mean", "min_max", "bounding_volume"])
@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    rows=st.lists(st.lists(st.integers(1, 7), max_size=6), min_size=1, max_size=3),
    left_over=st.integers(0, 3),
    offset=st.sampled_from([-5.0, 0.0, 5.0]),
    seed=st.integers(0, 99),
)
def test_agrees_with_loops_on_ragged_rows(
    summary: Summary, parts: list[Channel], rows: list[list[int]], left_over: int, offset: float, seed: int
) -> None:
    num_units, num_tokens = max(len(row) for row in rows), max(sum(row) for row in rows) + left_over
    keys = torch.randn(len(rows), num_tokens, 5, generator=torch.Generator().manual_seed(seed)) + offset
    sizes = torch.zeros(len(rows), num_units, dtype=torch.int64)
    for each, row in enumerate(rows):
        sizes[each, : len(row)] = torch.tensor(row, dtype=torch.int64)
        # What lies behind a row's units belongs to none.
        keys[each, sum(row) :] = 1e6
    ((got,), _) = summary.build(keys, keys, sizes)
    assert got.shape == (len(rows), num_units, 5 * len(parts))
    assert got.isfinite().all(), "also where there is no unit"
    for each, row in enumerate(rows):
        expected = torch.tensor(by_loops(keys[each], row, parts)).view(len(row), 5 * len(parts))
        torch.testing.assert_close(got[each, : len(row)], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("summary", "parts"), BY_CHANNEL, ids=["mean", "min_max", "bounding_volume"])
def test_a_unit_without_tokens_takes_nothing_from_its_neighbours(summary: Summary, parts: list[Channel]) -> None:
    keys = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(0))
    ((got,), _) = summary.build(keys, keys, torch.tensor([[0, 3, 0, 4, 0]]))
    ((dense,), _) = summary.build(keys, keys, torch.tensor([[3, 4]]))
    assert got.isfinite().all()
    torch.testing.assert_close(got[:, [1, 3]], dense)
    assert got[:, [0, 2, 4]].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("summary", "parts"), BY_CHANNEL, ids=["mean", "min_max", "bounding_volume"])
def test_dtypes(summary: Summary, parts: list[Channel], dtype: torch.dtype) -> None:
    keys = torch.randn(1, 300, 4, generator=torch.Generator().manual_seed(0)).to(dtype) + 8
    ((got,), _) = summary.build(keys, keys, torch.tensor([[290, 10]]))
    assert got.dtype == dtype
    expected = torch.tensor([by_loops(keys[0], [290, 10], parts)])
    # Summed in float32, where 290 additions may lose a few units in the last place, and rounded once.
    tolerance = max(1e-6, torch.finfo(dtype).eps)
    torch.testing.assert_close(got.float(), expected.to(dtype).float(), atol=0, rtol=tolerance)


def test_a_key_lies_within_the_least_and_the_greatest() -> None:
    keys = torch.randn(1, 40, 6, generator=torch.Generator().manual_seed(0))
    sizes = torch.full((1, 5), 8)
    high, low = MinMax().build(keys, keys, sizes).summaries[0].split(6, dim=-1)
    box_high, box_low = BoundingVolume().build(keys, keys, sizes).summaries[0].split(6, dim=-1)
    units = keys.unflatten(1, (5, 8))
    assert ((units <= high[:, :, None]) & (units >= low[:, :, None])).all()
    assert ((box_high < high) & (box_low > low)).all(), "the volume is as wide as keys are far on average"


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    group_size=st.integers(1, 9),
    dim=st.sampled_from([3, 8, 20]),
    seed=st.integers(0, 99),
)
def test_one_bit_agrees_with_loops(counts: list[int], group_size: int, dim: int, seed: int) -> None:
    longest = max(counts)
    keys = torch.randn(len(counts), longest, dim, generator=torch.Generator().manual_seed(seed)) + 1
    sizes = (torch.arange(longest) < torch.tensor(counts)[:, None]).int()
    (bits, scales), _ = OneBit(group_size).build(keys, keys, sizes)
    num_groups = -(-longest // group_size)
    assert bits.dtype == torch.uint8 and bits.shape == (len(counts), bits.shape[1], -(-dim // 8))
    assert bits.shape[1] >= longest
    assert scales.shape == (len(counts), num_groups, 2 * dim)
    assert scales.isfinite().all()
    signs = unpack_bits(bits, dim)
    for row, count in enumerate(counts):
        # Groups that are not full are not units yet: their summaries mean nothing.
        for group in range(count // group_size):
            tokens = range(group * group_size, (group + 1) * group_size)
            for channel in range(dim):
                numbers = [float(keys[row, token, channel]) for token in tokens]
                half, middle = (max(numbers) - min(numbers)) / 2, centre(numbers)
                assert float(scales[row, group, channel]) == pytest.approx(half, abs=1e-6)
                assert float(scales[row, group, dim + channel]) == pytest.approx(middle, abs=1e-6)
                kept = scales[row, group, dim + channel]
                assert signs[row, list(tokens), channel].tolist() == [
                    bool(keys[row, token, channel] >= kept) for token in tokens
                ]


def test_one_bit_is_exact_where_a_channel_takes_two_values() -> None:
    generator = torch.Generator().manual_seed(0)
    low, step = torch.randn(1, 1, 8, generator=generator), 2.0
    keys = low + step * torch.randint(0, 2, (1, 12, 8), generator=generator)
    keys[:, ::6], keys[:, 1::6] = low, low + step
    (bits, scales), _ = OneBit(6).build(keys, keys, torch.ones(1, 12, dtype=torch.int64))
    half, middle = scales.repeat_interleave(6, dim=1).split(8, dim=-1)
    torch.testing.assert_close((unpack_bits(bits, 8) * 2.0 - 1) * half + middle, keys)


def test_bytes_of_a_unit() -> None:
    assert MeanKey().unit_bytes(128, 64, 2) == 128 * 2
    assert MinMax().unit_bytes(128, 64, 2) == BoundingVolume().unit_bytes(128, 64, 2) == 2 * 128 * 2
    assert OneBit(32).unit_bytes(128, 64, 2) == 128 / 8 + 2 * 128 * 2 / 32
    assert OneBit(32).unit_bytes(20, 20, 4) == 3 + 2 * 20 * 4 / 32
    assert Sketch().unit_bytes(128, 64, 2) == Sketch().unit_bytes(128, 64, 4) == 128 + 64 + 3 * 2
    assert (Sketch().token_bytes(128), Sketch().token_bytes(20)) == (16, 3)
    assert Sketch(token_bits=False).token_bytes(128) == MeanKey().token_bytes(128) == 0


@pytest.mark.parametrize("summary", [*SUMMARIES, OneBit(4), Sketch(), Sketch(token_bits=False)], ids=str)
@pytest.mark.parametrize(("dim", "dtype"), [(8, torch.float32), (20, torch.float16)])
def test_the_bytes_are_those_of_what_is_built(summary: Summary, dim: int, dtype: torch.dtype) -> None:
    num_units = 24
    keys, values = torch.zeros(1, num_units, dim, dtype=dtype), torch.zeros(1, num_units, 12, dtype=dtype)
    sizes = torch.ones(1, num_units, dtype=torch.int64)
    built, details = summary.build(keys, values, sizes)
    assert len(built) == len(summary.strides)
    for part, stride in zip(built, summary.strides, strict=True):
        assert part.shape[1] == num_units / stride
    assert sum(part.nbytes for part in built) == num_units * summary.unit_bytes(dim, 12, dtype.itemsize)
    assert (0 if details is None else details.nbytes) == num_units * summary.token_bytes(dim)


def test_kinds_of_score() -> None:
    kinds = [summary.kind for summary in (MeanKey(), MinMax(), BoundingVolume(), OneBit(), Sketch())]
    assert kinds == ["dot", "bound", "bound", "one_bit", "sketch"]


@pytest.mark.parametrize("wrong", [0, -32, 32.0, "32", None])
def test_a_group_has_at_least_one_token(wrong: object) -> None:
    with pytest.raises(SettingsError, match=f"group_size={wrong!r} .* whole number of at least 1"):
        OneBit(wrong)  # type: ignore[arg-type]
