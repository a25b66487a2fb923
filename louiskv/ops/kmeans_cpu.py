"""K-means in C++: a token is compared only with what may have come nearer than its own centroid."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_kmeans = torch.ops.louiskv.kmeans.default

# Of the random start; the reference draws from the same.
SEED = 0


def kmeans(
    keys: Tensor, counts: Tensor, num_clusters: Tensor, iterations: int, metric: str, start: str, max_clusters: int
) -> Tensor:
    """As `louiskv.ops.kmeans.kmeans`."""
    counts, num_clusters = counts.long(), num_clusters.long()
    first = _first_tokens(keys.shape[1], counts, num_clusters, start, max_clusters)
    dense = keys if keys.stride(-1) == 1 else keys.contiguous()
    assignment: Tensor = _kmeans(dense, counts, num_clusters, first, iterations, metric == "cosine")
    return assignment


def _first_tokens(num_tokens: int, counts: Tensor, num_clusters: Tensor, start: str, max_clusters: int) -> Tensor:
    """[N, C] tokens at which the clusters start."""
    if start == "strided":
        cluster = torch.arange(max_clusters)
        return (cluster * counts[:, None]) // num_clusters.clamp(min=1)[:, None]
    noise = torch.rand(num_tokens, generator=torch.Generator().manual_seed(SEED))
    absent = torch.arange(num_tokens) >= counts[:, None]
    return noise.masked_fill(absent, torch.inf).argsort(dim=1, stable=True)[:, :max_clusters]


@native.fake("kmeans")
def _like_kmeans(
    keys: Tensor, _counts: Tensor, _num_clusters: Tensor, _first: Tensor, _iterations: int, _cosine: bool
) -> Tensor:
    return keys.new_empty(keys.shape[:2], dtype=torch.int64)
