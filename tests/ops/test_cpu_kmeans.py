"""K-means in C++ against its specification, on each instruction set."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from louiskv.ops.kmeans import METRICS, STARTS, kmeans
from tests.ops.implementations import on, on_each_instruction_set

# (tokens, clusters, dim): around the tokens and centroids that are compared at once, and a few that are not round.
SHAPES = [
    (1, 1, 1),
    (15, 3, 7),
    (63, 6, 64),
    (64, 7, 64),
    (65, 65, 16),
    (200, 12, 80),
    (257, 19, 33),
    (500, 31, 128),
]
DTYPES = (torch.float32, torch.bfloat16)


def spread_keys(num_rows: int, num_tokens: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random keys [N, T, D] that lie in wider rows, as keys do that have values behind them."""
    generator = torch.Generator().manual_seed(num_tokens + dim)
    rows = torch.randn(num_rows, num_tokens + 2, dim + 5, generator=generator) + 2
    return rows.to(dtype)[:, 1:-1, :dim]


def full(num_rows: int, number: int) -> Tensor:
    return torch.full((num_rows,), number)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def centroids_of(points: Tensor, assignment: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Means [C, D] and sizes [C] of the clusters of points [T, D]."""
    sizes = torch.bincount(assignment, minlength=num_clusters)
    sums = points.new_zeros(num_clusters, points.shape[1]).index_add_(0, assignment, points)
    return sums / sizes.clamp(min=1)[:, None], sizes


def squared_error(keys: Tensor, assignment: Tensor) -> float:
    """Squared distances of keys [T, D] from the means of their clusters, in all."""
    means, _ = centroids_of(keys.double(), assignment, int(assignment.max()) + 1)
    return float((keys.double() - means[assignment]).square().sum())


@on_each_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", SHAPES)
def test_separate_blobs_are_found_as_the_specification_does(
    isa: str, dtype: torch.dtype, start: str, metric: str, shape: tuple[int, int, int]
) -> None:
    num_tokens, num_clusters, dim = shape
    generator = torch.Generator().manual_seed(dim)
    num_blobs = min(num_clusters, dim)
    blob = torch.randint(num_blobs, (3, num_tokens), generator=generator)
    # Lengths differ by blob too, so that no two are as far from a third.
    length = 10 + torch.arange(num_blobs) / num_blobs
    keys = torch.nn.functional.one_hot(blob, dim) * length[blob][..., None]
    keys = (keys + 0.2 * torch.randn(3, num_tokens, dim, generator=generator)).to(dtype)
    arguments = (keys, full(3, num_tokens), full(3, num_blobs))
    expected = kmeans(*arguments, iterations=6, metric=metric, start=start, impl="torch")
    with on(isa):
        got = kmeans(*arguments, iterations=6, metric=metric, start=start, impl="cpu")
    assert torch.equal(got, expected)


@on_each_instruction_set
@pytest.mark.parametrize("iterations", range(1, 9))
def test_whole_numbers_are_clustered_as_the_specification_does(isa: str, iterations: int) -> None:
    """Over several passes, in which centroids move, rest and run empty: pruning never loses the nearest."""
    generator = torch.Generator().manual_seed(iterations)
    keys = torch.randint(-100, 100, (2, 900, 24), generator=generator).float()
    keys[0, 100:140] = keys[0, 100]
    arguments = (keys, full(2, 900), torch.tensor([140, 56]))
    expected = kmeans(*arguments, iterations=iterations, impl="torch")
    with on(isa):
        assert torch.equal(kmeans(*arguments, iterations=iterations, impl="cpu"), expected)


@on_each_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", SHAPES)
def test_random_keys_are_clustered_as_well(
    isa: str, dtype: torch.dtype, metric: str, shape: tuple[int, int, int]
) -> None:
    num_tokens, num_clusters, dim = shape
    keys = spread_keys(3, num_tokens, dim, dtype)
    arguments = (keys, full(3, num_tokens), full(3, num_clusters))
    expected = kmeans(*arguments, iterations=10, metric=metric, impl="torch")
    with on(isa):
        got = kmeans(*arguments, iterations=10, metric=metric, impl="cpu")
    rows = keys.float()
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows, dim=-1)
    for row, of_got, of_expected in zip(rows, got, expected, strict=True):
        assert squared_error(row, of_got) == pytest.approx(squared_error(row, of_expected), rel=1e-3, abs=1e-6)


@on_each_instruction_set
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("passes", [1, 2, 3, 5, 9])
def test_each_token_is_with_the_nearest_centroid_of_the_last_update(isa: str, metric: str, passes: int) -> None:
    num_tokens, num_clusters = 1500, 90
    keys = spread_keys(1, num_tokens, 20)
    arguments = (keys, full(1, num_tokens), full(1, num_clusters))
    with on(isa):
        before, after = (
            kmeans(*arguments, iterations=iterations, metric=metric, impl="cpu")[0]
            for iterations in (passes, passes + 1)
        )
    points = keys[0].double()
    if metric == "euclidean":
        points = points - points.mean(0)
    means, sizes = centroids_of(points, before, num_clusters)
    assert bool((sizes > 0).all()), "no cluster moved"
    if metric == "cosine":
        points, means = (torch.nn.functional.normalize(each, dim=-1) for each in (points, means))
    distance = torch.cdist(points, means)
    chosen = distance.gather(1, after[:, None])[:, 0]
    torch.testing.assert_close(chosen, distance.amin(1), atol=1e-5, rtol=1e-5)


@on_each_instruction_set
@pytest.mark.parametrize("metric", METRICS)
def test_nothing_depends_on_threads_or_on_other_rows(isa: str, metric: str) -> None:
    counts, num_clusters = torch.tensor([3000, 1, 2222, 64]), torch.tensor([187, 1, 100, 64])
    keys = spread_keys(4, 3000, 64)
    with on(isa):
        with threads(1):
            alone = kmeans(keys, counts, num_clusters, iterations=8, metric=metric, impl="cpu")
        for number in (2, 2, 3):
            with threads(number):
                assert torch.equal(kmeans(keys, counts, num_clusters, iterations=8, metric=metric, impl="cpu"), alone)
        for row in range(4):
            part = slice(row, row + 1)
            got = kmeans(
                keys[part, : counts[row]], counts[part], num_clusters[part], iterations=8, metric=metric, impl="cpu"
            )
            assert torch.equal(got[0], alone[row, : counts[row]])


@on_each_instruction_set
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("metric", METRICS)
def test_what_lies_behind_the_counts_is_not_read(isa: str, dtype: torch.dtype, start: str, metric: str) -> None:
    counts, num_clusters = torch.tensor([70, 0, 129, 1]), torch.tensor([9, 0, 30, 1])
    keys = spread_keys(4, 130, 48, dtype)
    present = torch.arange(130) < counts[:, None]
    poisoned = keys.contiguous().masked_fill(~present[..., None], torch.nan)
    with on(isa):
        got, clean = (
            kmeans(each, counts, num_clusters, iterations=5, metric=metric, start=start, impl="cpu")
            for each in (poisoned, keys)
        )
    assert torch.equal(got, clean)
    assert bool((got[~present] == -1).all()) and bool((got >= 0)[present].all())
    assert bool((got < num_clusters[:, None]).all())


@on_each_instruction_set
def test_many_empty_clusters_move_to_the_farthest_tokens_in_order(isa: str) -> None:
    # The first half is one point, at which all but two clusters start.
    keys = torch.zeros(1, 40, 2)
    keys[0, 20:, 0] = 1.5 ** torch.arange(20)
    keys[0, 20:, 1] = torch.arange(20)
    arguments = (keys[:, [*range(20), *range(39, 19, -1)]], full(1, 40))
    for iterations in range(1, 8):
        expected = kmeans(*arguments, full(1, 12), iterations=iterations, impl="torch")
        with on(isa):
            assert torch.equal(kmeans(*arguments, full(1, 12), iterations=iterations, impl="cpu"), expected)


@on_each_instruction_set
def test_of_tokens_that_are_as_far_the_first_is_taken(isa: str) -> None:
    # All clusters start at the middle; the last two run empty.
    keys = torch.tensor([[[0.0], [-5.0], [0.0], [5.0], [0.0], [0.0]]])
    with on(isa):
        assert kmeans(keys, full(1, 6), full(1, 3), iterations=2, impl="cpu").tolist() == [[0, 1, 0, 2, 0, 0]]


@on_each_instruction_set
def test_of_centroids_that_are_as_near_the_first_is_taken(isa: str) -> None:
    """In the third pass the last token is as near to the cluster it is in, which rests, as to one that moved there."""
    x = [-3, 3, 3, -3, 3, 1, 0, 0, -3, 2, -2, -1]
    y = [1, -2, -1, 2, -2, 3, 0, 0, 2, -2, 2, -3]
    keys = torch.tensor([x, y]).T[None].float()
    with on(isa):
        second, third = (kmeans(keys, full(1, 12), full(1, 3), iterations=passes, impl="cpu")[0] for passes in (2, 3))
    assert second.tolist() == [2, 1, 1, 2, 1, 2, 0, 0, 2, 1, 2, 1]
    assert third.tolist() == [2, 1, 1, 2, 1, 0, 0, 0, 2, 1, 2, 0]


@on_each_instruction_set
def test_keys_that_are_all_the_same_end_in_the_first_cluster(isa: str) -> None:
    with on(isa):
        got = kmeans(torch.ones(2, 300, 8), full(2, 300), full(2, 40), iterations=4, impl="cpu")
    assert bool((got == 0).all())


@on_each_instruction_set
def test_more_passes_than_are_needed_change_nothing(isa: str) -> None:
    keys = spread_keys(2, 400, 8)
    with on(isa):
        many, more = (kmeans(keys, full(2, 400), full(2, 25), iterations=passes, impl="cpu") for passes in (200, 1000))
    assert torch.equal(many, more)
    means, _ = centroids_of(keys[0].double(), many[0], 25)
    assert torch.equal(torch.cdist(keys[0].double(), means).argmin(1), many[0])


@on_each_instruction_set
def test_no_tokens_and_keys_that_are_no_numbers(isa: str) -> None:
    """Nothing to cluster is no error, and NaN leads to some cluster that there is."""
    keys = spread_keys(2, 130, 20).clone()
    with on(isa):
        none = kmeans(keys, full(2, 0), full(2, 0), iterations=3, impl="cpu")
        keys[0, 40:50] = torch.nan
        some = kmeans(keys, full(2, 130), full(2, 10), iterations=3, impl="cpu")
        clean = kmeans(keys[1:], full(1, 130), full(1, 10), iterations=3, impl="cpu")
    assert bool((none == -1).all())
    assert int(some.min()) >= 0 and int(some.max()) < 10 and torch.equal(some[1:], clean)


def test_keys_in_another_order_and_counts_in_32_bits() -> None:
    keys = spread_keys(2, 90, 12)
    counts, num_clusters = full(2, 90), full(2, 8)
    expected = kmeans(keys, counts, num_clusters, iterations=3, impl="cpu")
    assert torch.equal(kmeans(keys.mT.contiguous().mT, counts, num_clusters, iterations=3, impl="cpu"), expected)
    assert torch.equal(kmeans(keys, counts.int(), num_clusters.int(), iterations=3, impl="cpu"), expected)


def test_the_operation_keeps_to_its_schema() -> None:
    arguments = (spread_keys(2, 30, 4), full(2, 30), full(2, 3), torch.tensor([[0, 10, 20]] * 2), 3, False)
    kmeans(*arguments[:3], iterations=1, impl="cpu")
    torch.library.opcheck(torch.ops.louiskv.kmeans.default, arguments)
