"""RaaS: pages of the output stay as long as they are attended to now and then (arXiv 2502.11147, ACL 2025)."""

from dataclasses import dataclass
from typing import ClassVar

from louiskv.errors import check_count
from louiskv.importance import TimeStamps
from louiskv.methods.base import Assembled, setting
from louiskv.methods.eviction import Eviction


@dataclass(frozen=True, kw_only=True)
class RaaS(Assembled):
    """Made for short prompts and long reasoning: the prompt stays, the page of the oldest stamp goes."""

    paper: ClassVar[str] = "RaaS, arXiv 2502.11147"
    keeps: ClassVar[str] = (
        "the prompt, if it fits, and pages of output that were attended to, on the device; the rest is lost"
    )

    budget: int = setting(1024, "tokens that a KV head keeps, and attends to, the prompt included")
    page_size: int = setting(16, "tokens of a page")
    threshold: float = setting(1e-4, "share of the attention that renews a page's stamp")
    dense_layers: int = setting(0, "first layers that keep everything")

    def parts(self) -> Eviction:
        """The page with the oldest stamp goes first."""
        check_count("page_size", self.page_size, 1)
        return Eviction(
            budget=self.budget,
            sink=0,
            window=self.page_size,
            importance=TimeStamps(self.page_size, self.threshold),
            dense_layers=self.dense_layers,
        )
