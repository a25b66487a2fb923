"""K-means in Triton gives the clusters of the reference."""

import pytest
import torch
from torch import Tensor

from louiskv.ops.kmeans import METRICS, STARTS, kmeans
from louiskv.ops.kmeans_small_triton import is_small

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def both(keys: Tensor, counts: list[int], num_clusters: list[int], **settings: object) -> tuple[Tensor, Tensor]:
    tensors = (keys, torch.tensor(counts, device=DEVICE), torch.tensor(num_clusters, device=DEVICE))
    got, expected = (kmeans(*tensors, **settings, impl=impl) for impl in ("triton", "torch"))  # type: ignore[arg-type]
    assert got.dtype == expected.dtype
    return got, expected


def some_keys(num_rows: int, num_tokens: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens + dim)
    # A view: every second head of memory that lies token by token.
    keys = torch.randn(num_tokens, 2 * num_rows, dim, generator=generator) + 3
    return keys.to(DEVICE, dtype).transpose(0, 1)[::2]


def ragged_keys(counts: list[int], dtype: torch.dtype) -> tuple[Tensor, list[int]]:
    keys = some_keys(len(counts), max(counts), 80, dtype)
    for row, count in enumerate(counts):
        keys[row, count:] = torch.nan
    return keys, [count // 4 + 1 for count in counts]


def direction_of(points: Tensor, metric: str) -> Tensor:
    return torch.nn.functional.normalize(points, dim=-1) if metric == "cosine" else points


def distances_to(points: Tensor, centroids: Tensor, metric: str) -> Tensor:
    """[T, C] squared distance, of what has length 1 for the cosine."""
    return torch.cdist(direction_of(points, metric), direction_of(centroids, metric)).square()


def cost_of(points: Tensor, labels: Tensor, metric: str) -> float:
    means = torch.stack([points[labels == each].mean(0) for each in labels.unique()])
    return float(distances_to(points, means, metric).amin(1).mean())


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("start", STARTS)
def test_ragged_rows(metric: str, start: str) -> None:
    keys, num_clusters = ragged_keys([63, 17, 1, 40], torch.float32)
    got, expected = both(keys, [63, 17, 1, 40], num_clusters, iterations=4, metric=metric, start=start)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
def test_keys_of_16_bits_come_to_a_cluster_that_is_nearest_within_rounding(metric: str, dtype: torch.dtype) -> None:
    keys = some_keys(1, 200, 80, dtype)
    got, _ = both(keys, [200], [25], iterations=1, metric=metric)
    points = keys[0].double()
    if metric == "euclidean":
        points = points - points.mean(0)
    # Clusters start at every eighth token.
    distances = distances_to(points, points[::8], metric)
    lost = distances.gather(1, got[0, :, None])[:, 0] - distances.amin(1)
    assert lost.max() < distances.mean() / 500


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("start", STARTS)
def test_keys_of_16_bits_have_clusters_as_good(metric: str, start: str, dtype: torch.dtype) -> None:
    counts = [63, 17, 1, 40]
    keys, num_clusters = ragged_keys(counts, dtype)
    got, expected = both(keys, counts, num_clusters, iterations=6, metric=metric, start=start)
    for row, count in enumerate(counts):
        points = keys[row, :count].double()
        mine, reference = (cost_of(points, each[row, :count], metric) for each in (got, expected))
        assert mine <= 1.05 * reference + 1e-6
        assert got[row, count:].eq(-1).all()


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_keys_of_16_bits_may_have_any_size(size: float) -> None:
    keys = (some_keys(2, 200, 16) - 3) * size
    arguments = ([200, 150], [12, 9])
    expected, _ = both(keys, *arguments, iterations=3)
    got, _ = both(keys.bfloat16(), *arguments, iterations=3)
    assert (got == expected).float().mean() > 0.9


def test_many_clusters_that_run_empty() -> None:
    # All tokens alike but a few: nearly every cluster runs empty, and takes the farthest that is left.
    keys = torch.ones(1, 300, 8, device=DEVICE)
    keys[0, 250:] = some_keys(1, 50, 8)[0]
    got, expected = both(keys, [300], [40], iterations=2)
    assert torch.equal(got, expected) and len(got.unique()) > 30


@pytest.mark.parametrize("dim", [1, 64, 96, 128, 256])
@pytest.mark.parametrize("num_tokens", [1, 15, 66])
def test_sizes(num_tokens: int, dim: int) -> None:
    got, expected = both(some_keys(1, num_tokens, dim), [num_tokens], [max(1, num_tokens // 8)], iterations=3)
    assert torch.equal(got, expected)


def test_more_clusters_than_are_compared_at_once() -> None:
    got, expected = both(some_keys(1, 150, 8), [150], [140], iterations=3)
    assert torch.equal(got, expected) and int(got.max()) > 64


def test_parts_of_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("louiskv.ops.kmeans_triton.PART", 40)
    monkeypatch.setattr("louiskv.ops.points_triton.PART", 30)
    got, expected = both(some_keys(2, 150, 16), [150, 61], [11, 2], iterations=3)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("max_clusters", [11, 40])
def test_room_for_more_clusters_than_there_are(max_clusters: int) -> None:
    got, expected = both(some_keys(2, 90, 8), [90, 70], [11, 3], iterations=4, max_clusters=max_clusters)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("iterations", [0, 1])
def test_few_iterations(iterations: int) -> None:
    got, expected = both(some_keys(2, 17, 8), [17, 0], [3, 0], iterations=iterations)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("metric", METRICS)
def test_empty_clusters_move_to_the_farthest_tokens(metric: str) -> None:
    # Clusters start at tokens 0, 2, 4 and 6, of which three are alike: two run empty at once.
    first = torch.tensor([1.0, 1.1, 1.0, 1.2, 1.0, 20.0, 9.0, -4.0], device=DEVICE)
    second = torch.tensor([1.0, 1.0, 1.0, 0.9, 1.0, 5.0, -3.0, 4.0], device=DEVICE)
    got, expected = both(torch.stack([first, second], dim=-1)[None], [8], [4], iterations=3, metric=metric)
    assert torch.equal(got, expected) and len(got.unique()) == 4


# Rows on either side of what one program has room for: tokens, clusters, numbers.
NEAR_THE_LIMIT = [(64, 8, 16), (65, 8, 16), (64, 32, 128), (64, 33, 128), (32, 16, 256), (33, 16, 256), (17, 17, 80)]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("num_tokens", "num_clusters", "dim"), NEAR_THE_LIMIT)
def test_rows_that_one_program_has_room_for_or_not(
    num_tokens: int, num_clusters: int, dim: int, metric: str, start: str
) -> None:
    keys, counts = some_keys(3, num_tokens, dim), [num_tokens, num_tokens - 9, 0]
    keys[1, counts[1] :] = keys[2] = torch.nan
    clusters = [num_clusters, min(num_clusters, counts[1]) // 2, 0]
    got, expected = both(keys, counts, clusters, iterations=5, metric=metric, start=start, max_clusters=num_clusters)
    assert torch.equal(got, expected)


def test_what_one_program_has_room_for() -> None:
    assert [is_small(*sizes) for sizes in NEAR_THE_LIMIT] == [True, False, True, False, True, False, True]
    assert not is_small(16, 512, 64), "there may be room for more clusters than tokens"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("num_tokens", [60, 70])
def test_few_tokens_whose_clusters_run_empty(num_tokens: int, metric: str) -> None:
    keys = torch.ones(2, num_tokens, 8, device=DEVICE)
    keys[0, 40:] = some_keys(1, num_tokens - 40, 8)[0]
    # In the other row no token is farther than another.
    got, expected = both(keys, [num_tokens] * 2, [15, 20], iterations=3, metric=metric)
    # Which of centroids that are alike a token comes to is left open: what is asked is how good the clusters are.
    points = keys[0].double()
    assert cost_of(points, got[0], metric) <= 1.05 * cost_of(points, expected[0], metric)
    assert len(got[0].unique()) > 13
    assert cost_of(keys[1].double(), got[1], metric) < 1e-9
