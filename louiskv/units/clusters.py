"""Clusters: tokens with near keys, wherever they stand."""

from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.errors import check_choice, check_count
from louiskv.ops.grouping import group_by_label
from louiskv.ops.kmeans import METRICS, STARTS, kmeans
from louiskv.ops.ragged import kept_first, width_of
from louiskv.units.base import Grouping, Runs, Units

# Rows that are clustered at once at the most, if one chunk of each KV head has not more: enough for a GPU to be busy.
MOST_ROWS = 64


@dataclass(frozen=True)
class Clusters(Units):
    """K-means clusters of a KV head's keys (LouisKV, section 4.2 of arXiv 2510.11292; ClusterKV, arXiv 2412.03213).

    Attributes:
        unit_size: Mean number of tokens of a cluster.
        iterations: Passes of k-means.
        chunk_size: Tokens clustered among themselves, so that the cost stays linear in the prompt.
        metric: "euclidean" on centred keys, or "cosine".
        start: "strided" or "random" (from a fixed seed) first centroids.
        output_size: Tokens of the output that are clustered among themselves, where the output becomes clusters.
    """

    unit_size: int = 16
    iterations: int = 5
    chunk_size: int = 8192
    metric: str = "euclidean"
    start: str = "strided"
    output_size: int = 320

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("unit_size", self.unit_size, 1)
        check_count("iterations", self.iterations, 1)
        check_count("chunk_size", self.chunk_size, self.unit_size)
        check_count("output_size", self.output_size, 1)
        check_choice("metric", self.metric, METRICS)
        check_choice("start", self.start, STARTS)

    @property
    def leaves_by(self) -> int:
        """As many as a cluster has on average, so that each prompt is cut evenly."""
        return self.unit_size

    def runs(self, window: int) -> Runs:
        """As many as are clustered among themselves, whatever the boundaries."""
        return Runs(self.output_size + 1, self.output_size)

    def group(self, keys: Tensor, counts: Tensor, impl: str | None = None) -> Grouping:
        """Cluster each chunk; inside a cluster tokens keep their order."""
        num_tokens = keys.shape[1]
        if num_tokens <= self.chunk_size:
            return self._cluster(keys, counts, impl)
        most = self.chunk_size * max(1, MOST_ROWS // len(keys))
        parts, first = [], 0
        while first < num_tokens:
            # Whole chunks side by side, then what is left.
            length = min(most, (num_tokens - first) // self.chunk_size * self.chunk_size) or num_tokens - first
            parts.append(self._group_chunks(keys[:, first : first + length], counts - first, first, impl))
            first += length
        sizes = torch.cat([part.sizes for part in parts], 1)
        # What is empty between the clusters of two chunks holds no token, so leaving it out does not disturb the order.
        return Grouping(torch.cat([part.order for part in parts], 1), sizes.gather(1, kept_first(sizes > 0)))

    def num_units(self, num_tokens: int) -> int:
        """Clusters that a prompt of this many tokens gets."""
        whole, rest = divmod(num_tokens, self.chunk_size)
        return whole * max(1, self.chunk_size // self.unit_size) + (max(1, rest // self.unit_size) if rest else 0)

    def _group_chunks(self, keys: Tensor, counts: Tensor, first: int, impl: str | None) -> Grouping:
        """Cluster tokens from `first` on: a number of whole chunks, each a row of its own, or a part of one."""
        num_rows, num_tokens, _ = keys.shape
        chunk_size = min(self.chunk_size, num_tokens)
        begin = torch.arange(0, num_tokens, chunk_size, device=keys.device)
        counts = (counts[:, None] - begin).clamp(min=0, max=chunk_size).flatten()
        order, sizes = self._cluster(keys.reshape(len(counts), chunk_size, -1), counts, impl)
        order = order.view(num_rows, -1, chunk_size) + (first + begin)[:, None]
        return Grouping(order.flatten(1), sizes.reshape(num_rows, -1))

    def _cluster(self, keys: Tensor, counts: Tensor, impl: str | None) -> Grouping:
        """Cluster the tokens of each row among themselves."""
        num_clusters = (counts // self.unit_size).clamp(min=1).minimum(counts)
        most = width_of(num_clusters, max(1, keys.shape[1] // self.unit_size))
        labels = kmeans(
            keys,
            counts,
            num_clusters,
            iterations=self.iterations,
            metric=self.metric,
            start=self.start,
            max_clusters=most,
            impl=impl,
        )
        return Grouping(*group_by_label(labels, most, impl=impl))
