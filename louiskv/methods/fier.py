"""FIER: single tokens chosen by their keys in one bit a channel (arXiv 2508.08256, EMNLP 2025)."""

from dataclasses import dataclass
from typing import ClassVar

from louiskv.methods.base import Assembled, setting
from louiskv.methods.retrieval import Retrieval
from louiskv.triggers import Every
from louiskv.units.summaries import OneBit
from louiskv.units.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class FIER(Assembled):
    """The finest units: every step takes the best tokens by their one-bit keys."""

    paper: ClassVar[str] = "FIER, arXiv 2508.08256"
    keeps: ClassVar[str] = "everything on the host; retrieved tokens, the last group and one-bit keys on the device"

    budget: int = setting(1024, "tokens a KV head attends to exactly, the group that fills included")
    group_size: int = setting(32, "tokens that share the scales of their one-bit keys")
    dense_layers: int = setting(2, "first layers that keep everything on the device")

    def parts(self) -> Retrieval:
        """Tokens, one-bit keys, every step."""
        return Retrieval(
            budget=self.budget,
            sink=0,
            window=self.group_size,
            units=Tokens(self.group_size),
            summary=OneBit(self.group_size),
            trigger=Every(1),
            dense_layers=self.dense_layers,
        )
