"""K-means in Triton: scores and sums are matrix products, and nothing but numbers of clusters is ever written down."""

from functools import cache, partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.kmeans_small_triton import cluster_small, is_small
from louiskv.ops.points_triton import points_of
from louiskv.ops.triton_functions import NONE, operand, product
from louiskv.ops.triton_runtime import bucket, dense, kernel

# Of the random start; the reference draws from the same.
SEED = 0
# Parts of a row's tokens whose sums are made apart, and then added in order: at the most, and tokens of one.
MOST_PARTS, PART = 4, 2048
# Bytes of points in a tile: what fits beside those on their way.
TILE = 32 * 1024
# Shortest vector that is made one of length 1.
SHORTEST = tl.constexpr(1e-12)
TINY = tl.constexpr(float(torch.finfo(torch.float32).tiny))
NOBODY = tl.constexpr(2**30)

_SIZES = {"num_tokens": "i32", "max_clusters": "i32"}
_POINTS = {"points": "*T", "num_clusters": "*i64"}
_CENTROIDS = {"centroids": "*T", "offsets": "*fp32"}
_DIMS = {"cosine": False, "dim": 128, "dim_block": 128}
_TILES = {"tokens": 32, "clusters": 32}
_HALF = {"points": "*fp16", "tokens": 128, "clusters": 64}


@triton.jit
def _points_at(
    points: tl.tensor, token: tl.tensor, is_token: tl.tensor, dim: tl.constexpr, dim_block: tl.constexpr
) -> tl.tensor:
    """Points [tokens, dim_block]; 0 where no token is."""
    channel = tl.arange(0, dim_block)
    mask = is_token[:, None] & (channel < dim)[None]
    return operand(
        tl.load(points + token[:, None] * dim + channel[None], mask=mask, other=0.0), points.dtype.element_ty
    )


@kernel(
    checks=tuple(
        {**_POINTS, "counts": "*i64", **_CENTROIDS, "labels": "*i32", "distances": "*fp32", **_SIZES, **_DIMS, **each}
        for each in (_TILES, {**_HALF, "centroids": "*fp16"}, {**_TILES, "cosine": True, "dim": 80})
    ),
    configs=({"num_warps": 8, "num_stages": 3},),
)
@triton.jit(do_not_specialize=["num_tokens", "max_clusters"])
def _assign(
    points: tl.tensor,
    num_clusters: tl.tensor,
    counts: tl.tensor,
    centroids: tl.tensor,
    offsets: tl.tensor,
    labels: tl.tensor,
    distances: tl.tensor,
    num_tokens: tl.tensor,
    max_clusters: tl.tensor,
    cosine: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    tokens: tl.constexpr,
    clusters: tl.constexpr,
) -> None:
    """The nearest centroid of each token, the first of equal ones, and how far it is; -1 where no token is."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * tokens
    token = first + tl.arange(0, tokens)
    count, many = tl.load(counts + row).to(tl.int32), tl.load(num_clusters + row).to(tl.int32)
    is_token, channel = token < count, tl.arange(0, dim_block)
    point = _points_at(points, row * num_tokens + token, is_token, dim, dim_block)
    # Of each place in a tile the best tile; the places are compared when all tiles have come by.
    nearness = tl.full([tokens, clusters], NONE, tl.float32)
    nearest = tl.zeros([tokens, clusters], tl.int32)
    # Where no token is there is nothing to compare.
    for start in range(0, tl.where(first < count, many, 0), clusters):
        cluster = start + tl.arange(0, clusters)
        is_cluster = cluster < many
        at = row * max_clusters + cluster
        mask = is_cluster[None] & (channel < dim)[:, None]
        centroid = tl.load(centroids + at[None] * dim + channel[:, None], mask=mask, other=0.0)
        scores = product(point, operand(centroid, centroids.dtype.element_ty))
        scores += tl.load(offsets + at, mask=is_cluster, other=NONE)[None]
        nearest = tl.where(scores > nearness, start, nearest)
        nearness = tl.maximum(scores, nearness)
    best = tl.max(nearness, 1)
    nearest += tl.arange(0, clusters)[None]
    label = tl.min(tl.where(nearness == best[:, None], nearest, NOBODY), 1)
    # What is no number is nearest to none.
    label = tl.where(label < many, label, 0)
    wide = point.to(tl.float32)
    square = tl.sum(wide * wide, 1)
    distance = -best / tl.maximum(tl.sqrt(square), TINY) if cosine else square - 2.0 * best
    at = row * num_tokens + token
    tl.store(labels + at, tl.where(is_token, label, -1), mask=token < num_tokens)
    tl.store(distances + at, tl.where(is_token, distance, NONE), mask=token < num_tokens)


@kernel(
    checks=tuple(
        {**_POINTS, "labels": "*i32", "sums": "*fp32", "sizes": "*i32", **_SIZES, "dim": 128, "dim_block": 128, **each}
        for each in (_TILES, _HALF)
    ),
    configs=({"num_warps": 4, "num_stages": 3},),
)
@triton.jit(do_not_specialize=["num_tokens", "max_clusters"])
def _add(
    points: tl.tensor,
    num_clusters: tl.tensor,
    labels: tl.tensor,
    sums: tl.tensor,
    sizes: tl.tensor,
    num_tokens: tl.tensor,
    max_clusters: tl.tensor,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    tokens: tl.constexpr,
    clusters: tl.constexpr,
) -> None:
    """Sums and sizes of some clusters over one part of the tokens: a product with who belongs to whom."""
    row, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    cluster, channel = tl.program_id(0) * clusters + tl.arange(0, clusters), tl.arange(0, dim_block)
    many = tl.load(num_clusters + row).to(tl.int32)
    size = tl.zeros([clusters, tokens], tl.int32)
    total = tl.zeros([clusters, dim_block], tl.float32)
    length = tl.cdiv(tl.cdiv(num_tokens, tl.num_programs(2)), tokens) * tokens
    begin = part * length
    end = tl.where(tl.program_id(0) * clusters < many, tl.minimum(begin + length, num_tokens), begin)
    for start in range(begin, end, tokens):
        token = start + tl.arange(0, tokens)
        is_token = token < num_tokens
        label = tl.load(labels + row * num_tokens + token, mask=is_token, other=-1)
        belongs = label[None] == cluster[:, None]
        size += belongs.to(tl.int32)
        point = _points_at(points, row * num_tokens + token, is_token, dim, dim_block)
        total += product(belongs.to(point.dtype), point)
    at = (part * tl.num_programs(1) + row) * max_clusters + cluster
    mask = cluster < many
    tl.store(sizes + at, tl.sum(size, 1), mask=mask)
    tl.store(sums + at[:, None] * dim + channel[None], total, mask=mask[:, None] & (channel < dim)[None])


@kernel(
    checks=tuple(
        {"sums": "*fp32", "sizes": "*i32", "num_clusters": "*i64", **_CENTROIDS, "num_rows": "i32"}
        | {"max_clusters": "i32", **_DIMS, "cosine": cosine, "parts": 4}
        for cosine in (False, True)
    ),
    configs=({"clusters": 8, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_rows", "max_clusters"])
def _move(
    sums: tl.tensor,
    sizes: tl.tensor,
    num_clusters: tl.tensor,
    centroids: tl.tensor,
    offsets: tl.tensor,
    num_rows: tl.tensor,
    max_clusters: tl.tensor,
    cosine: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    parts: tl.constexpr,
    clusters: tl.constexpr,
) -> None:
    """Move centroids to the mean of their tokens, of all parts in order; the first part's sizes become those of all."""
    row = tl.program_id(1).to(tl.int64)
    cluster, channel = tl.program_id(0) * clusters + tl.arange(0, clusters), tl.arange(0, dim_block)
    is_cluster = cluster < tl.load(num_clusters + row).to(tl.int32)
    at = row * max_clusters + cluster
    mask = is_cluster[:, None] & (channel < dim)[None]
    total, size = tl.zeros([clusters, dim_block], tl.float32), tl.zeros([clusters], tl.int32)
    for part in tl.static_range(parts):
        place = at + part * num_rows.to(tl.int64) * max_clusters
        size += tl.load(sizes + place, mask=is_cluster, other=0)
        total += tl.load(sums + place[:, None] * dim + channel[None], mask=mask, other=0.0)
    tl.store(sizes + at, size, mask=is_cluster)
    _place(
        total / tl.maximum(size, 1).to(tl.float32)[:, None], centroids, offsets, at, is_cluster, cosine, dim, dim_block
    )


@triton.jit
def _place(
    centroid: tl.tensor,
    centroids: tl.tensor,
    offsets: tl.tensor,
    at: tl.tensor,
    is_cluster: tl.tensor,
    cosine: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
) -> None:
    """Write centroids [clusters, dim_block], and what is added to the product with them."""
    channel = tl.arange(0, dim_block)
    if cosine:
        centroid = centroid / tl.maximum(tl.sqrt(tl.sum(centroid * centroid, 1)), SHORTEST)[:, None]
    rounded = centroid.to(centroids.dtype.element_ty)
    tl.store(centroids + at[:, None] * dim + channel[None], rounded, mask=is_cluster[:, None] & (channel < dim)[None])
    wide = rounded.to(tl.float32)
    tl.store(offsets + at, tl.sum(wide * wide, 1) * (0.0 if cosine else -0.5), mask=is_cluster)


@kernel(
    checks=tuple(
        {**_POINTS, "spares": "*i64", **_CENTROIDS, **_SIZES, **_DIMS, "cosine": cosine} for cosine in (False, True)
    ),
    configs=({"clusters": 8, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_tokens", "max_clusters"])
def _start(
    points: tl.tensor,
    num_clusters: tl.tensor,
    spares: tl.tensor,
    centroids: tl.tensor,
    offsets: tl.tensor,
    num_tokens: tl.tensor,
    max_clusters: tl.tensor,
    cosine: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    clusters: tl.constexpr,
) -> None:
    """Put centroids where tokens are."""
    row = tl.program_id(1).to(tl.int64)
    cluster = tl.program_id(0) * clusters + tl.arange(0, clusters)
    is_cluster = cluster < tl.load(num_clusters + row).to(tl.int32)
    at = row * max_clusters + cluster
    token = row * num_tokens + tl.load(spares + at, mask=is_cluster, other=0)
    point = _points_at(points, token, is_cluster, dim, dim_block).to(tl.float32)
    _place(point, centroids, offsets, at, is_cluster, cosine, dim, dim_block)


@kernel(
    checks=tuple(
        {**_POINTS, "sizes": "*i32", "distances": "*fp32", **_CENTROIDS, **_SIZES, **_DIMS, "cosine": cosine}
        for cosine in (False, True)
    ),
    configs=({"block": 1024, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_tokens", "max_clusters"])
def _refill(
    points: tl.tensor,
    num_clusters: tl.tensor,
    sizes: tl.tensor,
    distances: tl.tensor,
    centroids: tl.tensor,
    offsets: tl.tensor,
    num_tokens: tl.tensor,
    max_clusters: tl.tensor,
    cosine: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Move the clusters of one row that ran empty to the tokens farthest from their centroids, one after the other."""
    row = tl.program_id(0).to(tl.int64)
    many, lane = tl.load(num_clusters + row).to(tl.int32), tl.arange(0, block)
    sizes, distances = sizes + row * max_clusters, distances + row * num_tokens
    cluster = _next_empty(sizes, -1, many, block)
    # The farthest that was given away, and where it is.
    far, far_at = tl.full([], float("inf"), tl.float32), tl.full([], -1, tl.int32)
    while cluster < many:
        best, best_at = tl.full([block], NONE, tl.float32), tl.full([block], NOBODY, tl.int32)
        for start in range(0, num_tokens, block):
            token = start + lane
            distance = tl.load(distances + token, mask=token < num_tokens, other=NONE)
            is_left = (distance < far) | ((distance == far) & (token > far_at))
            better = is_left & (distance > best)
            best_at = tl.where(better, token, best_at)
            best = tl.where(better, distance, best)
        far = tl.max(best, 0)
        far_at = tl.min(tl.where(best == far, best_at, NOBODY), 0)
        # As many clusters as tokens at the most, so there is always one; unless distances are no numbers.
        token = row * num_tokens + tl.where(far_at < num_tokens, far_at, 0) + tl.zeros([1], tl.int32)
        point = _points_at(points, token, token >= 0, dim, dim_block).to(tl.float32)
        at = row * max_clusters + cluster + tl.zeros([1], tl.int32)
        _place(point, centroids, offsets, at, at >= 0, cosine, dim, dim_block)
        cluster = _next_empty(sizes, cluster, many, block)


@triton.jit
def _next_empty(sizes: tl.tensor, before: tl.tensor, many: tl.tensor, block: tl.constexpr) -> tl.tensor:
    """The first empty cluster behind another, or `many`."""
    found = tl.full([block], NOBODY, tl.int32)
    for start in range(0, many, block):
        cluster = start + tl.arange(0, block)
        size = tl.load(sizes + cluster, mask=cluster < many, other=1)
        found = tl.where((size == 0) & (cluster > before), tl.minimum(found, cluster), found)
    return tl.minimum(tl.min(found, 0), many)


def kmeans(
    keys: Tensor, counts: Tensor, num_clusters: Tensor, iterations: int, metric: str, start: str, max_clusters: int
) -> Tensor:
    """Twin of the reference; of many tokens, keys of 16 bits are compared and added as float16, centred and scaled."""
    num_rows, num_tokens, dim = keys.shape
    keys, counts, num_clusters = dense(keys), dense(counts), dense(num_clusters)
    cosine = metric == "cosine"
    if is_small(num_tokens, max_clusters, dim):
        drawn = None if start == "strided" else _first_tokens(start, counts, num_clusters, num_tokens, max_clusters)
        return cluster_small(keys, counts, num_clusters, drawn, iterations, cosine, max_clusters)
    made = partial(torch.empty, device=keys.device)
    points = points_of(keys, counts, cosine)
    centroids = made(num_rows, max_clusters, dim, dtype=points.dtype)
    offsets = made(num_rows, max_clusters, dtype=torch.float32)
    labels = torch.zeros(num_rows, num_tokens, dtype=torch.int32, device=keys.device)
    distances = made(num_rows, num_tokens, dtype=torch.float32)
    parts = min(MOST_PARTS, triton.next_power_of_2(triton.cdiv(num_tokens, PART)))
    sums = made(parts, num_rows, max_clusters, dim, dtype=torch.float32)
    sizes = made(parts, num_rows, max_clusters, dtype=torch.int32)
    given, moved = (points, num_clusters), (centroids, offsets)
    dims = (dim, max(16, triton.next_power_of_2(dim)))
    # Products of float32 are three of parts of it, which need room as well.
    tile = max(16, min(128, TILE // (dims[1] * points.itemsize) // (points.itemsize // 2)))
    tiles = (tile, min(tile, 64))
    lengths, some = (num_tokens, max_clusters), (triton.cdiv(max_clusters, 8), num_rows)

    first = _first_tokens(start, counts, num_clusters, num_tokens, max_clusters)
    if iterations:
        _start[some](*given, first, *moved, *lengths, cosine, *dims)
    for iteration in range(iterations):
        if iteration:
            _add[triton.cdiv(max_clusters, tiles[1]), num_rows, parts](
                *given, labels, sums, sizes, *lengths, *dims, *tiles
            )
            _move[some](sums, sizes, num_clusters, *moved, num_rows, max_clusters, cosine, *dims, parts)
            _refill[num_rows,](*given, sizes, distances, *moved, *lengths, cosine, *dims)
        _assign[triton.cdiv(num_tokens, tile), num_rows](
            *given, counts, *moved, labels, distances, *lengths, cosine, *dims, *tiles
        )
    token = torch.arange(num_tokens, device=keys.device)
    return labels.long().masked_fill(token >= counts[:, None], -1)


def _first_tokens(start: str, counts: Tensor, num_clusters: Tensor, num_tokens: int, max_clusters: int) -> Tensor:
    """[N, C] tokens at which the clusters start."""
    if start == "strided":
        cluster = torch.arange(max_clusters, device=counts.device)
        first = (cluster * counts[:, None]) // num_clusters.clamp(min=1)[:, None]
        return first.clamp(max=num_tokens - 1)
    absent = torch.arange(num_tokens, device=counts.device) >= counts[:, None]
    noise = _noise(bucket(num_tokens), counts.device)[:num_tokens]
    return noise.masked_fill(absent, torch.inf).argsort(dim=1, stable=True)[:, :max_clusters].contiguous()


@cache
def _noise(size: int, device: torch.device) -> Tensor:
    """A number for each position; the first of many are those of few."""
    return torch.rand(size, generator=torch.Generator().manual_seed(SEED)).to(device)
