"""Where what is resident no longer covers the attention that it could."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from louiskv.errors import check_choice, check_count, check_range
from louiskv.ops.ragged import may_hold
from louiskv.triggers.base import Estimate, Trigger, TriggerState, check_layers, of_layer, put_row, the_one
from louiskv.triggers.cosine import AnchorState
from louiskv.triggers.taus import Taus

YARDSTICKS = ("peak", "best")


@dataclass(frozen=True)
class Coverage(Trigger):
    """Retrieve for a KV head whose resident tokens no longer get the attention that they could.

    Coverage is the share of the attention to all units that the resident tokens get, as the summaries estimate it. It
    fires where that falls under `rho` times a yardstick: the most it has been since the last selection ("peak"), or
    what as many tokens of the best units would get now ("best", which costs a selection at each step).

    Attributes:
        rho: Least share of the yardstick; a tuple has one for each layer of the model.
        guard: Where the cosine to the query of the last selection is at least this, nothing is estimated.
        cap: Most steps that a selection serves; None for any number.
        against: The yardstick.
    """

    rho: float | tuple[float, ...] = 0.9
    guard: float = 0.98
    cap: int | None = None
    against: str = "peak"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_layers("rho", self.rho, 0, 1)
        check_range("guard", self.guard, -1, 1)
        if self.cap is not None:
            check_count("cap", self.cap, 1)
        check_choice("against", self.against, YARDSTICKS)

    @property
    def gap(self) -> int | None:
        """The cap."""
        return self.cap

    def at_layer(self, layer_index: int) -> "Coverage":
        """With the rho of that layer."""
        return replace(self, rho=of_layer("rho", self.rho, layer_index))

    def start(self, impl: str | None = None) -> "CoverageState":
        """Begin to watch one layer."""
        return CoverageState(self, the_one("rho", self.rho), impl)


class CoverageState(TriggerState):
    """The query of the last selection, and the yardstick since then."""

    def __init__(self, settings: Coverage, rho: float, impl: str | None) -> None:
        self.settings, self.rhos = settings, Taus(rho)
        self.anchor = AnchorState(settings.guard, settings.cap, impl)
        self.peak: Tensor | None = None

    def fire(self, query: Tensor, num_kv_heads: int, estimate: Estimate | None = None) -> Tensor:
        """Fire for the KV heads whose coverage has fallen."""
        cosine, due = self.anchor.turned(query, num_kv_heads)
        rho = self.rhos.of(query)
        moved = ~(cosine >= self.settings.guard)
        fired = cosine.isnan() | due
        if estimate is not None and may_hold(moved & ~fired):
            fired = fired | self._uncovered(estimate, moved, rho)
        self.chosen(fired)
        return fired

    def _uncovered(self, estimate: Estimate, moved: Tensor, rho: Tensor) -> Tensor:
        """[B, Hkv] where the query has moved and the coverage is under a share [B] of its yardstick."""
        covered = estimate.coverage().view(moved.shape)
        if self.settings.against == "best":
            yardstick = estimate.best_coverage().view(moved.shape)
        else:
            peak = torch.zeros_like(covered) if self.peak is None else self.peak
            # That another one has moved must not change what this one remembers.
            self.peak = yardstick = torch.where(moved, peak.maximum(covered), peak)
        return moved & (covered < rho[:, None] * yardstick)

    def chosen(self, where: Tensor) -> None:
        """Begin anew where KV heads select."""
        self.anchor.chosen(where)
        if self.peak is not None:
            self.peak = self.peak.masked_fill(where, 0)

    def retrieved(self, where: Tensor, estimate: Estimate) -> None:
        """What it covers then is the first peak."""
        if self.settings.against == "peak":
            covered = estimate.coverage().view(where.shape)
            peak = torch.zeros_like(covered) if self.peak is None else self.peak
            self.peak = torch.where(where, covered, peak)

    def reset(self) -> None:
        """Forget all."""
        self.anchor.reset()
        self.peak = None

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        self.anchor.select_batch(index)
        self.rhos.select_batch(index)
        if self.peak is not None:
            self.peak = self.peak.index_select(0, index)

    def put(self, row: int, other: Self | None, other_row: int, batch_size: int) -> None:
        """Its anchor, its peak and its share of it."""
        self.rhos.put(row, None if other is None else other.rhos, other_row, batch_size)
        anchor, peak = (None, None) if other is None else (other.anchor, other.peak)
        self.anchor.put(row, anchor, other_row, batch_size)
        self.peak = put_row(self.peak, row, peak, other_row, batch_size, 0)
