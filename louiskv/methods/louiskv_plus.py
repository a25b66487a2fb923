"""LouisKV+: LouisKV's clusters, with what this project adds (docs/methods.md)."""

from dataclasses import dataclass
from typing import ClassVar

from louiskv.errors import check_choice, check_count, check_range
from louiskv.methods.base import setting
from louiskv.methods.calibrated import Calibrated
from louiskv.methods.parts import BUNDLE_SIZE
from louiskv.methods.retrieval import Retrieval
from louiskv.triggers import AnchorCosine, Cosine, Coverage, Every, Late, Trigger
from louiskv.units.clusters import Clusters
from louiskv.units.summaries import Sketch

# Most tokens of the output that are clustered among themselves: a sudden end of a topic is soon in units of its own.
MAX_RUN = 32

# What may say when to select, by name, and what it compares with tau.
TRIGGERS = {
    "every": "",
    "anchor": "the cosine to the query of the last selection",
    "cosine": "the cosine of neighbouring queries of a KV head",
    "coverage": "the coverage as a share of its peak",
}


@dataclass(frozen=True, kw_only=True)
class LouisKVPlus(Calibrated):
    """Single tokens of the best clusters, fetched where they beat what is resident; the rest by estimate."""

    paper: ClassVar[str] = "this project, after LouisKV, RetroInfer and FIER"
    keeps: ClassVar[str] = "everything on the host; on the device sinks, retrieved tokens, window and a sketch of all"

    budget: int = setting(1024, "tokens a KV head attends to exactly, sinks and window included")
    sink: int = setting(16, "first tokens, always resident")
    window: int = setting(64, "newest tokens, always resident")
    hold: float = setting(4.0, "nats by which another token must beat a resident one, to take its place")
    oversample: int = setting(2, "tokens of the best clusters that are looked at for each that is taken")
    trigger: str = setting("every", f"when a KV head selects anew: {', '.join(TRIGGERS)}")
    tau: float | tuple[float, ...] = setting(
        0.9, "select where what the trigger looks at falls under this; a tuple has one for each layer"
    )
    calibration: str = setting("", "file of `louiskv calibrate`: a tau for each layer in the place of tau")
    cap: int | None = setting(None, "most steps that a selection serves; none for any number")
    ahead: float | None = setting(
        None, "select for the next step, and before attending only where coverage is under this share of its peak"
    )
    unit_size: int = setting(16, "mean tokens of a cluster of the prompt; of the output half as many")
    max_looked: int = setting(16384, "clusters whose summaries are read at the most; of more, those of best bundles")
    max_estimated: int | None = setting(None, "of what is read, estimate only so many with the most attention")
    pool_bits: int | None = setting(None, "bits of a number in the store, 8 or 4; none keeps keys and values exact")
    dense_layers: int = setting(2, "first layers that keep everything on the device")
    iterations: int = setting(5, "passes of k-means")
    chunk_size: int = setting(8192, "prompt tokens clustered among themselves")

    def __post_init__(self) -> None:
        """Check the settings, as the parts do."""
        check_choice("trigger", self.trigger, tuple(TRIGGERS))
        if self.ahead is not None:
            check_range("ahead", self.ahead, 0, 1)
        check_count("max_looked", self.max_looked, 1)
        super().__post_init__()

    @property
    def compared(self) -> str:
        """By the trigger; empty where it compares nothing."""
        return TRIGGERS[self.trigger]

    @property
    def least_tau(self) -> float:
        """Of a cosine, or of a share."""
        return 0.0 if self.trigger == "coverage" else -1.0

    def parts(self) -> Retrieval:
        """Clusters, sketches, a trigger, and the estimate of the rest."""
        # Half a small window stays when a run leaves it.
        output_size = max(1, min(MAX_RUN, self.window // 2))
        output_unit = min(max(1, self.unit_size // 2), output_size)
        return Retrieval(
            budget=self.budget,
            sink=self.sink,
            window=self.window,
            units=Clusters(self.unit_size, self.iterations, self.chunk_size),
            output=Clusters(output_unit, self.iterations, self.chunk_size, output_size=output_size),
            summary=Sketch(),
            reduce="share_mean",
            trigger=self._trigger(),
            hold=self.hold,
            oversample=self.oversample,
            estimate=True,
            max_estimated=self.max_estimated,
            max_looked=max(self.max_looked, self.budget + 2 * BUNDLE_SIZE),
            pool_bits=self.pool_bits,
            dense_layers=self.dense_layers,
        )

    def _trigger(self) -> Trigger:
        when: Trigger = Every()
        if self.trigger == "anchor":
            when = AnchorCosine(self.tau, cap=self.cap)
        elif self.trigger == "cosine":
            when = Cosine(self.tau, per_head=True)
        elif self.trigger == "coverage":
            when = Coverage(self.tau, cap=self.cap)
        return when if self.ahead is None else Late(correct=Coverage(self.ahead), when=when)
