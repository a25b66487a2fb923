"""SnapKV: what the end of the prompt attends to (arXiv 2404.14469, NeurIPS 2024)."""

from dataclasses import dataclass
from typing import ClassVar

from louiskv.errors import check_count
from louiskv.importance import ObservationWindow
from louiskv.methods.base import Assembled, setting
from louiskv.methods.eviction import Eviction


@dataclass(frozen=True, kw_only=True)
class SnapKV(Assembled):
    """The prompt is looked at once, by its own last queries; the output may push out half of what they chose."""

    paper: ClassVar[str] = "SnapKV, arXiv 2404.14469"
    keeps: ClassVar[str] = (
        "what the prompt's last queries attend to, and the newest tokens, on the device; the rest is lost"
    )

    budget: int = setting(1024, "tokens that a KV head keeps, and attends to; up to half of them output")
    observation: int = setting(32, "last queries of the prompt that are looked at, and kept with it")
    kernel: int = setting(7, "neighbouring tokens that share the greatest weight among them")
    dense_layers: int = setting(0, "first layers that keep everything")

    def parts(self) -> Eviction:
        """The token of the prompt with the least pooled weight goes first, then the oldest output."""
        check_count("budget", self.budget, 2)
        check_count("observation", self.observation, 1)
        return Eviction(
            budget=self.budget,
            sink=0,
            window=self.budget // 2,
            prompt_window=self.observation,
            importance=ObservationWindow(self.observation, self.kernel),
            dense_layers=self.dense_layers,
        )
