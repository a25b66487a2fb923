"""What becomes of a token that is dropped: nothing, a part of a token like it, or a part of one that stands for all."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.errors import check_range
from louiskv.ops.eviction import merge_similar


class Merging(ABC):
    """Settings of what becomes of dropped tokens."""

    @property
    def compensates(self) -> bool:
        """Whether one more slot stands for all that is dropped: mean key, mean value, logit raised by its ln number."""
        return False

    @abstractmethod
    def merge(
        self,
        rows: Tensor,
        key_dim: int,
        votes: Tensor,
        log_scores: Tensor,
        lost: Tensor,
        most: int | None = None,
        impl: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What is left when tokens go.

        Args:
            rows: [N, C, Dk + Dv], each token's key beside its value.
            key_dim: Dk.
            votes: [N, C] what is added to the logit of each token, -inf where there is none.
            log_scores: [N, C] ln s of each token.
            lost: [N, C] True for tokens to drop.
            most: How many they are in a row at the most; None if that is not known.
            impl: Implementation; None takes the best that can run.

        Returns:
            Rows and votes; the votes of lost tokens are -inf.
        """


@dataclass(frozen=True)
class NoMerging(Merging):
    """A dropped token is gone."""

    def merge(
        self,
        rows: Tensor,
        key_dim: int,
        votes: Tensor,
        log_scores: Tensor,
        lost: Tensor,
        most: int | None = None,
        impl: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Only the votes of lost tokens change."""
        return rows, votes.masked_fill(lost, -torch.inf)


@dataclass(frozen=True)
class Compensation(NoMerging):
    """One token stands for all that are dropped (RazorAttention, section 3.3 of arXiv 2407.15891)."""

    @property
    def compensates(self) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True)
class SimilarKeys(Merging):
    """A dropped token becomes part of the kept token whose key is most like its own (KeepKV, arXiv 2504.09936).

    Attributes:
        threshold: A token whose greatest cosine is less is gone.
    """

    threshold: float = 0.8

    def __post_init__(self) -> None:
        """Check the settings."""
        check_range("threshold", self.threshold, -1, 1)

    def merge(
        self,
        rows: Tensor,
        key_dim: int,
        votes: Tensor,
        log_scores: Tensor,
        lost: Tensor,
        most: int | None = None,
        impl: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Merge into the most similar."""
        keys, values, votes = merge_similar(
            rows[..., :key_dim],
            rows[..., key_dim:],
            votes,
            log_scores,
            lost,
            threshold=self.threshold,
            most=most,
            impl=impl,
        )
        return torch.cat([keys, values], dim=-1), votes
