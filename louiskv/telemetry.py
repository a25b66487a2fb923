"""Counters and timings of one layer, and the report of a whole cache."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from louiskv.counters import PHASES, Clock, CodingError, Count, Histogram, Series, Tally


@dataclass
class LayerTelemetry:
    """What one layer did.

    Attributes:
        fired: [steps, B, Hkv] where a decode step retrieved before it attended.
        ahead: [steps, B, Hkv] where it selected for the next one, if the trigger is late.
        similarity: [steps, B] cosine of neighbouring queries, if the trigger looks at it.
        selected: Tokens chosen by all retrievals, over all KV heads.
        missed: Those of them that were not resident.
        segments: Number of closed segments of each size.
        coding_error: How far off a pool of few bits is.
        clock: Seconds spent.
    """

    fired: Series = field(default_factory=Series)
    ahead: Series = field(default_factory=Series)
    similarity: Series = field(default_factory=Series)
    selected: Count = field(default_factory=Count)
    missed: Count = field(default_factory=Count)
    segments: Histogram = field(default_factory=Histogram)
    coding_error: CodingError = field(default_factory=CodingError)
    clock: Clock = field(default_factory=Clock)

    @classmethod
    def of_rows(cls, rows: Tensor) -> "LayerTelemetry":
        """Of a layer whose batch has rows that come and go: `rows` [B] says which hold a sequence."""
        return cls(fired=Tally(rows), ahead=Tally(rows), similarity=Tally(rows))

    def take_over(self, other: "LayerTelemetry") -> None:
        """Count also what another has counted; what selections choose is counted where tokens are moved."""
        for name in ("fired", "ahead", "similarity"):
            mine = getattr(self, name)
            if isinstance(mine, Tally):
                mine.take_over(getattr(other, name))
        for name in ("segments", "coding_error", "clock"):
            getattr(self, name).take_over(getattr(other, name))

    def reserve(self, num_steps: int) -> bool:
        """Make room for so many more steps; whether a series has moved for that."""
        moved = [series.reserve(num_steps) for series in (self.fired, self.ahead, self.similarity)]
        return any(moved)

    def begin_step(self) -> bool:
        """Make room for the step that begins; whether a series has moved for that."""
        moved = [series.begin_step() for series in (self.fired, self.ahead, self.similarity)]
        return any(moved)

    def record(
        self, fired: Tensor, ahead: Tensor | None = None, similarity: Tensor | None = None, impl: str | None = None
    ) -> None:
        """Add a step to the series; what is None is so at all steps."""
        others = ((self.ahead, ahead), (self.similarity, similarity))
        self.fired.append_beside(fired, [(series, value) for series, value in others if value is not None], impl)


@dataclass(frozen=True)
class Tier:
    """What lies in one place: tokens of KV heads (a token of a layer counts once for each KV head) and bytes."""

    tokens: int
    bytes: int

    def __add__(self, other: "Tier") -> "Tier":
        return Tier(self.tokens + other.tokens, self.bytes + other.bytes)


@dataclass(frozen=True)
class Tiers:
    """What one layer holds.

    Attributes:
        resident: Tokens on the device, and the bytes allocated for them.
        index: Units summarised on the device, and the bytes of the index.
        host: Tokens in the host pool, and its bytes.
        seen: All tokens taken in, and the bytes that full attention would hold of them on the device.
    """

    resident: Tier
    index: Tier
    host: Tier
    seen: Tier

    def __add__(self, other: "Tiers") -> "Tiers":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Tiers(*(mine + theirs for mine, theirs in pairs))


@dataclass(frozen=True)
class LayerReport:
    """The figures of one layer, all plain numbers.

    Attributes:
        layer: Index of the layer in the model.
        kind: Name of the layer's class.
        tiers: What it holds.
        steps: Decode steps.
        retrieval_rate: Share of (step, sequence, KV head) that retrieved before attending.
        ahead_rate: Share that selected for the next step instead, None if the trigger is not late.
        selected_tokens: Tokens chosen by all retrievals, over all KV heads.
        hit_rate: Share of them that were resident already, None without a selection.
        fetched_bytes: Bytes copied host to device.
        offloaded_bytes: Bytes copied device to host.
        similarity: Mean, minimum and quartiles of the cosine of neighbouring queries, None if not looked at.
        segment_sizes: Closed segments of each size.
        coding_error: Norm of what the keys and the values that were offloaded are off in the pool, by their own; None
            if they are kept as they are.
        seconds: Time of each phase.
    """

    layer: int
    kind: str
    tiers: Tiers
    steps: int
    retrieval_rate: float
    ahead_rate: float | None
    selected_tokens: int
    hit_rate: float | None
    fetched_bytes: int
    offloaded_bytes: int
    similarity: dict[str, float] | None
    segment_sizes: dict[int, int]
    coding_error: dict[str, float] | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class Report:
    """What a cache did: the figures of each managed layer and their sums.

    Attributes:
        method: Name of the method.
        settings: Its settings.
        prompt_tokens: Tokens taken in as prompts, padding not counted, over the batch.
        output_tokens: Tokens taken in one by one, over the batch.
        unmanaged_bytes: Bytes held by the model's other cache layers (sliding windows and the like).
        layers: Figures of each managed layer.
        ranks: Processes whose figures these are together, where a model is split over several.
    """

    method: str
    settings: dict[str, Any]
    prompt_tokens: int
    output_tokens: int
    unmanaged_bytes: int
    layers: list[LayerReport]
    ranks: int = 1

    @property
    def device_bytes(self) -> int:
        """Bytes on the device: resident sets and index of all managed layers."""
        return sum(layer.tiers.resident.bytes + layer.tiers.index.bytes for layer in self.layers)

    @property
    def host_bytes(self) -> int:
        """Bytes in the host pools."""
        return sum(layer.tiers.host.bytes for layer in self.layers)

    @property
    def full_bytes(self) -> int:
        """Bytes of keys and values that full attention would hold on the device."""
        return sum(layer.tiers.seen.bytes for layer in self.layers)

    @property
    def device_share(self) -> float:
        """Device bytes as a share of full attention's."""
        return self.device_bytes / self.full_bytes if self.full_bytes else 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each phase, summed over the layers."""
        return {phase: sum(layer.seconds[phase] for layer in self.layers) for phase in PHASES}

    @property
    def ahead_rate(self) -> float | None:
        """Mean over the layers whose trigger is late of the share that selected for the next step; None without any."""
        rates = [layer.ahead_rate for layer in self.layers if layer.ahead_rate is not None]
        return sum(rates) / len(rates) if rates else None

    @property
    def coding_error(self) -> dict[str, float] | None:
        """Mean over the layers whose pool has few bits; None if there is none."""
        errors = [layer.coding_error for layer in self.layers if layer.coding_error is not None]
        return {part: sum(error[part] for error in errors) / len(errors) for part in errors[0]} if errors else None

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain data."""
        sums = {
            name: getattr(self, name)
            for name in ("device_bytes", "host_bytes", "full_bytes", "device_share", "seconds")
        }
        sums["fetched_bytes"] = sum(layer.fetched_bytes for layer in self.layers)
        sums["offloaded_bytes"] = sum(layer.offloaded_bytes for layer in self.layers)
        sums["retrievals_per_step"], sums["ahead_rate"] = self._mean_rate(), self.ahead_rate
        if self.coding_error is not None:
            sums["coding_error"] = self.coding_error
        return {**{k: v for k, v in asdict(self).items() if k != "layers"}, **sums, "layers": asdict(self)["layers"]}

    def to_json(self, indent: int | None = None) -> str:
        """All figures as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        lines = [
            f"{self.method}({settings})",
            f"  tokens      {self.prompt_tokens} prompt + {self.output_tokens} output",
        ]
        if self.ranks > 1:
            lines.append(f"  ranks       {self.ranks}, summed")
        resident = self._sum("resident") + self._sum("index")
        lines.append(
            f"  device      {format_bytes(resident.bytes)}: {self._sum('resident').tokens} tokens of KV heads, "
            f"{self._sum('index').tokens} units ({format_bytes(self._sum('index').bytes)}); "
            f"{self.device_share:.1%} of full attention's {format_bytes(self.full_bytes)}"
        )
        lines.append(f"  host        {format_bytes(self.host_bytes)}: {self._sum('host').tokens} tokens of KV heads")
        if self.unmanaged_bytes:
            lines.append(f"  unmanaged   {format_bytes(self.unmanaged_bytes)} in the model's sliding or linear layers")
        fetched, offloaded = (
            sum(getattr(layer, f"{way}ed_bytes") for layer in self.layers) for way in ("fetch", "offload")
        )
        per_token = (
            f" ({format_bytes(fetched / self.output_tokens)} for each output token)" if self.output_tokens else ""
        )
        lines.append(f"  moved       {format_bytes(fetched)} fetched{per_token}, {format_bytes(offloaded)} offloaded")
        if self.coding_error is not None:
            parts = ", ".join(f"{part} {error:.2%}" for part, error in self.coding_error.items())
            lines.append(f"  coding      off by {parts}, mean of the layers")
        retrieving = [layer for layer in self.layers if layer.hit_rate is not None]
        if retrieving:
            rates = [layer.retrieval_rate for layer in retrieving]
            hits = [layer.hit_rate for layer in retrieving if layer.hit_rate is not None]
            ahead = "" if self.ahead_rate is None else f"{self.ahead_rate:.2f} for the next step, "
            lines.append(
                f"  retrievals  {self._mean_rate():.2f} per step and layer ({min(rates):.2f} to {max(rates):.2f}), "
                f"{ahead}hit rate {sum(hits) / len(hits):.2f}"
            )
            lines.append(f"  segments    {self._segments()}")
        seen = [layer.similarity for layer in self.layers if layer.similarity]
        if seen:
            medians = [figures["median"] for figures in seen]
            lines.append(
                f"  cosine      median of neighbouring queries {min(medians):.2f} to {max(medians):.2f} over the layers"
            )
        lines.append("  seconds     " + ", ".join(f"{phase} {value:.2f}" for phase, value in self.seconds.items()))
        return "\n".join(lines)

    def _mean_rate(self) -> float:
        rates = [layer.retrieval_rate for layer in self.layers if layer.hit_rate is not None]
        return sum(rates) / len(rates) if rates else 0.0

    def _segments(self) -> str:
        total = sum(number for layer in self.layers for number in layer.segment_sizes.values())
        tokens = sum(size * number for layer in self.layers for size, number in layer.segment_sizes.items())
        return f"{total} closed, {tokens / total:.1f} tokens each" if total else "none closed"

    def _sum(self, tier: str) -> Tier:
        return sum((getattr(layer.tiers, tier) for layer in self.layers), Tier(0, 0))


def format_bytes(num_bytes: float) -> str:
    """A number of bytes as people read it: 1536 -> 1.5 KiB."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"
