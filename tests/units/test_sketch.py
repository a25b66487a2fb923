"""The sketch of a unit and the signs of its tokens, against loops, and as they lie in the index."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv.ops.quantize import unpack_bits
from louiskv.units.index import UnitIndex
from louiskv.units.summaries import Sketch

CPU = torch.device("cpu")
DIM, VALUE_DIM = 10, 6
ragged = st.lists(st.lists(st.integers(1, 7), max_size=6), min_size=1, max_size=3)


def ragged_rows(rows: list[list[int]], left_over: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and sizes of units; what lies behind a row's units belongs to none."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = max(sum(row) for row in rows) + left_over
    keys = torch.randn(len(rows), num_tokens, DIM, generator=generator)
    values = torch.randn(len(rows), num_tokens, VALUE_DIM, generator=generator)
    sizes = torch.zeros(len(rows), max(len(row) for row in rows) + 2, dtype=torch.int64)
    for each, row in enumerate(rows):
        sizes[each, : len(row)] = torch.tensor(row, dtype=torch.int64)
        keys[each, sum(row) :], values[each, sum(row) :] = 1e6, 1e6
    return keys, values, sizes


@settings(deadline=None, max_examples=60, derandomize=True)
@given(rows=ragged, left_over=st.integers(0, 3), seed=st.integers(0, 99))
def test_agrees_with_loops_on_ragged_rows(rows: list[list[int]], left_over: int, seed: int) -> None:
    keys, values, sizes = ragged_rows(rows, left_over, seed)
    summaries, bits = Sketch().build(keys, values, sizes)
    key_codes, value_codes, steps = summaries
    assert bits is not None and bits.shape == (len(rows), keys.shape[1], 2)
    assert steps.isfinite().all() and steps.dtype == torch.float16
    signs = unpack_bits(bits, DIM)
    for row, units in enumerate(rows):
        first = 0
        for unit, size in enumerate(units):
            tokens = slice(first, first + size)
            first += size
            for codes, step, held in ((key_codes, 0, keys), (value_codes, 1, values)):
                mean = held[row, tokens].double().mean(0)
                kept = codes[row, unit].double() * steps[row, unit, step].double()
                # Half a step of 8 bits, and what the rounded step itself is off.
                torch.testing.assert_close(kept, mean, rtol=0, atol=float(mean.abs().max()) * (0.5 / 127 + 2e-3))
            centre = key_codes[row, unit].double() * steps[row, unit, 0].double()
            off = keys[row, tokens].double() - centre
            assert float(steps[row, unit, 2]) == pytest.approx(float(off.abs().mean()), rel=1e-3, abs=1e-6)
            clear = off.abs() > 1e-6
            assert torch.equal(signs[row, tokens][clear], (off > 0)[clear])
        for part in summaries:
            assert part[row, len(units) :].eq(0).all(), "where there is no unit"


def test_a_unit_of_one_token_is_almost_that_token() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(1, 5, DIM, generator=generator), torch.randn(1, 5, VALUE_DIM, generator=generator)
    (key_codes, value_codes, steps), _ = Sketch().build(keys, values, torch.ones(1, 5, dtype=torch.int64))
    for codes, step, exact in ((key_codes, 0, keys), (value_codes, 1, values)):
        near = codes.float() * steps[..., step].float()[..., None]
        assert bool(((near - exact).abs() <= exact.abs().amax(-1, keepdim=True) / 127).all())
    assert bool((steps[..., 2] <= steps[..., 0]).all()), "what is left is what 8 bits lose"


def test_bits_bring_keys_nearer_than_the_mean_alone() -> None:
    keys = torch.randn(2, 64, DIM, generator=torch.Generator().manual_seed(0))
    sizes = torch.full((2, 4), 16)
    (codes, _, steps), bits = Sketch().build(keys, keys, sizes)
    assert bits is not None
    centre, spread = ((codes.float() * steps[..., :1].float()), steps[..., 2:].float())
    signs = unpack_bits(bits, DIM) * 2.0 - 1
    near = (centre[:, :, None] + spread[:, :, None] * signs.unflatten(1, (4, 16))).flatten(1, 2)
    mean = centre.repeat_interleave(16, dim=1)
    # The mean distance to what is normal is 0.8 of its deviation: that is the share which one bit explains.
    assert float((near - keys).square().mean()) < 0.5 * float((mean - keys).square().mean())


def test_without_bits_there_are_no_details() -> None:
    keys, sizes = torch.randn(1, 6, DIM), torch.tensor([[2, 4]])
    plain = Sketch(token_bits=False)
    built, details = plain.build(keys, keys, sizes)
    assert details is None
    for part, other in zip(built, Sketch().build(keys, keys, sizes).summaries, strict=True):
        assert torch.equal(part, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_near_float32(dtype: torch.dtype) -> None:
    keys = torch.randn(1, 300, DIM, generator=torch.Generator().manual_seed(0)).to(dtype)
    sizes = torch.tensor([[290, 10]])
    built, exactly = (Sketch().build(each, each, sizes).summaries for each in (keys, keys.float()))
    for part, exact in zip(built, exactly, strict=True):
        # The mean is rounded to the dtype before it is to 8 bits.
        tolerance = 127 * torch.finfo(dtype).eps + 1 if part.dtype == torch.int8 else 1e-3
        torch.testing.assert_close(part.float(), exact.float(), atol=tolerance, rtol=torch.finfo(dtype).eps)


def appended(index: UnitIndex, begin: Tensor, keys: Tensor, values: Tensor, sizes: Tensor) -> None:
    index.append(begin, sizes, *Sketch().build(keys, values, sizes))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    first=st.lists(st.lists(st.integers(1, 7), max_size=6), min_size=2, max_size=2),
    second=st.lists(st.lists(st.integers(1, 90), max_size=6), min_size=2, max_size=2),
    picked=st.lists(st.integers(0, 1), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_appended_in_two_goes_it_is_as_built_at_once(
    first: list[list[int]], second: list[list[int]], picked: list[int], seed: int
) -> None:
    index, at_once = UnitIndex(2, (1, 1, 1), CPU), UnitIndex(2, (1, 1, 1), CPU)
    goes = [ragged_rows(first, 1, seed), ragged_rows(second, 2, seed + 1)]
    for keys, values, sizes in goes:
        appended(index, index.num_tokens, keys, values, sizes)
    rows = [one + two for one, two in zip(first, second, strict=True)]
    keys, values, sizes = ragged_rows(rows, 0, seed)
    for row in range(2):
        ends = [sum(each[row]) for each in (first, second)]
        for whole, parts in ((keys, [go[0] for go in goes]), (values, [go[1] for go in goes])):
            whole[row, : sum(ends)] = torch.cat([part[row, :end] for part, end in zip(parts, ends, strict=True)])
    appended(at_once, at_once.num_tokens, keys, values, sizes)
    index.select_rows(torch.tensor(picked))
    at_once.select_rows(torch.tensor(picked))
    assert torch.equal(index.counts, at_once.counts) and torch.equal(index.num_tokens, at_once.num_tokens)
    assert index.details is not None and at_once.details is not None
    for row, (num_units, num_tokens) in enumerate(zip(index.counts.tolist(), index.num_tokens.tolist(), strict=True)):
        for name in ("offsets", "sizes"):
            got, expected = (getattr(each, name)[row, :num_units] for each in (index, at_once))
            assert torch.equal(got, expected)
        for part, whole in zip(index.summaries, at_once.summaries, strict=True):
            assert torch.equal(part[row, :num_units], whole[row, :num_units])
        assert torch.equal(index.details[row, :num_tokens], at_once.details[row, :num_tokens])


def test_details_count_as_summaries() -> None:
    index = UnitIndex(2, (1, 1, 1), CPU)
    keys, values = torch.randn(2, 40, DIM), torch.randn(2, 40, VALUE_DIM)
    appended(index, torch.zeros(2, dtype=torch.int64), keys, values, torch.full((2, 4), 10))
    unit_bytes, token_bytes = Sketch().unit_bytes(DIM, VALUE_DIM, 4), Sketch().token_bytes(DIM)
    assert index.summary_bytes == 2 * (4 * unit_bytes + 40 * token_bytes)
