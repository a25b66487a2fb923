"""K-means in Triton: distances are never written down, and nothing waits for the device to count its clusters."""

from collections.abc import Callable, Mapping
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_functions import NONE, product
from louiskv.ops.triton_runtime import bucket, dense, kernel

# Of the random start; the reference draws from the same.
SEED = 0
# Programs that share the clusters of a row.
PROGRAMS = 1024
# Shortest vector that is made one of length 1.
SHORTEST = tl.constexpr(1e-12)
TINY = tl.constexpr(float(torch.finfo(torch.float32).tiny))

_ROWS = dict.fromkeys(("keys_row", "keys_token", "num_tokens"), "i32")
_KEYS = {"keys": "*T", "mean": "*fp32", "num_clusters": "*i64"}
_DIMS = {"dim": 128, "dim_block": 128}


@kernel(
    checks=tuple(
        {**_KEYS, "counts": "*i64", "centroids": "*fp32", "offsets": "*fp32", "labels": "*i32", "distances": "*fp32"}
        | {**_ROWS, "_bucket": "i32", "cosine": cosine, "dim": dim}
        for cosine, dim in ((False, 128), (True, 80))
    ),
    configs=(
        {"tokens": 64, "clusters": 64, "channels": 32, "num_warps": 4, "num_stages": 2},
        {"tokens": 128, "clusters": 64, "channels": 32, "num_warps": 4, "num_stages": 2},
        {"tokens": 128, "clusters": 64, "channels": 32, "num_warps": 8, "num_stages": 3},
        {"tokens": 128, "clusters": 128, "channels": 32, "num_warps": 8, "num_stages": 2},
    ),
    key=("dim", "_bucket", "cosine"),
)
@triton.jit(do_not_specialize=["num_tokens", "_bucket"])
def _assign(
    keys: tl.tensor,
    mean: tl.tensor,
    num_clusters: tl.tensor,
    counts: tl.tensor,
    centroids: tl.tensor,
    offsets: tl.tensor,
    labels: tl.tensor,
    distances: tl.tensor,
    keys_row: tl.tensor,
    keys_token: tl.tensor,
    num_tokens: tl.tensor,
    _bucket: tl.tensor,
    cosine: tl.constexpr,
    dim: tl.constexpr,
    tokens: tl.constexpr,
    clusters: tl.constexpr,
    channels: tl.constexpr,
) -> None:
    """The nearest centroid of each token, and how far it is; tokens that are not there get the label `num_tokens`."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * tokens
    token = first + tl.arange(0, tokens)
    count, many = tl.load(counts + row).to(tl.int32), tl.load(num_clusters + row).to(tl.int32)
    is_token = token < count
    key = keys + row * keys_row + token.to(tl.int64)[:, None] * keys_token
    nearest = tl.zeros([tokens], tl.int32)
    nearness = tl.full([tokens], NONE, tl.float32)
    # Where no token is there is nothing to compare.
    for start in range(0, tl.where(first < count, many, 0), clusters):
        cluster = start + tl.arange(0, clusters)
        is_cluster = cluster < many
        place = row * num_tokens + cluster
        scores = tl.zeros([tokens, clusters], tl.float32)
        for channel in range(0, dim, channels):
            point = _centred(key, mean + row * dim, is_token, channel, dim, channels)
            here = channel + tl.arange(0, channels)
            of_cluster = centroids + place[None] * dim + here[:, None]
            scores += product(point, tl.load(of_cluster, mask=is_cluster[None] & (here < dim)[:, None], other=0.0))
        scores += tl.load(offsets + place, mask=is_cluster, other=NONE)[None]
        best, best_at = tl.max(scores, 1, return_indices=True, return_indices_tie_break_left=True)
        nearer = best > nearness
        nearest = tl.where(nearer, start + best_at, nearest)
        nearness = tl.where(nearer, best, nearness)
    square = tl.zeros([tokens], tl.float32)
    for channel in range(0, dim, channels):
        point = _centred(key, mean + row * dim, is_token, channel, dim, channels)
        square += tl.sum(point * point, 1)
    distance = -nearness / tl.maximum(tl.sqrt(square), TINY) if cosine else square - 2.0 * nearness
    at = row * num_tokens + token
    tl.store(labels + at, tl.where(is_token, nearest, num_tokens), mask=token < num_tokens)
    tl.store(distances + at, tl.where(is_token, distance, NONE), mask=token < num_tokens)


@triton.jit
def _centred(
    key: tl.tensor, mean: tl.tensor, is_token: tl.tensor, first: tl.tensor, dim: tl.constexpr, channels: tl.constexpr
) -> tl.tensor:
    """Some channels of keys less their mean."""
    channel = first + tl.arange(0, channels)
    mask = is_token[:, None] & (channel < dim)[None]
    point = tl.load(key + channel[None], mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, point - tl.load(mean + channel, mask=channel < dim, other=0.0)[None], 0.0)


@kernel(
    checks=({"labels": "*i32", "begins": "*i32", "ends": "*i32", "num_tokens": "i32"},),
    configs=({"block": 1024, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_tokens"])
def _bound(labels: tl.tensor, begins: tl.tensor, ends: tl.tensor, num_tokens: tl.tensor, block: tl.constexpr) -> None:
    """Where the runs of equal labels, which are sorted, begin and end."""
    row = tl.program_id(1).to(tl.int64) * num_tokens
    token = tl.program_id(0) * block + tl.arange(0, block)
    label = tl.load(labels + row + token, mask=token < num_tokens, other=num_tokens)
    before = tl.load(labels + row + token - 1, mask=(token < num_tokens) & (token > 0), other=-1)
    after = tl.load(labels + row + token + 1, mask=token + 1 < num_tokens, other=-1)
    is_there = (token < num_tokens) & (label < num_tokens)
    tl.store(begins + row + label, token, mask=is_there & (before != label))
    tl.store(ends + row + label, token + 1, mask=is_there & (after != label))


@kernel(
    checks=(
        {**_KEYS, "order": "*i64", "begins": "*i32", "ends": "*i32", "spares": "*i64", "centroids": "*fp32"}
        | {"offsets": "*fp32", **_ROWS, **_DIMS, "cosine": False},
        {**_KEYS, "order": "*i64", "begins": "*i32", "ends": "*i32", "spares": "*i64", "centroids": "*fp32"}
        | {"offsets": "*fp32", **_ROWS, **_DIMS, "cosine": True},
    ),
    configs=({"block": 16, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_tokens"])
def _move(
    keys: tl.tensor,
    mean: tl.tensor,
    num_clusters: tl.tensor,
    order: tl.tensor,
    begins: tl.tensor,
    ends: tl.tensor,
    spares: tl.tensor,
    centroids: tl.tensor,
    offsets: tl.tensor,
    keys_row: tl.tensor,
    keys_token: tl.tensor,
    num_tokens: tl.tensor,
    cosine: tl.constexpr,
    dim: tl.constexpr,
    dim_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Move each centroid to the mean of its tokens, added in a fixed order, or to its spare token if it has none."""
    row = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, dim_block)
    is_channel = channel < dim
    middle = tl.load(mean + row * dim + channel, mask=is_channel, other=0.0)
    for cluster in range(tl.program_id(0), tl.load(num_clusters + row).to(tl.int32), tl.num_programs(0)):
        at = row * num_tokens + cluster
        begin, end = tl.load(begins + at), tl.load(ends + at)
        size = end - begin
        spare = tl.load(spares + at)
        total = tl.zeros([dim_block], tl.float32)
        for start in range(begin, tl.maximum(end, begin + 1), block):
            number = start + tl.arange(0, block)
            token = tl.load(order + row * num_tokens + number, mask=number < end, other=0)
            token = tl.where(size > 0, token, spare)
            is_token = number < tl.maximum(end, begin + 1)
            place = keys + row * keys_row + token[:, None] * keys_token + channel[None]
            key = tl.load(place, mask=is_token[:, None] & is_channel[None], other=0.0).to(tl.float32)
            total += tl.sum(tl.where(is_token[:, None], key - middle[None], 0.0), 0)
        centroid = total / tl.maximum(size, 1).to(tl.float32)
        square = tl.sum(centroid * centroid, 0)
        if cosine:
            centroid = centroid / tl.maximum(tl.sqrt(square), SHORTEST)
            tl.store(offsets + at, 0.0)
        else:
            tl.store(offsets + at, square * -0.5)
        tl.store(centroids + at * dim + channel, centroid, mask=is_channel)


def kmeans(keys: Tensor, counts: Tensor, num_clusters: Tensor, iterations: int, metric: str, start: str) -> Tensor:
    """Twin of the reference; a row has room for as many clusters as tokens, and what it has not is not visited."""
    num_rows, num_tokens, dim = keys.shape
    keys, counts, num_clusters = dense(keys), dense(counts), dense(num_clusters)
    cosine = metric == "cosine"
    token = torch.arange(num_tokens, device=keys.device)
    present = token < counts[:, None]
    absent = token >= num_clusters[:, None]
    mean = keys.new_zeros(num_rows, dim, dtype=torch.float32)
    if not cosine:
        mean = keys.masked_fill(~present[..., None], 0.0).sum(1, dtype=torch.float32) / counts.clamp(min=1)[:, None]
    centroids = keys.new_empty(num_rows, num_tokens, dim, dtype=torch.float32)
    offsets = keys.new_empty(num_rows, num_tokens, dtype=torch.float32)
    distances, labels = torch.empty_like(offsets), torch.zeros_like(offsets, dtype=torch.int32)
    block = max(16, triton.next_power_of_2(dim))
    given = (keys, mean, num_clusters)
    strides = (*keys.stride()[:2], num_tokens)
    programs = (min(PROGRAMS, num_tokens), num_rows)

    order = token.expand(num_rows, -1).contiguous()
    begins = torch.zeros_like(labels)
    ends, spares = begins, _first_tokens(start, present, counts, num_clusters, token)
    for iteration in range(iterations):
        _move[programs](*given, order, begins, ends, spares, centroids, offsets, *strides, cosine, dim, block)
        _assign[_tiles_of(num_tokens, num_rows)](
            *given,
            counts,
            centroids,
            offsets,
            labels,
            distances,
            *strides,
            _bucket=bucket(num_tokens),
            cosine=cosine,
            dim=dim,
        )
        if iteration + 1 == iterations:
            break
        ordered, order = labels.sort(dim=1, stable=True)
        begins, ends = torch.zeros_like(labels), torch.zeros_like(labels)
        _bound[triton.cdiv(num_tokens, 1024), num_rows](ordered, begins, ends, num_tokens)
        farthest = distances.argsort(dim=1, descending=True, stable=True)
        rank = ((begins == ends) & ~absent).cumsum(1) - 1
        spares = farthest.gather(1, rank.clamp(min=0))
    return labels.long().masked_fill(~present, -1)


def _tiles_of(num_tokens: int, num_rows: int) -> Callable[[Mapping[str, int]], tuple[int, int]]:
    return lambda config: (triton.cdiv(num_tokens, config["tokens"]), num_rows)


def _first_tokens(start: str, present: Tensor, counts: Tensor, num_clusters: Tensor, cluster: Tensor) -> Tensor:
    """[N, T] tokens at which the clusters start."""
    if start == "strided":
        first = (cluster * counts[:, None]) // num_clusters.clamp(min=1)[:, None]
        return first.clamp(max=len(cluster) - 1)
    noise = _noise(bucket(len(cluster)), present.device)[: len(cluster)]
    return noise.masked_fill(~present, torch.inf).argsort(dim=1, stable=True)


@cache
def _noise(size: int, device: torch.device) -> Tensor:
    """A number for each position; the first of many are those of few."""
    return torch.rand(size, generator=torch.Generator().manual_seed(SEED)).to(device)
