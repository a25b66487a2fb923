"""Clusters: units of the prompt, tokens with near keys wherever they stand."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from louiskv.ops.kmeans import kmeans
from louiskv.ops.ragged import count_by_label, left_aligned


class Grouping(NamedTuple):
    """Tokens put in order of their units.

    Attributes:
        order: [N, T] tokens of each row, those of one unit side by side; meaningful for the row's count.
        sizes: [N, U] tokens of each unit; a row that has fewer units ends in zeros.
    """

    order: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class Clusters:
    """K-means clusters of a KV head's keys (LouisKV, section 4.2 of arXiv 2510.11292).

    Attributes:
        unit_size: Mean number of tokens of a cluster.
        iterations: Passes of k-means.
        chunk_size: Tokens clustered among themselves, so that the cost stays linear in the prompt.
    """

    unit_size: int = 16
    iterations: int = 10
    chunk_size: int = 8192

    def group(self, keys: Tensor, counts: Tensor, impl: str | None = None) -> Grouping:
        """Group the first `counts[n]` of the keys [N, T, D] of each row."""
        parts = [
            self._group_chunk(keys[:, first : first + self.chunk_size], counts - first, first, impl)
            for first in range(0, keys.shape[1], self.chunk_size)
        ]
        sizes = torch.cat([part.sizes for part in parts], 1)
        # A cluster that ended empty holds no token, so leaving it out does not disturb the order.
        occupied, _ = left_aligned(sizes > 0)
        return Grouping(torch.cat([part.order for part in parts], 1), sizes.gather(1, occupied))

    def num_units(self, num_tokens: int) -> int:
        """Clusters that a prompt of this many tokens gets."""
        whole, rest = divmod(num_tokens, self.chunk_size)
        return whole * max(1, self.chunk_size // self.unit_size) + (max(1, rest // self.unit_size) if rest else 0)

    def _group_chunk(self, keys: Tensor, counts: Tensor, first: int, impl: str | None) -> Grouping:
        counts = counts.clamp(min=0, max=keys.shape[1])
        num_clusters = (counts // self.unit_size).clamp(min=1).minimum(counts)
        assignment = kmeans(keys, counts, num_clusters, iterations=self.iterations, impl=impl)
        absent = int(num_clusters.max())
        assignment = torch.where(assignment < 0, absent, assignment)
        sizes = count_by_label(assignment, absent + 1)[:, :-1]
        return Grouping(assignment.argsort(dim=1, stable=True) + first, sizes)
