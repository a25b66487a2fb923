"""K-means over the keys of many KV heads at once (LouisKV, section 4.2 of arXiv 2510.11292)."""

import torch
from torch import Tensor

from louiskv.ops.dispatch import Implementation, choose
from louiskv.ops.ragged import sum_by_label

# Scores that one assignment pass holds at once: small enough to stay in a processor's cache.
MAX_SCORES = 512 * 1024


def kmeans(keys: Tensor, counts: Tensor, num_clusters: Tensor, *, iterations: int, impl: str | None = None) -> Tensor:
    """Assign tokens to clusters of near keys (Euclidean), for all rows at once.

    Deterministic: the start is strided (cluster j begins at token `floor(j * count / clusters)`), the keys are centred
    on their mean first, and a cluster that runs empty moves to the token farthest from its centroid. Linear in T for a
    fixed number of clusters.

    Args:
        keys: [N, T, D]; row n uses its first `counts[n]` tokens, the rest may hold anything.
        counts: [N] tokens of each row.
        num_clusters: [N] clusters of each row, at most `counts`.
        iterations: Passes of assignment and update.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, T] cluster of each token, -1 past a row's count.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("kmeans", KMEANS, impl, keys.device)
    assignment: Tensor = function(keys, counts, num_clusters, iterations)
    return assignment


def _kmeans(keys: Tensor, counts: Tensor, num_clusters: Tensor, iterations: int) -> Tensor:
    num_rows, num_tokens, _ = keys.shape
    token = torch.arange(num_tokens, device=keys.device)
    present = token < counts[:, None]
    points = keys.float().masked_fill(~present[..., None], 0.0)
    points = points - points.sum(1, keepdim=True) / counts.clamp(min=1)[:, None, None]
    max_clusters = int(num_clusters.max())
    cluster = torch.arange(max_clusters, device=keys.device)
    absent = cluster >= num_clusters[:, None]
    start = (cluster * counts[:, None]) // num_clusters.clamp(min=1)[:, None]
    centroids = _rows(points, start.clamp(max=num_tokens - 1))
    assignment = token.new_zeros(num_rows, num_tokens)
    for iteration in range(iterations):
        assignment, nearness = _assign(points, centroids, absent)
        if iteration + 1 == iterations:
            break
        centroids, sizes = _update(points, assignment.masked_fill(~present, max_clusters), max_clusters)
        empty = (sizes == 0) & ~absent
        if empty.any():
            distance = (points.square().sum(-1) - 2 * nearness).masked_fill(~present, -torch.inf)
            farthest = distance.argsort(dim=1, descending=True)
            chosen = farthest.gather(1, (empty.cumsum(1) - 1).clamp(0, num_tokens - 1))
            centroids = torch.where(empty[..., None], _rows(points, chosen), centroids)
    return assignment.masked_fill(~present, -1)


def _rows(points: Tensor, indices: Tensor) -> Tensor:
    return points.gather(1, indices[..., None].expand(-1, -1, points.shape[-1]))


def _assign(points: Tensor, centroids: Tensor, absent: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each point, and `p.c - |c|^2 / 2` of that centroid: the greater, the nearer."""
    offset = (centroids.square().sum(-1) / -2).masked_fill(absent, -torch.inf)[:, None]
    transposed = centroids.transpose(1, 2)
    step = max(1, MAX_SCORES // (points.shape[0] * centroids.shape[1]))
    parts = [torch.baddbmm(offset, part, transposed).max(-1) for part in points.split(step, dim=1)]
    return torch.cat([part.indices for part in parts], 1), torch.cat([part.values for part in parts], 1)


def _update(points: Tensor, assignment: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Mean and size of each cluster; `assignment == num_clusters` counts for none."""
    sums, sizes = sum_by_label(points, assignment, num_clusters + 1)
    sums, sizes = sums[:, :-1], sizes[:, :-1]
    return sums / sizes.clamp(min=1)[..., None], sizes


KMEANS = (Implementation("torch", _kmeans),)
