"""FreeKV: attend to what the last query chose, fetch for the next one in the background (arXiv 2505.13109)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from louiskv.methods.base import Assembled, setting
from louiskv.methods.retrieval import Retrieval
from louiskv.triggers import Cosine, Late
from louiskv.units.pages import Pages
from louiskv.units.summaries import MinMax


@dataclass(frozen=True, kw_only=True)
class FreeKV(Assembled):
    """Pages selected one step late, with a correction of the KV heads whose query has turned."""

    paper: ClassVar[str] = "FreeKV, arXiv 2505.13109"
    keeps: ClassVar[str] = "everything on the host; sinks, recalled pages, window and min/max on the device"

    budget: int = setting(1024, "tokens a KV head attends to exactly, sinks and window included")
    sink: int = setting(128, "first tokens, always resident")
    window: int = setting(128, "newest tokens, always resident")
    tau: float = setting(0.8, "a KV head selects again when the cosine of neighbouring queries falls under this")
    page_size: int = setting(32, "tokens of a page")
    dense_layers: int = setting(1, "first layers that keep everything on the device")

    @classmethod
    def long_output(cls) -> "FreeKV":
        """The paper's settings for long generation."""
        return cls(budget=2048, sink=512, window=512, tau=0.9)

    def for_sequence(self, tau: float) -> "FreeKV":
        """With this tau."""
        return replace(self, tau=tau)

    def parts(self) -> Retrieval:
        """Pages on the host, min/max, softmax without scaling, one step late."""
        return Retrieval(
            budget=self.budget,
            sink=self.sink,
            window=self.window,
            units=Pages(self.page_size),
            summary=MinMax(),
            scaled=False,
            trigger=Late(Cosine(self.tau, per_head=True)),
            dense_layers=self.dense_layers,
        )
