"""`kmeans` by the cosine, from a random start, against a loop over heads, tokens and clusters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.ops.kmeans import SEED, kmeans
from tests.ops.implementations import each


def cosine_kmeans_by_loops(
    keys: torch.Tensor, num_clusters: int, iterations: int, start: str = "random"
) -> list[list[int]]:
    """Tokens of each cluster of one head's keys [T, D] as the docstring says it, one token at a time, in float64."""
    points = keys.double()
    count = len(points)
    if start == "random":
        noise = torch.rand(count, generator=torch.Generator().manual_seed(SEED)).tolist()
        first = sorted(range(count), key=noise.__getitem__)[:num_clusters]
    else:
        first = [cluster * count // num_clusters for cluster in range(num_clusters)]
    centroids = [points[token] for token in first]
    members: list[list[int]] = []
    assignment: list[int] = []
    cosines: list[list[float]] = []
    for _ in range(iterations):
        if members:
            far_first = sorted(range(count), key=lambda token: cosines[token][assignment[token]])
            centroids = [points[tokens].mean(0) if tokens else points[far_first.pop(0)] for tokens in members]
        cosines = [
            [float(point @ centroid / (point.norm() * centroid.norm())) for centroid in centroids] for point in points
        ]
        assignment = [max(range(num_clusters), key=row.__getitem__) for row in cosines]
        members = [[token for token in range(count) if assignment[token] == each] for each in range(num_clusters)]
    return members


@each("kmeans")
@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 50), min_size=1, max_size=3),
    unit_size=st.sampled_from([1, 3, 8, 16]),
    iterations=st.integers(1, 5),
    start=st.sampled_from(["random", "strided"]),
    seed=st.integers(0, 99),
)
def test_agrees_with_loops_on_ragged_rows(
    impl: str, counts: list[int], unit_size: int, iterations: int, start: str, seed: int
) -> None:
    longest = max(counts)
    keys = torch.randn(len(counts), longest, 5, generator=torch.Generator().manual_seed(seed)) + 0.5
    for row, count in enumerate(counts):
        keys[row, count:] = torch.nan
    num_clusters = [max(1, count // unit_size) for count in counts]
    got = kmeans(
        keys,
        torch.tensor(counts),
        torch.tensor(num_clusters),
        iterations=iterations,
        metric="cosine",
        start=start,
        impl=impl,
    )
    for row, count in enumerate(counts):
        expected = cosine_kmeans_by_loops(keys[row, :count], num_clusters[row], iterations, start)
        labels = got[row, :count].tolist()
        members = [[token for token in range(count) if labels[token] == each] for each in range(num_clusters[row])]
        assert members == expected
        assert got[row, count:].eq(-1).all()


@each("kmeans")
def test_the_length_of_a_key_does_not_matter(impl: str) -> None:
    generator = torch.Generator().manual_seed(0)
    angle = torch.tensor([0, 1, 2] * 20) + torch.randn(60, generator=generator) * 0.05
    length = torch.rand(60, generator=generator) * 100 + 0.1
    keys = torch.stack([angle.cos(), angle.sin()], dim=-1) * length[:, None]
    got = kmeans(keys[None], torch.tensor([60]), torch.tensor([3]), iterations=9, metric="cosine", impl=impl)[0]
    assert [len(got[first::3].unique()) for first in range(3)] == [1, 1, 1]
    assert len(got.unique()) == 3


@each("kmeans")
def test_an_empty_cluster_moves_to_the_token_at_the_widest_angle(impl: str) -> None:
    # Clusters start at tokens 0, 2 and 4, which point the same way: the second and the third run empty at once.
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [-0.1, 0.0]]])
    got = kmeans(keys, torch.tensor([6]), torch.tensor([3]), iterations=2, metric="cosine", impl=impl)[0].tolist()
    assert got == [0, 0, 0, 2, 0, 1]


@each("kmeans")
@pytest.mark.parametrize("num_rows", [1, 4])
def test_a_random_start_is_the_same_for_every_row(impl: str, num_rows: int) -> None:
    keys = torch.randn(1, 200, 8, generator=torch.Generator().manual_seed(0)).repeat(num_rows, 1, 1)
    counts, num_clusters = torch.full((num_rows,), 200), torch.full((num_rows,), 20)
    state = torch.get_rng_state()
    got = kmeans(keys, counts, num_clusters, iterations=1, metric="cosine", start="random", impl=impl)
    assert torch.equal(torch.get_rng_state(), state), "the generator of the program is left alone"
    alone = kmeans(keys[:1], counts[:1], num_clusters[:1], iterations=1, metric="cosine", start="random", impl=impl)
    strided = kmeans(keys[:1], counts[:1], num_clusters[:1], iterations=1, metric="cosine", start="strided", impl=impl)
    assert torch.equal(got, alone.expand(num_rows, -1))
    assert not torch.equal(alone, strided)
