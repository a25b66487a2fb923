"""Clusters of a prompt, and the index over units."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.ops.units import unit_of_place
from louiskv.units.clusters import Clusters
from louiskv.units.index import UnitIndex
from louiskv.units.summaries import means


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(0, 90), min_size=1, max_size=3),
    unit_size=st.sampled_from([1, 4, 16]),
    chunk_size=st.sampled_from([16, 32, 1000]),
    seed=st.integers(0, 99),
)
def test_every_token_is_in_one_cluster(counts: list[int], unit_size: int, chunk_size: int, seed: int) -> None:
    counts[0] = max(1, counts[0])
    keys = torch.randn(len(counts), max(counts), 4, generator=torch.Generator().manual_seed(seed))
    order, sizes = Clusters(unit_size, 3, chunk_size).group(keys, torch.tensor(counts))
    for row, count in enumerate(counts):
        assert sorted(order[row, :count].tolist()) == list(range(count))
        held = sizes[row][sizes[row] > 0]
        assert sizes[row, : len(held)].tolist() == held.tolist(), "clusters without tokens come last"
        assert int(held.sum()) == count
        assert len(held) <= Clusters(unit_size, 3, chunk_size).num_units(count)
        # A chunk is clustered by itself: no cluster reaches over its border.
        for unit in torch.split(order[row, :count], held.tolist()):
            assert len({int(token) // chunk_size for token in unit}) == 1
            assert unit.tolist() == sorted(unit.tolist()), "inside a cluster tokens keep their order"


def test_a_longer_prompt_gets_proportionally_more_clusters() -> None:
    clusters = Clusters(unit_size=16)
    assert [clusters.num_units(n) for n in (0, 5, 16, 160, 8192, 8192 * 4 + 3)] == [0, 1, 1, 10, 512, 2049]


def test_summary_is_the_mean_key() -> None:
    keys = torch.randn(2, 7, 3)
    got = means(keys, torch.tensor([[3, 4], [2, 0]]))
    torch.testing.assert_close(got[0], torch.stack([keys[0, :3].mean(0), keys[0, 3:].mean(0)]))
    torch.testing.assert_close(got[1], torch.stack([keys[1, :2].mean(0), torch.zeros(3)]))
    assert unit_of_place(torch.tensor([[3, 4], [2, 0]]), 7).tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 0, 2, 2, 2, 2, 2]]


def test_the_index_grows_row_by_row() -> None:
    index = UnitIndex(2, (1,), torch.device("cpu"))
    index.append(torch.tensor([0, 0]), torch.tensor([[5, 2], [4, 0]]), (torch.ones(2, 2, 3),))
    assert index.sizes.shape == (2, 2), "a prompt's units leave no room behind them"
    begin = index.append(torch.tensor([7, 4]), torch.tensor([[0], [3]]), (torch.full((2, 1, 3), 2.0),))
    assert begin.tolist() == [2, 1]
    assert index.counts.tolist() == [2, 2]
    assert index.sizes[:, :2].tolist() == [[5, 2], [4, 3]]
    assert index.offsets[:, :2].tolist() == [[0, 5], [0, 4]]
    assert index.summaries[0][1, 1].tolist() == [2.0] * 3
    index.select_rows(torch.tensor([1, 1]))
    assert index.sizes[0, :2].tolist() == [4, 3]
