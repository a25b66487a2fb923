"""Retrieval: units x summary x score x trigger x store, put together as one likes."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from louiskv.errors import SettingsError, check_choice, check_count, check_multiple, check_part, check_range
from louiskv.methods.base import Footprint, KVLayer, LayerShape, Method, setting
from louiskv.methods.full import FullLayer
from louiskv.methods.parts import BUNDLE_SIZE, Parts
from louiskv.methods.per_query_head import PerQueryHead
from louiskv.methods.retrieval_layer import RetrievalLayer
from louiskv.ops.selection import REDUCES
from louiskv.store.coding import POOL_BITS, state_size
from louiskv.triggers import Cosine, Trigger
from louiskv.units.base import Units
from louiskv.units.clusters import Clusters
from louiskv.units.index import TABLE_BYTES
from louiskv.units.pages import Pages
from louiskv.units.segments import Segments
from louiskv.units.summaries import MeanKey, OneBit, Sketch, Summary
from louiskv.units.tokens import Tokens

STORES = ("host", "device")


@dataclass(frozen=True, kw_only=True)
class Retrieval(Method):
    """Any combination of parts; every retrieval method is one, and so is every cell of an ablation grid.

    As it stands it is LouisKV. `Retrieval(units=Pages(16), summary=MinMax(), trigger=Every(4))` has the pages and
    scores of Quest, selects at every fourth step, and keeps everything in host memory.

    A query group agrees on what its KV head retrieves, unless `per_query_head` is set: then each query head selects for
    itself, and resident set, index, pool and traffic are what that costs.
    """

    paper: ClassVar[str] = "the parts of several papers"
    keeps: ClassVar[str] = "everything in the store; sinks, retrieved units, window and index on the device"

    budget: int = setting(1024, "tokens a KV head attends to exactly, sinks and window included")
    sink: int = setting(16, "first tokens, always resident")
    window: int = setting(64, "newest tokens, always resident")
    prompt_window: int | None = setting(
        None, "newest tokens of a prompt that stay in the window; none for all that fit"
    )
    units: Units = field(default_factory=Clusters, metadata={"help": "how the tokens of a prompt are grouped"})
    output: Units | None = field(
        default=None, metadata={"help": "how those of the output are; none for segments beside clusters, else the same"}
    )
    summary: Summary = field(default_factory=MeanKey, metadata={"help": "what the index keeps of a unit"})
    reduce: str = setting("softmax_mean", "how the query heads of a group agree on a score")
    scaled: bool = setting(True, "whether scores are scaled like logits")
    trigger: Trigger = field(default_factory=Cosine, metadata={"help": "when to retrieve"})
    store: str = setting("host", "where all keys and values lie: host or device")
    pool_bits: int | None = setting(
        None, "bits of a number in the store, 8 or 4, beside a scale for each token; none for numbers as they are"
    )
    recent_units: int = setting(0, "newest units that every selection takes")
    dense_layers: int = setting(2, "first layers that keep everything on the device")
    hold: float = setting(0.0, "nats by which another must beat what is resident, to take its place")
    oversample: int = setting(
        0, "tokens of the best units that are looked at for each that is taken; 0 takes units whole"
    )
    estimate: bool = setting(False, "whether what is not resident is attended to by its summaries")
    max_estimated: int | None = setting(None, "units that are estimated at the most; none for all")
    max_looked: int | None = setting(
        None, "units whose summaries are read at the most; of more, those of the best bundles; none for all"
    )
    per_query_head: bool = setting(False, "whether each query head keeps a copy of keys and values, to select alone")

    def __post_init__(self) -> None:
        """Check the settings."""
        check_part("units", self.units, Units)
        if self.output is not None:
            check_part("output", self.output, Units)
        check_part("summary", self.summary, Summary)
        check_part("trigger", self.trigger, Trigger)
        for name in ("budget", "window"):
            check_count(name, getattr(self, name), 1)
        for name in ("sink", "recent_units", "dense_layers"):
            check_count(name, getattr(self, name), 0)
        if self.prompt_window is not None:
            check_count("prompt_window", self.prompt_window, 0)
            if self.prompt_window > self.window:
                raise SettingsError(
                    f"prompt_window={self.prompt_window} is not allowed: it is a part of the window, so give at most "
                    f"{self.window}, or raise window."
                )
        check_choice("reduce", self.reduce, REDUCES)
        check_choice("store", self.store, STORES)
        check_choice("pool_bits", self.pool_bits, POOL_BITS)
        if isinstance(self.units, Pages):
            check_multiple("budget", self.budget, "page_size", self.units.page_size)
        longest = self._output.runs(self.window).longest
        if longest > self.window:
            raise SettingsError(
                f"window={self.window} is not allowed: {longest} tokens of the output become units together "
                f"({self._output}), so give at least {longest}."
            )
        if self.window < self.units.aligned_by:
            raise SettingsError(
                f"window={self.window} is not allowed: what is not a whole unit yet stays in the window, and "
                f"units={self.units} are cut at multiples of {self.units.aligned_by}, so give at least that."
            )
        # Beside the sinks and the window: the newest units, and one to choose.
        recent = self.recent_units * self._taken_by
        least = self.sink + self.window + recent + self._taken_by
        if self.budget < least:
            raise SettingsError(
                f"budget={self.budget} leaves no room to retrieve: it must be at least {least}, for sink={self.sink}, "
                f"window={self.window + recent} and {self._taken_by} to choose. Raise the budget or lower the others."
            )
        self._check_sketch()
        if isinstance(self.summary, OneBit):
            wanted = Tokens(self.summary.group_size)
            if self.units != wanted or self._output != wanted:
                raise SettingsError(
                    f"{self.summary} summarises single tokens in groups: with units={self.units} it needs "
                    f"units={wanted}, for the output as well."
                )

    def _check_sketch(self) -> None:
        check_range("hold", self.hold, 0, 100)
        check_count("oversample", self.oversample, 0)
        if self.max_estimated is not None:
            check_count("max_estimated", self.max_estimated, 1)
        if self.max_looked is not None:
            # Two bundles more, since one may not fit and the last of a row need not be full.
            check_count("max_looked", self.max_looked, self._parts().num_retrieved + 2 * BUNDLE_SIZE)
        if not self.oversample and not self.estimate and self.max_looked is None:
            return
        sketch = self.summary if isinstance(self.summary, Sketch) else None
        if sketch is None or (self.oversample and not sketch.token_bits):
            raise SettingsError(
                f"oversample={self.oversample}, estimate={self.estimate} and max_looked={self.max_looked} need what "
                f"{self.summary} does not keep: give summary=Sketch(token_bits={self.oversample > 0}), or "
                "oversample=0, estimate=False and max_looked=None."
            )
        if not self.scaled:
            raise SettingsError(
                "scaled=False is not allowed with oversample, estimate or max_looked: they compare with logits."
            )
        if self.oversample and self.recent_units:
            raise SettingsError(
                f"recent_units={self.recent_units} takes whole units, and oversample={self.oversample} single tokens: "
                "set one of them to 0."
            )
        if self.max_looked is not None and self.recent_units:
            raise SettingsError(
                f"recent_units={self.recent_units} takes units that max_looked={self.max_looked} may not look at: "
                "set recent_units=0 or max_looked=None."
            )

    def layer(self, layer_index: int, impl: str | None = None) -> KVLayer:
        """Full attention in the first layers, retrieval in the others."""
        if layer_index < self.dense_layers:
            return FullLayer(impl)
        layer = RetrievalLayer(replace(self._parts(), trigger=self.trigger.at_layer(layer_index)), impl)
        return PerQueryHead(layer, impl) if self.per_query_head else layer

    def footprint(self, layer_index: int, shape: LayerShape, num_tokens: int) -> Footprint:
        """Resident set and index on the device, the units in the store."""
        if layer_index < self.dense_layers:
            return Footprint(resident=num_tokens * shape.token_bytes, index=0, host=0, retrieval=0)
        if self.per_query_head:
            shape = replace(shape, num_kv_heads=shape.num_kv_heads * shape.group_size, group_size=1)
        parts = self._parts()
        in_units = max(0, num_tokens - self.sink - self.window)
        pool, on_host = shape.pool_bytes(in_units, self.pool_bits), self.store == "host"
        coding = shape.num_kv_heads * state_size(self.pool_bits, shape.key_dim)
        slots = self.sink + self.window + parts.num_retrieved + parts.num_spare
        num_units = self.units.num_units(in_units)
        num_bundles = 0 if self.max_looked is None else -(-num_units // BUNDLE_SIZE)
        summaries = self.summary.unit_bytes(shape.key_dim, shape.value_dim, shape.item_size) * (num_units + num_bundles)
        details = self.summary.token_bytes(shape.key_dim) * in_units
        return Footprint(
            resident=slots * shape.token_bytes + coding + (0 if on_host else pool),
            index=round(shape.num_kv_heads * (summaries + details + num_units * TABLE_BYTES)),
            host=pool if on_host else 0,
            retrieval=min(in_units, parts.num_retrieved) * shape.coded_bytes(self.pool_bits) if on_host else 0,
        )

    @property
    def _output(self) -> Units:
        if self.output is not None:
            return self.output
        return Segments() if isinstance(self.units, Clusters) else self.units

    @property
    def _taken_by(self) -> int:
        return math.gcd(self.units.taken_by, self._output.taken_by)

    def _parts(self) -> Parts:
        gap = self.trigger.gap
        # A window that has just given up a run leaves room to retrieve, if the next selection comes before it is full.
        least = self.window if gap is None else self.window - self._output.runs(self.window).longest + gap
        room = self.budget - self.sink - min(self.window, least)
        return Parts(
            budget=self.budget,
            num_sinks=self.sink,
            window=self.window,
            prompt_window=self.window if self.prompt_window is None else self.prompt_window,
            num_retrieved=room // self._taken_by * self._taken_by,
            # What the next selection takes in any case need not be dropped before and fetched again.
            num_spare=self._output.runs(self.window).longest if self.recent_units and gap == 1 else 0,
            taken_by=self._taken_by,
            units=self.units,
            output=self._output,
            summary=self.summary,
            reduce=self.reduce,
            scaled=self.scaled,
            trigger=self.trigger,
            store=self.store,
            pool_bits=self.pool_bits,
            recent_units=self.recent_units,
            hold=self.hold,
            oversample=self.oversample,
            estimate=self.estimate,
            max_estimated=self.max_estimated,
            max_looked=self.max_looked,
        )
