"""LouisKV+: LouisKV's units, with what this project adds (docs/methods.md)."""

from dataclasses import dataclass
from typing import ClassVar

from louiskv.methods.base import Assembled, setting
from louiskv.methods.retrieval import Retrieval
from louiskv.triggers import Coverage
from louiskv.units.clusters import Clusters
from louiskv.units.summaries import Sketch

# Most tokens of the output that are clustered among themselves.
MAX_RUN = 32


@dataclass(frozen=True, kw_only=True)
class LouisKVPlus(Assembled):
    """Tokens chosen inside the best clusters when coverage falls, and the rest attended to by estimate."""

    paper: ClassVar[str] = "this project, after LouisKV, RetroInfer and FIER"
    keeps: ClassVar[str] = "everything on the host; on the device sinks, retrieved tokens, window and a sketch of all"

    budget: int = setting(1024, "tokens a KV head attends to exactly, sinks and window included")
    sink: int = setting(16, "first tokens, always resident")
    window: int = setting(64, "newest tokens, always resident")
    rho: float = setting(0.9, "retrieve when coverage falls under this share of the most since the last time")
    hold: float = setting(2.0, "nats by which another token must beat a resident one, to take its place")
    unit_size: int = setting(16, "mean tokens of a cluster")
    oversample: int = setting(4, "tokens of the best clusters that are looked at for each that is taken")
    dense_layers: int = setting(2, "first layers that keep everything on the device")
    iterations: int = setting(10, "passes of k-means")
    chunk_size: int = setting(8192, "prompt tokens clustered among themselves")

    def parts(self) -> Retrieval:
        """Clusters, sketches, coverage, and the estimate of the rest."""
        # Half a small window stays when a run leaves it.
        output_size = max(1, min(MAX_RUN, self.window // 2))
        units = Clusters(self.unit_size, self.iterations, self.chunk_size, output_size=output_size)
        return Retrieval(
            budget=self.budget,
            sink=self.sink,
            window=self.window,
            units=units,
            output=units,
            summary=Sketch(),
            trigger=Coverage(self.rho),
            hold=self.hold,
            oversample=self.oversample,
            estimate=True,
            dense_layers=self.dense_layers,
        )
