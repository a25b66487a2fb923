"""`kmeans` against a loop over heads, tokens and clusters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.errors import ImplementationError
from louiskv.ops.kmeans import kmeans
from tests.ops.implementations import each


def kmeans_by_loops(keys: torch.Tensor, num_clusters: int, iterations: int) -> list[int]:
    """K-means of one head's keys [T, D] as the docstring says it, one token at a time, in float64."""
    points = keys.double() - keys.double().mean(0)
    count = len(points)
    centroids = [points[cluster * count // num_clusters] for cluster in range(num_clusters)]
    assignment = [0] * count
    for iteration in range(iterations):
        distances = [[float((point - centroid).square().sum()) for centroid in centroids] for point in points]
        assignment = [min(range(num_clusters), key=row.__getitem__) for row in distances]
        if iteration + 1 == iterations:
            break
        far_first = sorted(range(count), key=lambda token: -distances[token][assignment[token]])
        for cluster in range(num_clusters):
            members = [token for token in range(count) if assignment[token] == cluster]
            centroids[cluster] = points[members].mean(0) if members else points[far_first.pop(0)]
    return assignment


@each("kmeans")
@settings(deadline=None, max_examples=25)
@given(
    counts=st.lists(st.integers(1, 63), min_size=1, max_size=3),
    unit_size=st.sampled_from([1, 3, 8, 16]),
    iterations=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_agrees_with_loops_on_ragged_rows(
    impl: str, counts: list[int], unit_size: int, iterations: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    longest = max(counts)
    keys = torch.randn(len(counts), longest, 5, generator=generator) + 3
    for row, count in enumerate(counts):
        keys[row, count:] = torch.nan
    num_clusters = [max(1, count // unit_size) for count in counts]
    got = kmeans(keys, torch.tensor(counts), torch.tensor(num_clusters), iterations=iterations, impl=impl)
    for row, count in enumerate(counts):
        expected = kmeans_by_loops(keys[row, :count], num_clusters[row], iterations)
        assert got[row, :count].tolist() == expected
        assert got[row, count:].eq(-1).all()


@each("kmeans")
def test_an_empty_cluster_moves_to_the_farthest_token(impl: str) -> None:
    # Clusters start at tokens 0, 2 and 4; the first two starts coincide, so the second cluster runs empty at once.
    keys = torch.tensor([[[0.0], [0.1], [0.0], [0.2], [9.0], [20.0]]])
    got = kmeans(keys, torch.tensor([6]), torch.tensor([3]), iterations=3, impl=impl)[0].tolist()
    assert got == [0, 0, 0, 0, 2, 1]


@each("kmeans")
def test_same_keys_give_same_clusters(impl: str) -> None:
    keys = torch.randn(3, 500, 16, generator=torch.Generator().manual_seed(0))
    arguments = (torch.full((3,), 500), torch.full((3,), 31))
    first, second = (kmeans(keys, *arguments, iterations=10, impl=impl) for _ in range(2))
    assert torch.equal(first, second)


@each("kmeans")
def test_groups_blobs(impl: str) -> None:
    generator = torch.Generator().manual_seed(0)
    blob = torch.randint(0, 4, (64,), generator=generator)
    blob[:4] = torch.arange(4)
    blob[[0, 16, 32, 48]] = torch.arange(4)
    keys = 10 * torch.eye(4)[blob] + torch.randn(64, 4, generator=generator) * 0.1
    got = kmeans(keys[None], torch.tensor([64]), torch.tensor([4]), iterations=5, impl=impl)[0]
    assert all(len(got[blob == each].unique()) == 1 for each in range(4))


def test_an_implementation_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ImplementationError, match=r"kmeans cannot run as impl='warp'.*It has: .*torch"):
        kmeans(torch.zeros(1, 2, 2), torch.tensor([2]), torch.tensor([1]), iterations=1, impl="warp")
