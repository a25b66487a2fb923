"""RazorAttention: only the heads that look back keep everything (arXiv 2407.15891, ICLR 2025)."""

import math
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import ClassVar, Self

from torch import nn

from louiskv.errors import NotCalibratedError, SettingsError, check_count, check_range
from louiskv.heads import HeadScores
from louiskv.importance import Recency
from louiskv.measured import ModelIdentity
from louiskv.merging import Compensation
from louiskv.methods.base import Footprint, KVLayer, LayerShape, Method, setting
from louiskv.methods.eviction import Eviction
from louiskv.methods.full import FullLayer
from louiskv.methods.split import SplitLayer


@dataclass(frozen=True, kw_only=True)
class RazorAttention(Method):
    """Retrieval heads keep everything; the others sinks, the newest tokens and one that stands for the dropped ones.

    Attributes:
        kv_heads: The retrieval heads of each layer; not given, the head scores of the model decide.
    """

    paper: ClassVar[str] = "RazorAttention, arXiv 2407.15891"
    keeps: ClassVar[str] = (
        "on the device, everything of the heads that retrieve; of the others sinks, newest tokens and one for the rest"
    )

    heads: str = setting("", "file of head scores; those saved for the model if none is named")
    echo: float = setting(0.01, "share of the KV heads that retrieve by their echo score")
    induction: float = setting(0.14, "share of the KV heads that retrieve by their induction score")
    sink: int = setting(4, "first tokens that the other heads keep")
    window: int = setting(4000, "newest tokens that the other heads keep, at least")
    share: float = setting(0.2, "the other heads keep this share of all tokens at the end of a prompt, if that is more")
    kv_heads: tuple[tuple[int, ...], ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("echo", "induction", "share"):
            check_range(name, getattr(self, name), 0, 1)
        check_count("sink", self.sink, 0)
        check_count("window", self.window, 2)
        for head in chain.from_iterable(self.kv_heads or ()):
            check_count("kv_heads", head, 0)
        self._others()

    def for_model(self, model: nn.Module) -> "RazorAttention":
        """The same with the retrieval heads of this model.

        Raises:
            NotCalibratedError: No file is named, and none is saved for it.
            SettingsError: The file is not of this model, or `kv_heads` are not.
        """
        if self.kv_heads is not None:
            return self
        identity = ModelIdentity.of(model)
        path = Path(self.heads).expanduser() if self.heads else HeadScores.find(identity)
        if path is None:
            raise NotCalibratedError(
                "RazorAttention needs to know which heads of the model retrieve, and that was not measured yet: call "
                "louiskv.score_heads(model) once; it is saved and found again."
            )
        scores = HeadScores.load(path)
        scores.check_model(identity, f"heads={path}")
        return replace(self, heads="", kv_heads=scores.best(self.echo, self.induction))

    def at_budget(self, budget: int) -> Self:
        """With so many tokens in the heads that do not retrieve; those that do keep everything."""
        return replace(self, window=budget - self.sink, share=0.0)

    def layer(self, layer_index: int, impl: str | None = None) -> KVLayer:
        """Full attention for the retrieval heads, eviction for the others."""
        if self.kv_heads is None:
            raise NotCalibratedError("RazorAttention has no retrieval heads yet: attach it to a model.")
        if layer_index >= len(self.kv_heads):
            raise SettingsError(f"kv_heads names {len(self.kv_heads)} layers, but the model has more.")
        heads = self.kv_heads[layer_index]
        others = self._others().layer(layer_index, impl)
        return SplitLayer(heads, FullLayer(impl), others, impl) if heads else others

    def footprint(self, layer_index: int, shape: LayerShape, num_tokens: int) -> Footprint:
        """By the number of its retrieval heads; by the mean number while they are not known."""
        share = min(1.0, self.echo + self.induction)
        if self.kv_heads is not None:
            share = len(self.kv_heads[layer_index]) / shape.num_kv_heads
        others = self._others().footprint(layer_index, shape, num_tokens).resident
        resident = share * num_tokens * shape.token_bytes + (1 - share) * others
        return Footprint(resident=math.ceil(resident), index=0, host=0, retrieval=0)

    def _others(self) -> Eviction:
        budget = self.sink + self.window
        return Eviction(budget=budget, sink=self.sink, share=self.share, importance=Recency(), merging=Compensation())
