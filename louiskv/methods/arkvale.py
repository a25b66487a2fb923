"""ArkVale: pages on the host, recalled by bounding volumes (NeurIPS 2024)."""

from dataclasses import dataclass
from typing import ClassVar

from louiskv.errors import check_count, check_multiple
from louiskv.methods.base import Assembled, setting
from louiskv.methods.retrieval import Retrieval
from louiskv.triggers import Every
from louiskv.units.pages import Pages
from louiskv.units.summaries import BoundingVolume


@dataclass(frozen=True, kw_only=True)
class ArkVale(Assembled):
    """A page goes to the host as soon as it is full; missing pages are fetched, the least important ones give way."""

    paper: ClassVar[str] = "ArkVale, NeurIPS 2024"
    keeps: ClassVar[str] = (
        "everything on the host; sinks, recalled pages, newest pages and bounding volumes on the device"
    )

    budget: int = setting(1024, "tokens a KV head attends to exactly, sinks and window included")
    sink: int = setting(32, "first tokens, always resident")
    window: int = setting(64, "newest tokens, always resident: the page that fills and the full ones before it")
    page_size: int = setting(32, "tokens of a page")
    dense_layers: int = setting(2, "first layers that keep everything on the device")

    def parts(self) -> Retrieval:
        """Pages on the host, bounding volumes, every step; only the page that fills is not on the host yet."""
        check_count("page_size", self.page_size, 1)
        for name in ("sink", "window"):
            check_multiple(name, getattr(self, name), "page_size", self.page_size)
        check_count("window", self.window, self.page_size)
        return Retrieval(
            budget=self.budget,
            sink=self.sink,
            window=self.page_size,
            recent_units=self.window // self.page_size - 1,
            units=Pages(self.page_size),
            summary=BoundingVolume(),
            trigger=Every(1),
            dense_layers=self.dense_layers,
        )
