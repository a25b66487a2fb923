"""StreamingLLM: sinks and a window, nothing else (arXiv 2309.17453, ICLR 2024)."""

from dataclasses import dataclass
from typing import ClassVar

from louiskv.importance import Recency
from louiskv.methods.base import Assembled, setting
from louiskv.methods.eviction import Eviction


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Assembled):
    """The first tokens and the newest ones."""

    paper: ClassVar[str] = "StreamingLLM, arXiv 2309.17453"
    keeps: ClassVar[str] = "sinks and window on the device; the rest is lost"

    budget: int = setting(1024, "tokens that a KV head keeps, and attends to")
    sink: int = setting(4, "first tokens, always kept")
    dense_layers: int = setting(0, "first layers that keep everything")

    def parts(self) -> Eviction:
        """The oldest goes first."""
        return Eviction(budget=self.budget, sink=self.sink, importance=Recency(), dense_layers=self.dense_layers)
