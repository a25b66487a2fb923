"""ClusterKV: clusters by the angle between keys, recalled at every step (arXiv 2412.03213, DAC 2025)."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from louiskv.errors import check_count, check_multiple
from louiskv.methods.base import Assembled, setting
from louiskv.methods.retrieval import Retrieval
from louiskv.triggers import Every
from louiskv.units.clusters import Clusters
from louiskv.units.summaries import MeanKey


@dataclass(frozen=True, kw_only=True)
class ClusterKV(Assembled):
    """Clusters of the whole prompt; the output is clustered too, a few hundred tokens at a time."""

    paper: ClassVar[str] = "ClusterKV, arXiv 2412.03213"
    keeps: ClassVar[str] = (
        "everything on the host; sinks, recalled clusters, unclustered output and centroids on the device"
    )

    budget: int = setting(1024, "tokens a KV head attends to exactly, sinks and window included")
    sink: int = setting(16, "first tokens, always resident")
    unit_size: int = setting(80, "mean tokens of a cluster")
    output_size: int = setting(320, "tokens of the output that are clustered among themselves")
    iterations: int = setting(20, "passes of k-means")
    chunk_size: int = setting(32768, "prompt tokens clustered among themselves")
    dense_layers: int = setting(2, "first layers that keep everything on the device")

    def at_budget(self, budget: int) -> Self:
        """As every method; what waits to be clustered takes half of it at the most."""
        fits = max(self.unit_size, budget // 2 // self.unit_size * self.unit_size)
        return super(ClusterKV, replace(self, output_size=min(self.output_size, fits))).at_budget(budget)

    def parts(self) -> Retrieval:
        """Cosine clusters from a random start, centroids, every step."""
        check_count("unit_size", self.unit_size, 1)
        check_count("output_size", self.output_size, 1)
        check_multiple("output_size", self.output_size, "unit_size", self.unit_size)
        clusters = Clusters(
            self.unit_size,
            self.iterations,
            self.chunk_size,
            metric="cosine",
            start="random",
            output_size=self.output_size,
        )
        return Retrieval(
            budget=self.budget,
            sink=self.sink,
            window=self.output_size,
            prompt_window=0,
            units=clusters,
            output=clusters,
            summary=MeanKey(),
            trigger=Every(1),
            dense_layers=self.dense_layers,
        )
