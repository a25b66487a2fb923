"""The contract of units: how tokens that leave the window together are grouped, and how many leave at once."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor


class Grouping(NamedTuple):
    """Tokens put in order of their units.

    Attributes:
        order: [N, T] tokens of each row, those of one unit side by side; meaningful for the row's count.
        sizes: [N, U] tokens of each unit; a row that has fewer units ends in zeros.
    """

    order: Tensor
    sizes: Tensor


class Runs(NamedTuple):
    """How the output is cut into runs, each of which leaves the window at once.

    Attributes:
        shortest: A boundary that comes earlier than this many tokens after the last one cuts nothing.
        longest: A run ends at this size without a boundary; one that only ends so has `shortest > longest`.
    """

    shortest: int
    longest: int


class Units(ABC):
    """Settings of a kind of unit."""

    @property
    @abstractmethod
    def leaves_by(self) -> int:
        """Tokens of a prompt leave the window in multiples of this."""

    @property
    def taken_by(self) -> int:
        """A selection takes tokens in multiples of this: 1 where units may be cut to fit the budget."""
        return 1

    @property
    def aligned_by(self) -> int:
        """Units begin at multiples of this behind the sinks: 1 where they may begin anywhere."""
        return 1

    @abstractmethod
    def runs(self, window: int) -> Runs:
        """How the output is cut in a window of this many tokens."""

    @abstractmethod
    def group(self, keys: Tensor, counts: Tensor, impl: str | None = None) -> Grouping:
        """Group the first `counts[n]` of the keys [N, T, D] of each row, which leave the window together."""

    def sizes_in_order(self, counts: Tensor, num_tokens: int) -> Tensor | None:
        """Sizes [N, U] of units that are runs of consecutive tokens; None where it is for `group` to say.

        Args:
            counts: [N] tokens that leave the window together.
            num_tokens: The most of them.
        """
        return None

    @abstractmethod
    def num_units(self, num_tokens: int) -> int:
        """Units that a prompt of this many tokens gets."""
