"""K-means of rows of few tokens in Triton: one program has a row's points and centroids, and makes all passes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_functions import NONE, product
from louiskv.ops.triton_runtime import kernel

# Tokens of a row at the most, and numbers of its points and its centroids.
MOST_TOKENS, MOST_NUMBERS = 64, 96 * 128
# The least that products are made of.
LEAST = 16
# Shortest vector that is made one of length 1.
SHORTEST = tl.constexpr(1e-12)
TINY = tl.constexpr(float(torch.finfo(torch.float32).tiny))
NOBODY = tl.constexpr(2**30)

_CHECK = {"keys": "*T", "counts": "*i64", "num_clusters": "*i64", "labels": "*i64"} | dict.fromkeys(
    ("keys_row", "keys_token", "num_tokens", "max_clusters", "iterations"), "i32"
)
_SMALL = {"dim": 128, "dim_block": 128, "tokens": 32, "clusters": 16}
_BIG = {"dim": 80, "dim_block": 128, "tokens": 64, "clusters": 32}
_WIDE = {"dim": 256, "dim_block": 256, "tokens": 32, "clusters": 16}


@triton.jit
def _points_at(
    keys: tl.tensor,
    token: tl.tensor,
    is_token: tl.tensor,
    keys_token: tl.tensor,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
) -> tl.tensor:
    """Keys [tokens, dim_block] of one row in float32; 0 where no token is."""
    channel = tl.arange(0, dim_block)
    mask = is_token[:, None] & (channel < dim)[None]
    place = keys + token.to(tl.int64)[:, None] * keys_token + channel[None]
    return tl.load(place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _nearest(
    point: tl.tensor, centroid: tl.tensor, is_token: tl.tensor, is_cluster: tl.tensor, cosine: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The nearest centroid of each token, the first of equal ones, and how far it is."""
    square = tl.sum(centroid * centroid, 1)
    if cosine:
        centroid = centroid / tl.maximum(tl.sqrt(square), SHORTEST)[:, None]
    scores = product(point, tl.trans(centroid))
    if not cosine:
        scores -= square[None] / 2
    scores = tl.where(is_cluster[None], scores, NONE)
    best, cluster = tl.max(scores, 1), tl.arange(0, centroid.shape[0])
    label = tl.min(tl.where(scores == best[:, None], cluster[None], NOBODY), 1)
    # What is no number is nearest to none.
    label = tl.where(label < centroid.shape[0], label, 0)
    square = tl.sum(point * point, 1)
    distance = -best / tl.maximum(tl.sqrt(square), TINY) if cosine else square - 2.0 * best
    return label, tl.where(is_token & (distance == distance), distance, NONE)


@triton.jit
def _moved(
    point: tl.tensor, label: tl.tensor, distance: tl.tensor, is_token: tl.tensor, is_cluster: tl.tensor
) -> tl.tensor:
    """Centroids in the middle of their tokens; those that ran empty are at the tokens farthest from theirs."""
    token, cluster = tl.arange(0, point.shape[0]), tl.arange(0, is_cluster.shape[0])
    belongs = (label[None] == cluster[:, None]) & is_token[None]
    size = tl.sum(belongs.to(tl.int32), 1)
    empty = (size == 0) & is_cluster
    # How many tokens are farther, or as far and come before; and how many empty clusters come before.
    nearer = (distance[:, None] > distance[None]) | ((distance[:, None] == distance[None]) & (token[:, None] < token))
    rank = tl.sum(nearer.to(tl.int32), 0)
    turn = tl.cumsum(empty.to(tl.int32), 0) - 1
    belongs = tl.where(empty[:, None], (turn[:, None] == rank[None]) & is_token[None], belongs)
    return product(belongs.to(tl.float32), point) / tl.maximum(size, 1).to(tl.float32)[:, None]


@kernel(
    checks=(
        {**_CHECK, "first": None, "cosine": False, **_SMALL},
        {**_CHECK, "first": "*i64", "cosine": True, **_SMALL},
        {**_CHECK, "first": None, "cosine": False, **_BIG},
        {**_CHECK, "first": None, "cosine": True, **_WIDE},
    ),
    configs=({"num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_tokens", "max_clusters", "iterations"])
def _cluster(
    keys: tl.tensor,
    counts: tl.tensor,
    num_clusters: tl.tensor,
    first: tl.tensor,
    labels: tl.tensor,
    keys_row: tl.tensor,
    keys_token: tl.tensor,
    num_tokens: tl.tensor,
    max_clusters: tl.tensor,
    iterations: tl.tensor,
    cosine: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    tokens: tl.constexpr,
    clusters: tl.constexpr,
) -> None:
    """Cluster the tokens of one row."""
    row, token, cluster = tl.program_id(0).to(tl.int64), tl.arange(0, tokens), tl.arange(0, clusters)
    count, many = tl.load(counts + row).to(tl.int32), tl.load(num_clusters + row).to(tl.int32)
    is_token, is_cluster, keys = token < count, cluster < many, keys + row * keys_row
    if first is None:
        start = tl.minimum((cluster * count) // tl.maximum(many, 1), num_tokens - 1)
    else:
        start = tl.load(first + row * max_clusters + cluster, mask=is_cluster & (cluster < max_clusters), other=0)
    point = _points_at(keys, token, is_token, keys_token, dim, dim_block)
    centroid = _points_at(keys, start, is_cluster, keys_token, dim, dim_block)
    if not cosine:
        middle = tl.sum(point, 0)[None] / tl.maximum(count, 1).to(tl.float32)
        point = tl.where(is_token[:, None], point - middle, 0.0)
        centroid = tl.where(is_cluster[:, None], centroid - middle, 0.0)
    label, distance = _nearest(point, centroid, is_token, is_cluster, cosine)
    for _ in range(1, iterations):
        centroid = _moved(point, label, distance, is_token, is_cluster)
        label, distance = _nearest(point, centroid, is_token, is_cluster, cosine)
    label = tl.where(is_token, tl.where(iterations > 0, label, 0), -1)
    tl.store(labels + row * num_tokens + token, label.to(tl.int64), mask=token < num_tokens)


def is_small(num_tokens: int, max_clusters: int, dim: int) -> bool:
    """Whether a program has room for a row of so many tokens and clusters, each of so many numbers."""
    numbers = (_block(num_tokens) + _block(max_clusters)) * _block(dim)
    return num_tokens <= MOST_TOKENS and numbers <= MOST_NUMBERS


def cluster_small(
    keys: Tensor,
    counts: Tensor,
    num_clusters: Tensor,
    first: Tensor | None,
    iterations: int,
    cosine: bool,
    max_clusters: int,
) -> Tensor:
    """Labels [N, T] as those of `louiskv.ops.kmeans.kmeans`, of rows that are small; all products in float32.

    Args:
        keys: [N, T, D], dense in D.
        counts: [N].
        num_clusters: [N].
        first: [N, C] tokens at which clusters start, in 0 to T - 1; None where they are strided.
        iterations: Passes.
        cosine: Whether the metric is the cosine.
        max_clusters: C.
    """
    num_rows, num_tokens, dim = keys.shape
    labels = torch.empty(num_rows, num_tokens, dtype=torch.int64, device=keys.device)
    sizes = (*keys.stride()[:2], num_tokens, max_clusters, iterations)
    blocks = (dim, _block(dim), _block(num_tokens), _block(max_clusters))
    _cluster[num_rows,](keys, counts, num_clusters, first, labels, *sizes, cosine, *blocks)
    return labels


def _block(size: int) -> int:
    block: int = max(LEAST, triton.next_power_of_2(size))
    return block
