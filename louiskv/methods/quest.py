"""Quest: pages chosen at every step by the most that a key in them could reach (arXiv 2406.10774, ICML 2024)."""

from dataclasses import dataclass
from typing import ClassVar

from louiskv.methods.base import Assembled, setting
from louiskv.methods.retrieval import Retrieval
from louiskv.triggers import Every
from louiskv.units.pages import Pages
from louiskv.units.summaries import MinMax


@dataclass(frozen=True, kw_only=True)
class Quest(Assembled):
    """Pages with their least and greatest channels; saves work, not memory: everything stays on the device."""

    paper: ClassVar[str] = "Quest, arXiv 2406.10774"
    keeps: ClassVar[str] = "everything and the min/max of each page on the device; attends to a few pages"

    budget: int = setting(1024, "tokens a KV head attends to exactly, the page that fills included")
    page_size: int = setting(16, "tokens of a page")
    dense_layers: int = setting(2, "first layers that attend to everything")

    def parts(self) -> Retrieval:
        """Pages on the device, min/max, every step."""
        return Retrieval(
            budget=self.budget,
            sink=0,
            window=self.page_size,
            units=Pages(self.page_size),
            summary=MinMax(),
            trigger=Every(1),
            store="device",
            dense_layers=self.dense_layers,
        )
