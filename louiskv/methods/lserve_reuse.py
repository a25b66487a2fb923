"""Reuse of a selection for a fixed number of steps, as LServe does (arXiv 2502.14866, MLSys 2025)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from louiskv.errors import check_count
from louiskv.methods.base import Assembled, setting
from louiskv.methods.quest import Quest
from louiskv.methods.retrieval import Retrieval
from louiskv.triggers import Every


@dataclass(frozen=True, kw_only=True)
class LServeReuse(Assembled):
    """Quest's selection, made only at every fourth step: the fixed stride that any trigger must beat."""

    paper: ClassVar[str] = "LServe, arXiv 2502.14866"
    keeps: ClassVar[str] = (
        "everything and the min/max of each page on the device; a choice of pages serves several steps"
    )

    budget: int = setting(1024, "tokens a KV head attends to exactly, the page that fills included")
    page_size: int = setting(16, "tokens of a page")
    stride: int = setting(4, "steps that a selection serves")
    dense_layers: int = setting(2, "first layers that attend to everything")

    def parts(self) -> Retrieval:
        """Quest's parts, every few steps."""
        check_count("stride", self.stride, 1)
        quest = Quest(budget=self.budget, page_size=self.page_size, dense_layers=self.dense_layers)
        return replace(quest.parts(), trigger=Every(self.stride))
