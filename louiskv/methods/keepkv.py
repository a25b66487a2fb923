"""KeepKV: a token that must go is merged so that attention stays what it was (arXiv 2504.09936, AAAI 2026)."""

from dataclasses import dataclass
from typing import ClassVar

from louiskv.importance import MovingAverage
from louiskv.merging import SimilarKeys
from louiskv.methods.base import Assembled, setting
from louiskv.methods.eviction import Eviction


@dataclass(frozen=True, kw_only=True)
class KeepKV(Assembled):
    """Votes remember how many tokens a slot stands for, and raise its logit."""

    paper: ClassVar[str] = "KeepKV, arXiv 2504.09936"
    keeps: ClassVar[str] = "the tokens of most weight, with what was merged into them, on the device"

    budget: int = setting(1024, "tokens that a KV head keeps, and attends to")
    sink: int = setting(4, "first tokens, always kept")
    window: int = setting(32, "newest tokens, always kept")
    threshold: float = setting(0.8, "least cosine of two keys that are merged; without a partner a token is lost")
    decay: float = setting(0.9, "what a query's part in the average is multiplied by at each next query")
    dense_layers: int = setting(0, "first layers that keep everything")

    def parts(self) -> Eviction:
        """The token of least average weight goes into the one most like it."""
        return Eviction(
            budget=self.budget,
            sink=self.sink,
            window=self.window,
            importance=MovingAverage(self.decay),
            merging=SimilarKeys(self.threshold),
            dense_layers=self.dense_layers,
        )
