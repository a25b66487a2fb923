"""K-means over the keys of many KV heads at once (LouisKV, section 4.2 of arXiv 2510.11292)."""

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations
from louiskv.ops.ragged import sum_by_label

# Scores that one assignment pass holds at once: small enough to stay in a processor's cache.
MAX_SCORES = 512 * 1024

METRICS = ("euclidean", "cosine")
STARTS = ("strided", "random")
# Of the random start; the same tokens always give the same clusters.
SEED = 0


def kmeans(
    keys: Tensor,
    counts: Tensor,
    num_clusters: Tensor,
    *,
    iterations: int,
    metric: str = "euclidean",
    start: str = "strided",
    max_clusters: int | None = None,
    impl: str | None = None,
) -> Tensor:
    """Assign tokens to clusters of near keys, for all rows at once.

    Deterministic. Clusters start at tokens that are strided (cluster j at token `floor(j * count / clusters)`) or drawn
    without replacement from a fixed seed. "euclidean" centres the keys on their mean first; "cosine" looks at the angle
    between a key and the mean of a cluster's keys (ClusterKV, section 3.2 of arXiv 2412.03213). A cluster that runs
    empty moves to the token farthest from its centroid. Linear in T for a fixed number of clusters.

    On a GPU keys of 16 bits are compared as float16 where a row has many: a token that is as near to one cluster as to
    another, within a two-thousandth of their size, may come to either.

    Args:
        keys: [N, T, D]; row n uses its first `counts[n]` tokens, the rest may hold anything.
        counts: [N] tokens of each row.
        num_clusters: [N] clusters of each row, at most `counts`.
        iterations: Passes of assignment and update.
        metric: "euclidean" or "cosine".
        start: "strided" or "random".
        max_clusters: Clusters that no row has more of; None to look, which waits for the device.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, T] cluster of each token, -1 past a row's count.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("kmeans", KMEANS, impl, keys)
    most = int(num_clusters.max()) if max_clusters is None else max_clusters
    assignment: Tensor = function(keys, counts, num_clusters, iterations, metric, start, most)
    return assignment


def _kmeans(
    keys: Tensor, counts: Tensor, num_clusters: Tensor, iterations: int, metric: str, start: str, max_clusters: int
) -> Tensor:
    num_rows, num_tokens, _ = keys.shape
    token = torch.arange(num_tokens, device=keys.device)
    present = token < counts[:, None]
    points = keys.float().masked_fill(~present[..., None], 0.0)
    if metric == "euclidean":
        points = points - points.sum(1, keepdim=True) / counts.clamp(min=1)[:, None, None]
    cluster = torch.arange(max_clusters, device=keys.device)
    absent = cluster >= num_clusters[:, None]
    centroids = _rows(points, _first_tokens(start, present, counts, num_clusters, cluster))
    assignment = token.new_zeros(num_rows, num_tokens)
    for iteration in range(iterations):
        assignment, nearness = _assign(points, centroids, absent, metric)
        if iteration + 1 == iterations:
            break
        centroids, sizes = _update(points, assignment.masked_fill(~present, max_clusters), max_clusters)
        empty = (sizes == 0) & ~absent
        if empty.any():
            distance = _distance(points, nearness, metric).masked_fill(~present, -torch.inf)
            farthest = distance.argsort(dim=1, descending=True)
            chosen = farthest.gather(1, (empty.cumsum(1) - 1).clamp(0, num_tokens - 1))
            centroids = torch.where(empty[..., None], _rows(points, chosen), centroids)
    return assignment.masked_fill(~present, -1)


def _first_tokens(start: str, present: Tensor, counts: Tensor, num_clusters: Tensor, cluster: Tensor) -> Tensor:
    """[N, C] tokens at which the clusters start."""
    if start == "strided":
        first = (cluster * counts[:, None]) // num_clusters.clamp(min=1)[:, None]
        return first.clamp(max=present.shape[1] - 1)
    # A number for each position, whatever the batch: the tokens with the least are drawn.
    noise = torch.rand(present.shape[1], generator=torch.Generator().manual_seed(SEED)).to(present.device)
    return noise.masked_fill(~present, torch.inf).argsort(dim=1, stable=True)[:, : len(cluster)]


def _rows(points: Tensor, indices: Tensor) -> Tensor:
    return points.gather(1, indices[..., None].expand(-1, -1, points.shape[-1]))


def _assign(points: Tensor, centroids: Tensor, absent: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each point, and how near it is: `p.c - |c|^2 / 2`, or for the cosine `p.c / |c|`."""
    if metric == "cosine":
        centroids = torch.nn.functional.normalize(centroids, dim=-1)
        offset = centroids.new_zeros(absent.shape)
    else:
        offset = centroids.square().sum(-1) / -2
    offset = offset.masked_fill(absent, -torch.inf)[:, None]
    transposed = centroids.transpose(1, 2)
    step = max(1, MAX_SCORES // (points.shape[0] * centroids.shape[1]))
    parts = [torch.baddbmm(offset, part, transposed).max(-1) for part in points.split(step, dim=1)]
    return torch.cat([part.indices for part in parts], 1), torch.cat([part.values for part in parts], 1)


def _distance(points: Tensor, nearness: Tensor, metric: str) -> Tensor:
    """How far each point is from its centroid, as its metric orders them: squared distance, or minus the cosine."""
    if metric == "cosine":
        cosine: Tensor = nearness / points.norm(dim=-1).clamp(min=torch.finfo(points.dtype).tiny)
        return -cosine
    return points.square().sum(-1) - 2 * nearness


def _update(points: Tensor, assignment: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Mean and size of each cluster; `assignment == num_clusters` counts for none."""
    sums, sizes = sum_by_label(points, assignment, num_clusters + 1)
    sums, sizes = sums[:, :-1], sizes[:, :-1]
    return sums / sizes.clamp(min=1)[..., None], sizes


KMEANS = implementations("kmeans", _kmeans, ("triton", "cpu"))
