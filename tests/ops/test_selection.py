"""Scores, budgeted choice and slot changes against loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.ops.selection import assign_slots, score_units, select_units

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


@settings(deadline=None, max_examples=60)
@given(sizes=sizes_of_units, budget=st.integers(0, 60), seed=st.integers(0, 99))
def test_takes_the_best_units_and_exactly_the_budget(sizes: list[int], budget: int, seed: int) -> None:
    scores = torch.rand(1, len(sizes), generator=torch.Generator().manual_seed(seed))
    take = select_units(scores, torch.tensor([sizes]), budget)[0].tolist()
    left = budget
    for unit in sorted(range(len(sizes)), key=lambda unit: -float(scores[0, unit])):
        assert take[unit] == min(left, sizes[unit])
        left -= take[unit]
    assert sum(take) == min(budget, sum(sizes))


@settings(deadline=None, max_examples=60)
@given(
    sizes=sizes_of_units,
    num_slots=st.integers(1, 30),
    seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=5),
)
def test_slots_follow_the_selection_and_fetch_only_what_is_missing(
    sizes: list[int], num_slots: int, seeds: list[int]
) -> None:
    unit = torch.full((1, num_slots), -1, dtype=torch.int32)
    rank = torch.zeros_like(unit)
    have = torch.zeros(1, len(sizes), dtype=torch.int32)
    for seed in seeds:
        scores = torch.rand(1, len(sizes), generator=torch.Generator().manual_seed(seed))
        take = select_units(scores, torch.tensor([sizes], dtype=torch.int32), num_slots)
        before = {(u, r) for u, r in zip(unit[0].tolist(), rank[0].tolist(), strict=True) if u >= 0}
        old_unit, old_rank = unit.clone(), rank.clone()
        unit, rank, fetched = assign_slots(unit, rank, have, take)
        held = [(u, r) for u, r in zip(unit[0].tolist(), rank[0].tolist(), strict=True) if u >= 0]
        wanted = {(u, r) for u, count in enumerate(take[0].tolist()) for r in range(count)}
        assert len(held) == len(set(held)) and set(held) == wanted
        assert int(fetched.sum()) == len(wanted - before)
        stays = ~fetched & (unit >= 0)
        assert torch.equal(unit[stays], old_unit[stays]) and torch.equal(rank[stays], old_rank[stays])
        have = take


def test_a_bound_without_scaling_may_leave_the_range_of_float16() -> None:
    query, boxes = torch.full((1, 2, 8), 100.0).half(), torch.full((1, 3, 16), 90.0).half()
    boxes[:, 1] = 100.0
    sizes = torch.ones(1, 3, dtype=torch.int32)
    scores = score_units(query, (boxes,), sizes, kind="bound", reduce="softmax_mean", scaling=1.0)
    assert scores.argmax(1).tolist() == [1] and bool(scores.isfinite().all())
