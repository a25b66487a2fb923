"""Bundles of units: near units beside each other, and what the index keeps of each bundle, against loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.units.base import Grouping
from louiskv.units.bundles import in_bundles
from louiskv.units.index import Bundles, UnitIndex
from louiskv.units.summaries import MeanKey, Sketch
from tests.ops.implementations import each
from tests.units.test_sketch import CPU, DIM, VALUE_DIM, appended, ragged, ragged_rows

BUNDLES = Bundles(4, Sketch())


def bundled_index(num_rows: int) -> UnitIndex:
    return UnitIndex(num_rows, Sketch().strides, CPU, BUNDLES)


def check_bundles(index: UnitIndex) -> None:
    """They are the summaries of all units as they are now."""
    assert index.sizes.shape[1] % BUNDLES.size == 0
    for part, whole in zip(index.bundled, index.bundled_anew(), strict=True):
        assert torch.equal(part, whole)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    rows=st.lists(st.lists(st.integers(1, 5), max_size=20), min_size=1, max_size=3),
    bundle_size=st.sampled_from([1, 2, 4, 16]),
    seed=st.integers(0, 99),
)
def test_units_change_places_and_keep_their_tokens(rows: list[list[int]], bundle_size: int, seed: int) -> None:
    """What the order says past a row's tokens is carried along."""
    keys, _, sizes = ragged_rows(rows, 3, seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.arange(keys.shape[1]) for _ in rows])
    for row, units in enumerate(rows):
        order[row, : sum(units)] = torch.randperm(sum(units), generator=generator)
    got = in_bundles(keys, Grouping(order, sizes), bundle_size)
    assert got.order.shape == order.shape and got.sizes.shape == sizes.shape
    for row, units in enumerate(rows):
        before = order[row, : sum(units)].split(units)
        assert got.sizes[row, len(units) :].eq(0).all()
        after = got.order[row, : sum(units)].split(got.sizes[row, : len(units)].tolist())
        assert sorted(unit.tolist() for unit in after) == sorted(unit.tolist() for unit in before)
        assert sorted(got.order[row].tolist()) == list(range(keys.shape[1]))


@each("along_widest")
def test_near_units_are_in_one_bundle(impl: str) -> None:
    generator = torch.Generator().manual_seed(0)
    topics = torch.randperm(12, generator=generator) % 3
    sizes = torch.randint(1, 6, (1, 12), generator=generator)
    topic = topics.repeat_interleave(sizes[0])
    keys = torch.eye(3)[topic][None] * 9 + 0.1 * torch.randn(1, len(topic), 3, generator=generator)
    got = in_bundles(keys, Grouping(torch.arange(len(topic))[None], sizes), 4, impl)
    of_bundle = topic[got.order[0]].split(got.sizes.unflatten(1, (3, 4)).sum(-1)[0].tolist())
    assert [len(set(each.tolist())) for each in of_bundle] == [1, 1, 1]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(rows=ragged, seed=st.integers(0, 99), bundle_size=st.sampled_from([1, 2, 4]))
def test_a_bundle_is_the_mean_of_its_tokens(rows: list[list[int]], seed: int, bundle_size: int) -> None:
    keys, values, sizes = ragged_rows(rows, 0, seed)
    sizes = torch.nn.functional.pad(sizes, (0, -sizes.shape[1] % bundle_size))
    units, _ = Sketch().build(keys, values, sizes)
    num_units = sizes.shape[1]
    bundles = tuple(part.new_full((len(rows), num_units // bundle_size, part.shape[2]), 7) for part in units)
    begin, end = torch.zeros(len(rows), dtype=torch.int64), torch.full((len(rows),), num_units)
    Sketch().bundle(units, sizes, begin, end, bundles, most=num_units, bundle_size=bundle_size)
    key_codes, value_codes, steps = bundles
    assert [part.dtype for part in bundles] == [part.dtype for part in units]
    assert [part.shape[2:] for part in bundles] == [part.shape[2:] for part in units]
    assert steps[..., 2].eq(0).all(), "no token's bits are of a bundle"
    for row in range(len(rows)):
        for bundle in range(sizes.shape[1] // bundle_size):
            inside = range(bundle * bundle_size, (bundle + 1) * bundle_size)
            total = int(sizes[row, inside].sum())
            for which, codes in enumerate((key_codes, value_codes)):
                kept = codes[row, bundle].double() * steps[row, bundle, which].double()
                mean = torch.zeros_like(kept)
                for unit in inside:
                    of_unit = units[which][row, unit].double() * units[2][row, unit, which].double()
                    mean += int(sizes[row, unit]) * of_unit / max(1, total)
                # Half a step of 8 bits, and what the rounded step itself is off.
                torch.testing.assert_close(kept, mean, rtol=0, atol=float(mean.abs().max()) * (0.5 / 127 + 2e-3))


def test_other_summaries_have_no_bundles() -> None:
    with pytest.raises(NotImplementedError, match=r"MeanKey\(\) has no bundles"):
        MeanKey().bundle((), sizes := torch.ones(1, 4), sizes, sizes, (), most=4, bundle_size=4)


unit_sizes = st.lists(st.integers(1, 5), max_size=11)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    goes=st.lists(st.lists(unit_sizes, min_size=3, max_size=3), min_size=1, max_size=7),
    reorder=st.integers(0, 6),
    picked=st.lists(st.integers(0, 2), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_bundles_are_those_of_all_units_after_whatever_came(
    goes: list[list[list[int]]], reorder: int, picked: list[int], seed: int
) -> None:
    index = bundled_index(3)
    for turn, rows in enumerate(goes):
        keys, values, sizes = ragged_rows(rows, 1, seed + turn)
        appended(index, index.num_tokens, keys, values, sizes)
        check_bundles(index)
        if turn == reorder:
            index.select_rows(torch.tensor(picked))
            check_bundles(index)


def test_long_after_the_prompt_only_the_last_bundles_are_summarised_anew() -> None:
    """In each row its own, however long others are."""
    index = bundled_index(2)
    keys, values = torch.randn(2, 200, DIM), torch.randn(2, 200, VALUE_DIM)
    prompt = torch.full((2, 48), 4)
    prompt[1, 4:] = 0
    appended(index, index.num_tokens, keys, values, prompt)
    kept = torch.stack([index.bundled[0][0, 11], index.bundled[0][1, 0]])
    # What is not to be touched is spoilt: bundles 0 to 11 of the first row, the only one of the second.
    for spoilt in (index.bundled[0][0, :12], index.bundled[0][1, :1]):
        spoilt += 1
    for turn in range(6):
        appended(index, index.num_tokens, keys[:, :3], values[:, :3], torch.tensor([[2, 1]] * 2))
        assert torch.equal(index.bundled[0][0, 11], kept[0] + 1), turn
        assert torch.equal(index.bundled[0][1, 0], kept[1] + 1), turn
    for spoilt in (index.bundled[0][0, :12], index.bundled[0][1, :1]):
        spoilt -= 1
    check_bundles(index)


def test_bundles_count_as_summaries() -> None:
    index = bundled_index(2)
    keys, values = torch.randn(2, 40, DIM), torch.randn(2, 40, VALUE_DIM)
    appended(index, index.num_tokens, keys, values, torch.full((2, 10), 4))
    # Ten units are two bundles and a half, so there is room for twelve.
    unit_bytes, token_bytes = Sketch().unit_bytes(DIM, VALUE_DIM, 4), Sketch().token_bytes(DIM)
    assert index.summary_bytes == 2 * ((12 + 3) * unit_bytes + 40 * token_bytes)
