"""Tokens: the finest unit."""

from dataclasses import dataclass

from torch import Tensor

from louiskv.errors import check_count
from louiskv.units.base import Grouping, Runs, Units
from louiskv.units.pages import consecutive, consecutive_sizes


@dataclass(frozen=True)
class Tokens(Units):
    """Each token is a unit of its own (FIER, arXiv 2508.08256).

    Attributes:
        group_size: Tokens that leave the window together, because their summaries are made together.
    """

    group_size: int = 32

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("group_size", self.group_size, 1)

    @property
    def leaves_by(self) -> int:
        """Whole groups."""
        return self.group_size

    @property
    def aligned_by(self) -> int:
        """Whole groups."""
        return self.group_size

    def runs(self, window: int) -> Runs:
        """A group at a time, whatever the boundaries."""
        return Runs(self.group_size + 1, self.group_size)

    def group(self, keys: Tensor, counts: Tensor, impl: str | None = None) -> Grouping:
        """One unit a token."""
        return consecutive(keys, counts, 1)

    def sizes_in_order(self, counts: Tensor, num_tokens: int) -> Tensor | None:
        """One unit a token."""
        return consecutive_sizes(counts, num_tokens, 1)

    def num_units(self, num_tokens: int) -> int:
        """One unit a token."""
        return num_tokens
