"""Eviction: what matters least is dropped for good, or merged into what is kept."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from louiskv.errors import SettingsError, check_count, check_multiple, check_part, check_range
from louiskv.importance import Importance, Recency
from louiskv.merging import Merging, NoMerging
from louiskv.methods.base import Footprint, KVLayer, LayerShape, Method, setting
from louiskv.methods.eviction_layer import EvictionLayer
from louiskv.methods.eviction_parts import EvictionParts
from louiskv.methods.full import FullLayer


@dataclass(frozen=True, kw_only=True)
class Eviction(Method):
    """Any combination of importance and merging; every eviction method is one. As it stands it is StreamingLLM."""

    paper: ClassVar[str] = "the parts of several papers"
    keeps: ClassVar[str] = "the tokens that matter most, on the device; the others are lost"

    budget: int = setting(1024, "tokens that a KV head keeps, and attends to")
    sink: int = setting(4, "first tokens, always kept")
    window: int = setting(1, "newest tokens, kept while tokens come one by one")
    prompt_window: int | None = setting(None, "newest tokens kept when a prompt is taken in; none for the window")
    share: float = setting(0.0, "a KV head keeps this share of all tokens at the end of a prompt, if that is more")
    importance: Importance = field(default_factory=Recency, metadata={"help": "which token matters least"})
    merging: Merging = field(default_factory=NoMerging, metadata={"help": "what becomes of dropped tokens"})
    dense_layers: int = setting(0, "first layers that keep everything")

    def __post_init__(self) -> None:
        """Check the settings."""
        check_part("importance", self.importance, Importance)
        check_part("merging", self.merging, Merging)
        check_count("budget", self.budget, 1)
        check_count("window", self.window, 1)
        for name in ("sink", "dense_layers"):
            check_count(name, getattr(self, name), 0)
        if self.prompt_window is not None:
            check_count("prompt_window", self.prompt_window, 1)
        check_range("share", self.share, 0, 1)
        page_size = self.importance.page_size
        check_multiple("budget", self.budget, "page_size", page_size)
        check_multiple("sink", self.sink, "page_size", page_size)
        newest = -(-max(self.window, self.prompt_window or 0) // page_size) * page_size
        least = self.sink + newest + (1 if page_size == 1 else 2 * page_size)
        if self.budget < least:
            raise SettingsError(
                f"budget={self.budget} leaves nothing that may be dropped: with sink={self.sink} and the newest "
                f"{newest} tokens kept, give at least {least}."
            )

    def layer(self, layer_index: int, impl: str | None = None) -> KVLayer:
        """Full attention in the first layers, eviction in the others."""
        return FullLayer(impl) if layer_index < self.dense_layers else EvictionLayer(self._parts(), impl)

    def footprint(self, layer_index: int, shape: LayerShape, num_tokens: int) -> Footprint:
        """The slots, whatever the length."""
        slots = num_tokens
        if layer_index >= self.dense_layers:
            slots = max(self.budget, self.sink + math.ceil(self.share * num_tokens)) + self.merging.compensates
        return Footprint(resident=slots * shape.token_bytes, index=0, host=0, retrieval=0)

    def _parts(self) -> EvictionParts:
        return EvictionParts(
            budget=self.budget,
            share=self.share,
            num_sinks=self.sink,
            window=self.window,
            prompt_window=self.window if self.prompt_window is None else self.prompt_window,
            importance=self.importance,
            merging=self.merging,
        )
