"""K-means in Triton gives the clusters of the reference."""

import pytest
import torch
from torch import Tensor

from louiskv.ops.kmeans import METRICS, STARTS, kmeans

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("start", STARTS)
def test_ragged_rows(metric: str, start: str, dtype: torch.dtype) -> None:
    counts = [63, 17, 1, 40]
    keys = some_keys(4, 63, 80, dtype)
    for row, count in enumerate(counts):
        keys[row, count:] = torch.nan
    got, expected = both(keys, counts, [count // 4 + 1 for count in counts], iterations=4, metric=metric, start=start)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dim", [1, 64, 96, 128, 256])
@pytest.mark.parametrize("num_tokens", [1, 15, 66])
def test_sizes(num_tokens: int, dim: int) -> None:
    got, expected = both(some_keys(1, num_tokens, dim), [num_tokens], [max(1, num_tokens // 8)], iterations=3)
    assert torch.equal(got, expected)


def test_more_clusters_than_are_compared_at_once() -> None:
    got, expected = both(some_keys(1, 150, 8), [150], [140], iterations=3)
    assert torch.equal(got, expected) and int(got.max()) > 64


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


def test_centroids_are_shared_among_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("louiskv.ops.kmeans_triton.PROGRAMS", 3)
    got, expected = both(some_keys(2, 63, 16), [63, 50], [11, 2], iterations=3)
    assert torch.equal(got, expected)
