"""H2O: the tokens that have got the most attention so far, and the newest ones (arXiv 2306.14048, NeurIPS 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from louiskv.errors import check_count
from louiskv.importance import AccumulatedAttention
from louiskv.methods.base import Assembled, setting
from louiskv.methods.eviction import Eviction


@dataclass(frozen=True, kw_only=True)
class H2O(Assembled):
    """Half of the budget for heavy hitters, half for the newest tokens."""

    paper: ClassVar[str] = "H2O, arXiv 2306.14048"
    keeps: ClassVar[str] = "heavy hitters and the newest tokens on the device; the rest is lost"

    budget: int = setting(1024, "tokens that a KV head keeps, and attends to; half of them the newest")
    dense_layers: int = setting(0, "first layers that keep everything")

    def parts(self) -> Eviction:
        """The token of least accumulated attention goes first."""
        check_count("budget", self.budget, 2)
        return Eviction(
            budget=self.budget,
            sink=0,
            window=self.budget // 2,
            importance=AccumulatedAttention(),
            dense_layers=self.dense_layers,
        )
