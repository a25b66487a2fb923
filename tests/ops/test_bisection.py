"""The order in which neighbours are near: what it must be for any points, and what it is for blobs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv.ops.bisection import bisect


def blobs(num_blobs: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points [1, blobs * size, D] in a random order, each within 1 of a centre 20 away from the others; and whose."""
    generator = torch.Generator().manual_seed(seed)
    centres = 20 * torch.nn.functional.one_hot(torch.arange(num_blobs), 8).float()
    # Apart by different widths, so that no direction is as good as another.
    centres = centres * torch.linspace(1, 3, num_blobs)[:, None]
    label = torch.arange(num_blobs).repeat_interleave(size)[torch.randperm(num_blobs * size, generator=generator)]
    return (centres[label] + 0.2 * torch.randn(len(label), 8, generator=generator).clamp(-2, 2))[None], label


def spread(points: Tensor, order: Tensor, leaf: int) -> float:
    """Mean squared distance of points [U, D] to the mean of their run."""
    return sum(float((run - run.mean(0)).square().sum()) for run in points[order].split(leaf)) / len(points)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 70), min_size=1, max_size=4),
    left_over=st.integers(0, 9),
    leaf=st.sampled_from([1, 2, 3, 16]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 99),
)
def test_each_row_is_a_permutation_with_absent_points_last(
    counts: list[int], left_over: int, leaf: int, dtype: torch.dtype, seed: int
) -> None:
    num_points = max(counts) + left_over
    points = torch.randn(len(counts), num_points, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    for row, count in enumerate(counts):
        points[row, count:] = 1e4
    order = bisect(points, torch.tensor(counts), leaf)
    assert order.shape == (len(counts), num_points)
    for row, count in enumerate(counts):
        assert sorted(order[row].tolist()) == list(range(num_points))
        assert sorted(order[row, :count].tolist()) == list(range(count))


@pytest.mark.parametrize("num_points", [0, 1, 15, 16, 17])
def test_points_that_are_equal_keep_their_order(num_points: int) -> None:
    order = bisect(torch.full((2, num_points, 4), 3.0), torch.tensor([num_points, num_points // 2]), 4)
    assert order.tolist() == [list(range(num_points))] * 2


@pytest.mark.parametrize("seed", range(4))
def test_blobs_stay_together(seed: int) -> None:
    points, label = blobs(8, 4, seed)
    order = bisect(points, torch.tensor([32]), 4)[0]
    for run in label[order].split(4):
        assert len(set(run.tolist())) == 1


@pytest.mark.parametrize(("num_points", "leaf"), [(200, 16), (37, 4), (64, 8), (1000, 16)])
def test_runs_are_nearer_than_those_of_any_order(num_points: int, leaf: int) -> None:
    points = torch.randn(1, num_points, 6, generator=torch.Generator().manual_seed(0))
    order = bisect(points, torch.tensor([num_points]), leaf)[0]
    assert spread(points[0], order, leaf) < 0.8 * spread(points[0], torch.arange(num_points), leaf)


def test_a_line_is_followed() -> None:
    """In one dimension runs are runs of what is sorted."""
    line = torch.randperm(48, generator=torch.Generator().manual_seed(1)).float()[None, :, None]
    order = bisect(line, torch.tensor([48]), 4)[0]
    runs = [sorted(run.tolist()) for run in line[0, order, 0].split(4)]
    assert sorted(runs) == torch.arange(48.0).view(12, 4).tolist()


@pytest.mark.parametrize("left_over", [0, 1, 100])
def test_rows_do_not_depend_on_each_other(left_over: int) -> None:
    """Each run has the same points, whatever longer rows are beside."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 50 + left_over, 6, generator=generator)
    together = bisect(points, torch.tensor([50 + left_over, 50]), 4)[1, :50]
    alone = bisect(points[1:, :50], torch.tensor([50]), 4)[0]
    assert [set(run.tolist()) for run in together.split(4)] == [set(run.tolist()) for run in alone.split(4)]
