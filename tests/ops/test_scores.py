"""`score_units`: every kind of summary and every way for a group to agree, against loops over heads and units."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv import LouisKVError
from louiskv.ops.quantize import pack_bits, to_int8
from louiskv.ops.selection import REDUCES, score_units, unit_logits, unit_shares
from tests.ops.implementations import each, here

KINDS = ("dot", "bound", "one_bit", "sketch")
DIM = 10
SHARED = 4
Vector = list[float]


def random_summaries(kind: str, num_rows: int, num_units: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    if kind == "dot":
        return (torch.randn(num_rows, num_units, DIM, generator=generator),)
    if kind == "bound":
        low, width = torch.randn(2, num_rows, num_units, DIM, generator=generator)
        return (torch.cat([low + width.abs(), low], dim=-1),)
    if kind == "sketch":
        key_codes, key_steps = to_int8(torch.randn(num_rows, num_units, DIM, generator=generator))
        value_codes, value_steps = to_int8(torch.randn(num_rows, num_units, 7, generator=generator))
        return key_codes, value_codes, torch.stack([key_steps, value_steps, torch.rand_like(key_steps)], dim=-1)
    bits = torch.randint(0, 2, (num_rows, num_units, DIM), generator=generator).bool()
    scales, middles = torch.randn(2, num_rows, num_units // SHARED, DIM, generator=generator)
    return pack_bits(bits), torch.cat([scales.abs(), middles], dim=-1)


def logit(kind: str, query: Vector, summaries: tuple[Tensor, ...], unit: int) -> float:
    """What one query head gives one unit of one row."""
    if kind == "dot":
        return sum(q * c for q, c in zip(query, summaries[0][unit].tolist(), strict=True))
    if kind == "bound":
        box = summaries[0][unit].tolist()
        return sum(max(q * high, q * low) for q, high, low in zip(query, box[:DIM], box[DIM:], strict=True))
    if kind == "sketch":
        codes, step = summaries[0][unit].tolist(), float(summaries[2][unit, 0])
        return sum(q * code * step for q, code in zip(query, codes, strict=True))
    packed, scales = summaries[0][unit].tolist(), summaries[1][unit // SHARED].tolist()
    total = 0.0
    for channel, q in enumerate(query):
        sign = 1 if packed[channel // 8] >> channel % 8 & 1 else -1
        total += q * (sign * scales[channel] + scales[DIM + channel])
    return total


def scores_by_loops(
    kind: str, reduce: str, scaling: float, group: list[Vector], summaries: tuple[Tensor, ...], sizes: list[int]
) -> Vector:
    """The scores of the units of one row; a unit without tokens has none."""
    units = [unit for unit, size in enumerate(sizes) if size]
    if reduce == "query_mean":
        group = [[sum(channel) / len(group) for channel in zip(*group, strict=True)]]
    by_head = []
    for query in group:
        logits = [scaling * logit(kind, query, summaries, unit) for unit in units]
        if reduce.startswith(("softmax", "share")):
            highest = max(logits)
            mass = [math.exp(each - highest) for each in logits]
            # A share is of the attention to all tokens, a softmax over one of each unit.
            counted = [
                each * (sizes[unit] if reduce == "share_mean" else 1) for each, unit in zip(mass, units, strict=True)
            ]
            logits = [each / sum(counted) for each in mass]
        by_head.append(logits)
    columns = zip(*by_head, strict=True)
    agreed = [max(column) if reduce.endswith("max") else sum(column) / len(column) for column in columns]
    scores = [-math.inf] * len(sizes)
    for unit, score in zip(units, agreed, strict=True):
        scores[unit] = math.log(score) if reduce.startswith(("softmax", "share")) else score
    return scores


@each("unit_logits")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduce", REDUCES)
@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    rows=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    group_size=st.sampled_from([1, 3, 4, 8]),
    scaling=st.sampled_from([1.0, 0.35]),
    seed=st.integers(0, 99),
)
def test_agrees_with_loops_on_ragged_rows(
    impl: str, kind: str, reduce: str, rows: list[int], group_size: int, scaling: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_units = -(-max(rows) // SHARED) * SHARED
    query = torch.randn(len(rows), group_size, DIM, generator=generator)
    summaries = random_summaries(kind, len(rows), num_units, generator)
    sizes = (torch.arange(num_units) < torch.tensor(rows)[:, None]) * torch.randint(1, 9, (len(rows), num_units))
    got = score_units(query, summaries, sizes, kind=kind, reduce=reduce, scaling=scaling, impl=impl)
    assert got.dtype == torch.float32
    for row, scores in enumerate(got):
        parts = tuple(part[row] for part in summaries)
        expected = scores_by_loops(kind, reduce, scaling, query[row].tolist(), parts, sizes[row].tolist())
        torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-5, rtol=1e-4)


@each("unit_logits")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduce", REDUCES)
def test_the_size_of_a_unit_does_not_weigh(impl: str, kind: str, reduce: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query, summaries = torch.randn(2, 3, DIM, generator=generator), random_summaries(kind, 2, 8, generator)
    small, large = (
        score_units(query, summaries, torch.full((2, 8), size), kind=kind, reduce=reduce, scaling=0.5, impl=impl)
        for size in (1, 50)
    )
    if reduce == "share_mean":
        # Scores are of one token: of so many each has less, and all alike.
        torch.testing.assert_close(small, large + math.log(50))
    else:
        assert torch.equal(small, large)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_near_float32(kind: str, reduce: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query, summaries = torch.randn(2, 4, DIM, generator=generator), random_summaries(kind, 2, 16, generator)
    sizes = torch.ones(2, 16, dtype=torch.int64)
    low_query = query.to(dtype)
    # What comes in few bits does so in any dtype.
    in_bits = kind == "sketch"
    low = tuple(part if in_bits or part.dtype == torch.uint8 else part.to(dtype) for part in summaries)
    exact = tuple(part if in_bits or part.dtype == torch.uint8 else part.float() for part in low)
    expected = score_units(low_query.float(), exact, sizes, kind=kind, reduce=reduce, scaling=0.3, impl="torch")
    for impl in here("unit_logits", dtype):
        got = score_units(low_query, low, sizes, kind=kind, reduce=reduce, scaling=0.3, impl=impl)
        assert got.dtype == torch.float32
        # Logits here are of order 4; the products are rounded, and their sum once more; shares are taken in float32.
        torch.testing.assert_close(got, expected, atol=16 * torch.finfo(dtype).eps, rtol=0)
        if reduce == "softmax_mean":
            torch.testing.assert_close(got.exp().sum(1), torch.ones(2), atol=1e-6, rtol=0)


@each("unit_logits")
@pytest.mark.parametrize("reduce", [name for name in REDUCES if name.startswith(("softmax", "share"))])
def test_great_logits_neither_overflow_nor_vanish(impl: str, reduce: str) -> None:
    query = torch.full((1, 2, DIM), 100.0)
    means = torch.arange(5.0)[None, :, None].expand(1, 5, DIM).contiguous()
    got = score_units(query, (means,), torch.ones(1, 5, dtype=torch.int64), reduce=reduce, scaling=1.0, impl=impl)
    # The shares themselves would be 0 but for the greatest, and their order lost.
    assert got.tolist() == [[-4000, -3000, -2000, -1000, 0]]


@each("unit_shares")
@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    rows=st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=3).filter(any),
    group_size=st.sampled_from([1, 3, 4]),
    with_beside=st.booleans(),
    middle=st.sampled_from([0.0, -200.0, 200.0]),
    seed=st.integers(0, 99),
)
def test_a_share_is_of_all_tokens_and_of_what_is_beside_them(
    impl: str, rows: list[list[int]], group_size: int, with_beside: bool, middle: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_units = max(len(row) for row in rows) + 2
    logits = torch.randn(len(rows), group_size, num_units, generator=generator) + middle
    beside = torch.randn(len(rows), group_size, generator=generator) + middle
    sizes = torch.zeros(len(rows), num_units, dtype=torch.int32)
    for row, units in enumerate(rows):
        sizes[row, : len(units)] = torch.tensor(units, dtype=torch.int32)
        # What stands where there is no unit may be far above the others.
        logits[row, :, len(units) :] = 0.0
    shares = unit_shares(logits, sizes, beside if with_beside else None, impl=impl)
    for row, units in enumerate(rows):
        assert shares[row, :, len(units) :].eq(-math.inf).all()
        for head in range(group_size):
            mass = [math.exp(float(logit) - middle) for logit in logits[row, head, : len(units)]]
            total = sum(size * each for size, each in zip(units, mass, strict=True))
            total += math.exp(float(beside[row, head]) - middle) if with_beside else 0
            expected = [math.log(each / total) for each in mass]
            assert shares[row, head, : len(units)].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_sketch_may_leave_the_range_of_float16_before_its_step() -> None:
    query, keys = torch.full((1, 2, 64), 30.0).half(), torch.full((1, 3, 64), 0.005)
    keys[:, 1] = 0.01
    codes, steps = to_int8(keys)
    summaries = (codes, codes, torch.stack([steps] * 3, dim=-1))
    got = unit_logits(query, summaries, kind="sketch", scaling=1.0)
    torch.testing.assert_close(got, torch.tensor([9.6, 19.2, 9.6]).expand(1, 2, 3), atol=0, rtol=2e-2)


def test_a_kind_that_does_not_exist_is_not_taken_for_another() -> None:
    with pytest.raises((KeyError, LouisKVError)):
        score_units(torch.ones(1, 1, 2), (torch.ones(1, 1, 2),), torch.ones(1, 1), kind="cosine", scaling=1.0)
