"""LouisKV: retrieve at semantic boundaries only, in units that fit attention (arXiv 2510.11292)."""

from dataclasses import dataclass
from typing import ClassVar

from louiskv.methods.base import setting
from louiskv.methods.calibrated import Calibrated
from louiskv.methods.retrieval import Retrieval
from louiskv.triggers import Cosine
from louiskv.units.clusters import Clusters
from louiskv.units.segments import Segments
from louiskv.units.summaries import MeanKey


@dataclass(frozen=True, kw_only=True)
class LouisKV(Calibrated):
    """Clusters of the prompt, segments of the output, retrieved when the query turns away from the one before."""

    by_neighbours: ClassVar[bool] = True
    paper: ClassVar[str] = "LouisKV, arXiv 2510.11292"
    keeps: ClassVar[str] = "everything on the host; sinks, retrieved units, window and centroids on the device"

    budget: int = setting(1024, "tokens a KV head attends to exactly, sinks and window included")
    sink: int = setting(16, "first tokens, always resident")
    window: int = setting(64, "newest tokens, always resident")
    tau: float | tuple[float, ...] = setting(
        0.9, "retrieve when the cosine of neighbouring queries falls under this; a tuple has one for each layer"
    )
    calibration: str = setting("", "file of `louiskv calibrate`: a tau for each layer in the place of tau")
    unit_size: int = setting(16, "mean tokens of a prompt cluster")
    min_segment: int = setting(4, "fewest tokens between two boundaries of the output")
    max_segment: int = setting(64, "tokens at which an output segment is closed without a boundary")
    dense_layers: int = setting(2, "first layers that keep everything on the device")
    iterations: int = setting(5, "passes of k-means")
    chunk_size: int = setting(8192, "prompt tokens clustered among themselves")

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

    @property
    def compared(self) -> str:
        """The cosine to the query before."""
        return "the cosine of neighbouring queries"

    def parts(self) -> Retrieval:
        """Clusters, segments, centroids and the cosine of neighbouring queries."""
        return Retrieval(
            budget=self.budget,
            sink=self.sink,
            window=self.window,
            units=Clusters(self.unit_size, self.iterations, self.chunk_size),
            output=Segments(self.min_segment, self.max_segment),
            summary=MeanKey(),
            trigger=Cosine(self.tau),
            dense_layers=self.dense_layers,
        )
