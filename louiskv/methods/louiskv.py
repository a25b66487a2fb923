"""LouisKV: retrieve at semantic boundaries only, in units that fit attention (arXiv 2510.11292)."""

from dataclasses import dataclass
from typing import ClassVar

from louiskv.errors import SettingsError
from louiskv.methods.base import Footprint, KVLayer, LayerShape, Method, check_count, check_range, setting
from louiskv.methods.full import FullLayer
from louiskv.methods.retrieval import Parts, RetrievalLayer
from louiskv.triggers import Cosine
from louiskv.units.clusters import Clusters
from louiskv.units.segments import Segments


@dataclass(frozen=True, kw_only=True)
class LouisKV(Method):
    """Clusters of the prompt, segments of the output, retrieved when the query turns away from the one before."""

    paper: ClassVar[str] = "LouisKV, arXiv 2510.11292"
    keeps: ClassVar[str] = "everything on the host; sinks, retrieved units, window and centroids on the device"

    budget: int = setting(1024, "tokens a KV head attends to exactly, sinks and window included")
    sink: int = setting(16, "first tokens, always resident")
    window: int = setting(64, "newest tokens, always resident")
    tau: float = setting(0.9, "retrieve when the cosine of neighbouring queries falls under this")
    unit_size: int = setting(16, "mean tokens of a prompt cluster")
    min_segment: int = setting(4, "fewest tokens between two boundaries of the output")
    max_segment: int = setting(64, "tokens at which an output segment is closed without a boundary")
    dense_layers: int = setting(2, "first layers that keep everything on the device")
    iterations: int = setting(10, "passes of k-means")
    chunk_size: int = setting(8192, "prompt tokens clustered among themselves")

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("budget", "window", "unit_size", "min_segment", "iterations"):
            check_count(name, getattr(self, name), 1)
        for name in ("sink", "dense_layers"):
            check_count(name, getattr(self, name), 0)
        check_range("tau", self.tau, -1, 1)
        check_count("chunk_size", self.chunk_size, self.unit_size)
        check_count("max_segment", self.max_segment, self.min_segment)
        if self.budget <= self.sink + self.window:
            raise SettingsError(
                f"budget={self.budget} leaves no room to retrieve: it must be more than sink + window = "
                f"{self.sink} + {self.window} = {self.sink + self.window}. Raise the budget or lower the other two."
            )

    @classmethod
    def long_input(cls) -> "LouisKV":
        """The paper's settings for a long input and a short output (LongBench)."""
        return cls(sink=32, window=512, tau=0.85, budget=32 + 512 + 512)

    @classmethod
    def long_output(cls) -> "LouisKV":
        """The paper's settings for a short input and a long output (MATH500, GPQA, AIME)."""
        return cls(sink=500, window=128, tau=0.70, budget=500 + 128 + 1024)

    @classmethod
    def long_both(cls) -> "LouisKV":
        """The paper's settings for a long input and a long output (LongReason, RULER)."""
        return cls(sink=64, window=256, tau=0.70, budget=64 + 256 + 1024)

    def layer(self, layer_index: int, impl: str | None = None) -> KVLayer:
        """Full attention in the first layers, retrieval in the others."""
        if layer_index < self.dense_layers:
            return FullLayer(impl)
        return RetrievalLayer(self._parts(), impl)

    def footprint(self, layer_index: int, shape: LayerShape, num_tokens: int) -> Footprint:
        """Resident set and index on the device, the units on the host."""
        if layer_index < self.dense_layers:
            return Footprint(resident=num_tokens * shape.token_bytes, index=0, host=0, retrieval=0)
        in_units = max(0, num_tokens - self.sink - self.window)
        units = self._parts().clusters.num_units(in_units)
        return Footprint(
            resident=self.budget * shape.token_bytes,
            index=units * shape.num_kv_heads * (shape.key_dim * shape.item_size + 12),
            host=shape.pool_bytes(in_units),
            retrieval=min(in_units, self.budget - self.sink - self.window) * shape.token_bytes,
        )

    def _parts(self) -> Parts:
        return Parts(
            num_sinks=self.sink,
            window=self.window,
            num_retrieved=self.budget - self.sink - self.window,
            clusters=Clusters(self.unit_size, self.iterations, self.chunk_size),
            segments=Segments(self.min_segment, self.max_segment),
            trigger=Cosine(self.tau),
        )
