"""A layer in which each query head stands alone: what agreement in a query group saves is measured against it."""

from copy import copy
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from louiskv.methods.base import AttentionOptions, Begun, KVLayer
from louiskv.shard import Shard
from louiskv.store.transfer import Traffic
from louiskv.telemetry import LayerTelemetry, Tier, Tiers


class PerQueryHead(KVLayer):
    """Gives another state a KV head for each query head: a copy of the keys and values of its own.

    Attributes:
        state: Holds N = batch x query heads rows; its groups are of one.
    """

    def __init__(self, state: KVLayer, impl: str | None = None) -> None:
        super().__init__(impl)
        self.state = state
        self.state._count_in(self.telemetry)

    def join(self, shard: Shard) -> None:
        """Learn where the other heads are."""
        super().join(shard)
        self.state.join(shard)

    def begin(self, batch_size: int, num_kv_heads: int, num_query_heads: int) -> None:
        """Learn the sizes."""
        super().begin(batch_size, num_kv_heads, num_query_heads)
        self.state.begin(batch_size, num_query_heads, num_query_heads)

    def expect(self, num_tokens: int) -> None:
        """Learn how many tokens will come."""
        self.state.expect(num_tokens)

    def absorb(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        """Take in a prompt."""
        self.state.absorb(self._copied(keys), self._copied(values), valid)

    @property
    def waits_for_nothing(self) -> bool:
        """As the state does."""
        return self.state.waits_for_nothing

    def _begin_step(self) -> Begun:
        """As the state does."""
        return self.state.begin_step()

    def catch_up(self) -> None:
        """As the state does."""
        self.state.catch_up()

    def reserve(self, num_steps: int) -> bool:
        """As the state does."""
        return self.state.reserve(num_steps)

    def _append(self, keys: Tensor, values: Tensor) -> None:
        """Take in one token of each sequence."""
        self.state.append(self._copied(keys), self._copied(values))

    def _copied(self, states: Tensor) -> Tensor:
        return states.repeat_interleave(self.group_size, dim=1)

    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        """Attend with each query head to what it has."""
        return self.state.attend(query, options)

    def attend_past(self, query: Tensor, *, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attend to every token held, as a partial result."""
        out, lse = self.state.attend_past(query.flatten(0, 1)[:, None], scaling=scaling, softcap=softcap)
        return out.view(*query.shape[:-1], -1), lse.view(query.shape[:-1])

    def follow(self, other: "PerQueryHead") -> None:
        """As its state does."""
        self.state.follow(other.state)

    def crop(self, counts: Tensor) -> None:
        """Forget the last tokens."""
        self.state.crop(counts)

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        self.state.select_batch(index)
        self.batch_size = len(index)

    @property
    def crops_exactly(self) -> bool:
        """As the state does."""
        return self.state.crops_exactly

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.state.device

    def _blank(self, batch_size: int) -> Self:
        """As the state is."""
        other = copy(self)
        other.state = self.state._fresh(batch_size)
        return other

    def _put(self, row: int, other: "PerQueryHead", other_row: int) -> None:
        """As the state does."""
        self.state.put(row, other.state, other_row)

    def _clear(self, row: int) -> None:
        """As the state does."""
        self.state.clear(row)

    def _hold(self, in_use: Tensor) -> None:
        """The state as well."""
        self.state._hold(in_use.clone())
        super()._hold(in_use)

    def _count_in(self, telemetry: LayerTelemetry) -> None:
        """The state as well."""
        super()._count_in(telemetry)
        self.state._count_in(telemetry)

    def _take_over_traffic(self, other: "PerQueryHead") -> None:
        self.state._take_over_traffic(other.state)

    def tiers(self) -> Tiers:
        """What lies where, every copy counted; what full attention would hold needs none."""
        held = self.state.tiers()
        seen = Tier(held.seen.tokens // self.group_size, held.seen.bytes // self.group_size)
        return replace(held, seen=seen)

    def attended_positions(self) -> Tensor:
        """Those of each query head."""
        return self.state.attended_positions()

    @property
    def traffic(self) -> Traffic:
        """What has moved between the tiers."""
        return self.state.traffic

    def check_integrity(self) -> None:
        """The state agrees with itself, and has a row for each query head."""
        assert self.state.batch_size == self.batch_size
        assert self.state.num_kv_heads == self.num_kv_heads * self.group_size
        self.state.check_integrity()
