"""Where the query has turned: away from the one before, or from the one that last selected."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from louiskv.errors import check_count
from louiskv.ops.turning import query_cosines, turned
from louiskv.triggers.base import Estimate, Trigger, TriggerState, check_layers, of_layer, put_row, the_one
from louiskv.triggers.taus import Taus


@dataclass(frozen=True)
class Cosine(Trigger):
    """Retrieve where the query has turned away from the one before: the semantic boundary of LouisKV.

    `r = mean over query heads of cos(q_t, q_{t-1})` for each sequence; fires when `r < tau` (section 4.1 of arXiv
    2510.11292), and at the first decode step.

    Attributes:
        tau: The least cosine that counts as the same segment; a tuple has one for each layer of the model.
        per_head: Take the mean over each query group, and fire for its KV head alone.
    """

    tau: float | tuple[float, ...] = 0.9
    per_head: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        check_layers("tau", self.tau, -1, 1)

    def at_layer(self, layer_index: int) -> "Cosine":
        """With the tau of that layer."""
        return replace(self, tau=of_layer("tau", self.tau, layer_index))

    def start(self, impl: str | None = None) -> "CosineState":
        """Begin to watch one layer.

        Raises:
            SettingsError: There is a tau for each layer, and it is not known which this is.
        """
        return CosineState(the_one("tau", self.tau), self.per_head, impl)


class CosineState(TriggerState):
    """The last query of each head."""

    def __init__(self, tau: float, per_head: bool, impl: str | None) -> None:
        self.taus, self.per_head, self.impl = Taus(tau), per_head, impl
        self.previous: Tensor | None = None

    def fire(self, query: Tensor, num_kv_heads: int, estimate: Estimate | None = None) -> Tensor:
        """Fire for the sequences, or the KV heads of them, whose query has turned."""
        if self.previous is None:
            self.previous = torch.full(query.shape, torch.nan, dtype=query.dtype, device=query.device)
        if self.similarity is None or len(self.similarity) != len(query):
            self.similarity = torch.empty(len(query), dtype=torch.float32, device=query.device)
        tau = self.taus.of(query)
        # Without a query before, the cosine is NaN, and that fires.
        fired = turned(
            query,
            self.previous,
            self.similarity,
            tau=tau,
            num_groups=num_kv_heads,
            by_group=self.per_head,
            impl=self.impl,
        )
        if self.shard.splits_heads and not self.per_head:
            self.similarity = self.shard.mean(self.similarity)
            fired = ~(self.similarity >= tau)[:, None].expand(-1, num_kv_heads)
        return fired

    def chosen(self, where: Tensor) -> None:
        """The next query is compared with this one in any case."""

    def retrieved(self, where: Tensor, estimate: Estimate) -> None:
        """It asks no index."""

    def reset(self) -> None:
        """Forget the last query."""
        self.previous = None

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        self.taus.select_batch(index)
        if self.previous is not None:
            self.previous = self.previous.index_select(0, index)

    def put(self, row: int, other: Self | None, other_row: int, batch_size: int) -> None:
        """Its last query, and its tau."""
        previous, taus = (None, None) if other is None else (other.previous, other.taus)
        self.taus.put(row, taus, other_row, batch_size)
        self.previous = put_row(self.previous, row, previous, other_row, batch_size, torch.nan)


@dataclass(frozen=True)
class AnchorCosine(Trigger):
    """Retrieve for a KV head where its query has turned away from the one that it last selected with.

    Where `Cosine` sees a sudden turn, this sees a slow one as well.

    Attributes:
        tau: The least cosine, mean over the query group; a tuple has one for each layer of the model.
        cap: Most steps that a selection serves; None for any number.
    """

    tau: float | tuple[float, ...] = 0.75
    cap: int | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        check_layers("tau", self.tau, -1, 1)
        if self.cap is not None:
            check_count("cap", self.cap, 1)

    @property
    def gap(self) -> int | None:
        """The cap."""
        return self.cap

    def at_layer(self, layer_index: int) -> "AnchorCosine":
        """With the tau of that layer."""
        return replace(self, tau=of_layer("tau", self.tau, layer_index))

    def start(self, impl: str | None = None) -> "AnchorState":
        """Begin to watch one layer."""
        return AnchorState(the_one("tau", self.tau), self.cap, impl)


class AnchorState(TriggerState):
    """The queries that each KV head last selected with, and how many steps ago."""

    def __init__(self, tau: float, cap: int | None, impl: str | None) -> None:
        self.taus, self.cap, self.impl = Taus(tau), cap, impl
        self.anchor: Tensor | None = None

    def turned(self, query: Tensor, num_kv_heads: int) -> tuple[Tensor, Tensor]:
        """Cosine to the anchor [B, Hkv], NaN without one, and where the cap says that it is time."""
        self._query = query
        if self.anchor is None:
            self.anchor = torch.full_like(query, torch.nan)
            self.age = torch.zeros(len(query), num_kv_heads, dtype=torch.int64, device=query.device)
        self.age = self.age + 1
        due = torch.zeros_like(self.age, dtype=torch.bool) if self.cap is None else self.age >= self.cap
        return query_cosines(query, self.anchor, impl=self.impl).unflatten(1, (num_kv_heads, -1)).mean(2), due

    def fire(self, query: Tensor, num_kv_heads: int, estimate: Estimate | None = None) -> Tensor:
        """Fire for the KV heads whose query has turned."""
        cosine, due = self.turned(query, num_kv_heads)
        # Not `cosine < tau`: without an anchor it is NaN, and must fire.
        fired = ~(cosine >= self.taus.of(query)[:, None]) | due
        self.chosen(fired)
        return fired

    def chosen(self, where: Tensor) -> None:
        """Take the last query as the anchor."""
        assert self.anchor is not None
        head = where.repeat_interleave(self.anchor.shape[1] // where.shape[1], dim=1)
        self.anchor = torch.where(head[..., None], self._query, self.anchor)
        self.age = self.age.masked_fill(where, 0)

    def retrieved(self, where: Tensor, estimate: Estimate) -> None:
        """It asks no index."""

    def reset(self) -> None:
        """Forget the anchor."""
        self.anchor = None

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        self.taus.select_batch(index)
        if self.anchor is not None:
            self.anchor, self.age = self.anchor.index_select(0, index), self.age.index_select(0, index)

    def put(self, row: int, other: Self | None, other_row: int, batch_size: int) -> None:
        """Its anchor, how old that is, and its tau."""
        self.taus.put(row, None if other is None else other.taus, other_row, batch_size)
        anchor, age = (None, None) if other is None or other.anchor is None else (other.anchor, other.age)
        mine = None if self.anchor is None else self.age
        self.anchor = put_row(self.anchor, row, anchor, other_row, batch_size, torch.nan)
        mine = put_row(mine, row, age, other_row, batch_size, 0)
        if mine is not None:
            self.age = mine
