"""Scores, budgeted choice and slot changes against loops."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from louiskv.ops.quantize import pack_bits
from louiskv.ops.selection import assign_slots, places_of, raise_newest, score_tokens, score_units, select_units
from tests.ops.implementations import each, here

sizes_of_units = st.lists(st.integers(0, 9), min_size=1, max_size=20)


@settings(deadline=None, max_examples=30)
@given(sizes=sizes_of_units, group_size=st.sampled_from([1, 3, 4, 8]), seed=st.integers(0, 99))
def test_score_is_the_mean_of_softmaxes_over_the_group(sizes: list[int], group_size: int, seed: int) -> None:
    sizes[0] = max(1, sizes[0])
    generator = torch.Generator().manual_seed(seed)
    query, summaries = torch.randn(1, group_size, 6, generator=generator), torch.randn(1, len(sizes), 6)
    got = score_units(query, (summaries,), torch.tensor([sizes]), scaling=0.5)[0]
    expected = torch.zeros(len(sizes))
    units = [unit for unit, size in enumerate(sizes) if size]
    for head in range(group_size):
        mass = [float((0.5 * query[0, head] @ summaries[0, unit]).exp()) for unit in units]
        for unit, share in zip(units, mass, strict=True):
            expected[unit] += share / sum(mass) / group_size
    torch.testing.assert_close(got.exp(), expected)


@each("select_units")
@settings(deadline=None, max_examples=60)
@given(sizes=sizes_of_units, budget=st.integers(0, 60), seed=st.integers(0, 99))
def test_takes_the_best_units_and_exactly_the_budget(impl: str, sizes: list[int], budget: int, seed: int) -> None:
    scores = torch.rand(1, len(sizes), generator=torch.Generator().manual_seed(seed))
    take = select_units(scores, torch.tensor([sizes]), budget, impl=impl)[0].tolist()
    left = budget
    for unit in sorted(range(len(sizes)), key=lambda unit: -float(scores[0, unit])):
        assert take[unit] == min(left, sizes[unit])
        left -= take[unit]
    assert sum(take) == min(budget, sum(sizes))


@pytest.mark.usefixtures("poisoned_memory")
@each("raise_newest")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_units", [1, 15, 17, 63, 1100])
def test_the_newest_units_are_raised(impl: str, dtype: torch.dtype, num_units: int) -> None:
    room = torch.full((5, num_units + 3), torch.nan, dtype=dtype)
    scores = room[:, :num_units]
    scores.copy_(torch.randn(5, num_units))
    counts = torch.tensor([0, 1, num_units // 2, num_units - 1, num_units])
    for num in (1, 3, num_units):
        raised = raise_newest(scores, counts, num, impl=impl)
        for row, count in enumerate(counts.tolist()):
            expected = scores[row].float()
            expected[max(0, count - num) : count] = torch.inf
            assert torch.equal(raised[row], expected)


@each("assign_slots")
@settings(deadline=None, max_examples=60)
@given(num_places=st.integers(1, 60), num_slots=st.integers(1, 30), seeds=st.lists(st.integers(0, 10**6), min_size=1))
def test_slots_follow_the_selection_and_fetch_only_what_is_missing(
    impl: str, num_places: int, num_slots: int, seeds: list[int]
) -> None:
    places = torch.full((1, num_slots), -1, dtype=torch.int32)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(num_places, generator=generator)
        count = int(torch.randint(0, min(num_places, num_slots) + 1, (), generator=generator))
        wanted = torch.cat([order[:count], torch.full((3,), -1)])
        wanted = wanted[torch.randperm(len(wanted), generator=generator)][None]
        before = places
        places, fetched = assign_slots(before, wanted, impl=impl)
        held = [place for place in places[0].tolist() if place >= 0]
        assert len(held) == len(set(held)) and set(held) == set(order[:count].tolist())
        assert int(fetched.sum()) == len(set(held) - set(before[0].tolist()))
        stays = ~fetched & (places >= 0)
        assert torch.equal(places[stays], before[stays])


@each("places_of")
@settings(deadline=None, max_examples=30)
@given(sizes=sizes_of_units, seed=st.integers(0, 99), width=st.integers(1, 40))
def test_places_are_the_first_tokens_of_each_unit(impl: str, sizes: list[int], seed: int, width: int) -> None:
    held = torch.tensor([sizes], dtype=torch.int32)
    take = (held * torch.rand(1, len(sizes), generator=torch.Generator().manual_seed(seed))).to(torch.int32)
    offsets = held.cumsum(1) - held
    place, unit = places_of(take, offsets, width, impl=impl)
    expected = [(int(offsets[0, u]) + r, u) for u in range(len(sizes)) for r in range(int(take[0, u]))][:width]
    got = [pair for pair in zip(place[0].tolist(), unit[0].tolist(), strict=True) if pair[0] >= 0]
    assert got == expected and place[0, len(expected) :].eq(-1).all()


@each("places_of")
def test_places_of_ragged_rows(impl: str) -> None:
    take = torch.tensor([[2, 0, 3], [0, 0, 0], [0, 1, 0]], dtype=torch.int32)
    offsets = torch.tensor([[7, 0, 20], [0, 0, 0], [4, 9, 0]], dtype=torch.int32)
    place, unit = places_of(take, offsets, 6, impl=impl)
    assert place.tolist() == [[7, 8, 20, 21, 22, -1], [-1] * 6, [9, -1, -1, -1, -1, -1]]
    assert unit[0, :5].tolist() == [0, 0, 2, 2, 2] and int(unit[2, 0]) == 1
    assert int(unit.min()) >= 0 and int(unit.max()) < 3, "a unit also where there is no place, to gather with"
    cut, _ = places_of(take, offsets, 3, impl=impl)
    assert torch.equal(cut, place[:, :3])


@each("score_tokens")
@settings(deadline=None, max_examples=30)
@given(
    group_size=st.sampled_from([1, 3, 4, 8]),
    dim=st.integers(1, 20),
    num_tokens=st.sampled_from([1, 15, 17, 63]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_a_token_scores_by_its_unit_and_its_signs(
    impl: str, group_size: int, dim: int, num_tokens: int, dtype: torch.dtype, seed: int
) -> None:
    assume(impl in here("score_tokens", dtype))
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, group_size, dim, generator=generator).to(dtype)
    shares, steps = torch.randn(2, group_size, 4, generator=generator), torch.rand(2, 4, generator=generator)
    signs = torch.rand(2, 9, dim, generator=generator) > 0.5
    # A unit that gets nothing from some heads, and one that gets nothing from any.
    shares[:, 0, 2], shares[:, :, 3] = -torch.inf, -torch.inf
    unit = torch.randint(0, 4, (2, num_tokens), generator=generator)
    place = torch.randint(0, 9, (2, num_tokens), generator=generator)
    got = score_tokens(query, shares, pack_bits(signs), steps, unit, place, scaling=0.3, impl=impl)
    assert got.dtype == torch.float32
    for row in range(2):
        for number in range(num_tokens):
            u, mass = int(unit[row, number]), 0.0
            for head in range(group_size):
                logit = float(shares[row, head, u])
                for channel in range(dim):
                    sign = 1 if signs[row, int(place[row, number]), channel] else -1
                    logit += 0.3 * float(steps[row, u]) * float(query[row, head, channel]) * sign
                mass += math.exp(logit) / group_size
            expected = math.log(mass) if mass else -math.inf
            # The product of query and signs, of order 1, is rounded twice in the dtype of the query.
            tolerance = max(1e-4, 8 * torch.finfo(dtype).eps)
            assert float(got[row, number]) == pytest.approx(expected, abs=tolerance)


def test_a_bound_without_scaling_may_leave_the_range_of_float16() -> None:
    query, boxes = torch.full((1, 2, 8), 100.0).half(), torch.full((1, 3, 16), 90.0).half()
    boxes[:, 1] = 100.0
    sizes = torch.ones(1, 3, dtype=torch.int32)
    scores = score_units(query, (boxes,), sizes, kind="bound", reduce="softmax_mean", scaling=1.0)
    assert scores.argmax(1).tolist() == [1] and bool(scores.isfinite().all())
