"""Pages: units of a fixed number of consecutive tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.errors import check_count
from louiskv.units.base import Grouping, Runs, Units


@dataclass(frozen=True)
class Pages(Units):
    """Runs of consecutive tokens, the first of them behind the sinks (Quest, arXiv 2406.10774, section 3.3).

    Attributes:
        page_size: Tokens of a page.
    """

    page_size: int = 16

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("page_size", self.page_size, 1)

    @property
    def leaves_by(self) -> int:
        """Whole pages."""
        return self.page_size

    @property
    def taken_by(self) -> int:
        """Whole pages."""
        return self.page_size

    @property
    def aligned_by(self) -> int:
        """Whole pages."""
        return self.page_size

    def runs(self, window: int) -> Runs:
        """A page at a time, whatever the boundaries."""
        return Runs(self.page_size + 1, self.page_size)

    def group(self, keys: Tensor, counts: Tensor, impl: str | None = None) -> Grouping:
        """One page after the other; the last may be shorter."""
        return consecutive(keys, counts, self.page_size)

    def sizes_in_order(self, counts: Tensor, num_tokens: int) -> Tensor | None:
        """One page after the other."""
        return consecutive_sizes(counts, num_tokens, self.page_size)

    def num_units(self, num_tokens: int) -> int:
        """Pages, the last one perhaps shorter."""
        return -(-num_tokens // self.page_size)


def consecutive(keys: Tensor, counts: Tensor, size: int) -> Grouping:
    """Group the first `counts[n]` tokens of each row of [N, T, D] into runs of `size`, the last perhaps shorter."""
    num_rows, num_tokens = keys.shape[:2]
    sizes = consecutive_sizes(counts, num_tokens, size)
    return Grouping(torch.arange(num_tokens, device=keys.device).expand(num_rows, -1), sizes)


def consecutive_sizes(counts: Tensor, num_tokens: int, size: int) -> Tensor:
    """Sizes [N, U] of runs of `size`, the last perhaps shorter, of `counts` [N] tokens, `num_tokens` at the most."""
    if 0 < num_tokens <= size:
        return counts[:, None]
    first = torch.arange(0, num_tokens, size, device=counts.device)
    return (counts[:, None] - first).clamp(min=0, max=size)
