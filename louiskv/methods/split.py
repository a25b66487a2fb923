"""A layer whose KV heads are kept in two ways."""

from copy import copy
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Self

import torch
from torch import Tensor

from louiskv.errors import SettingsError
from louiskv.methods.base import AttentionOptions, Begun, KVLayer
from louiskv.shard import Shard
from louiskv.store.transfer import Traffic
from louiskv.telemetry import LayerTelemetry, Tiers


class SplitLayer(KVLayer):
    """Joins two states: one holds some KV heads of a layer, the other those that are left.

    Attributes:
        heads: KV heads that the first state holds; among those of all ranks, where the heads are split over them.
        parts: Both states; one alone where it holds all heads.
    """

    def __init__(self, heads: tuple[int, ...], first: KVLayer, second: KVLayer, impl: str | None = None) -> None:
        super().__init__(impl)
        self.heads = heads
        self.parts: tuple[KVLayer, ...] = (first, second)
        self._count_in(self.telemetry)
        self._places: tuple[Tensor, ...] = ()

    def join(self, shard: Shard) -> None:
        """Learn where the other heads are."""
        super().join(shard)
        for part in self.parts:
            part.join(shard)

    def absorb(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        """Take in a prompt."""
        if not self._places:
            self._begin(keys)
        for part, heads in zip(self.parts, self._places, strict=True):
            part.batch_size, part.num_kv_heads = self.batch_size, len(heads)
            part.absorb(keys[:, heads], values[:, heads], valid)

    def _begin(self, keys: Tensor) -> None:
        num_kv_heads = keys.shape[1] * self.shard.num_parts
        if max(self.heads) >= num_kv_heads:
            raise SettingsError(f"There is no KV head {max(self.heads)}: this model has {num_kv_heads} in a layer.")
        chosen = torch.zeros(num_kv_heads, dtype=torch.bool)
        chosen[list(self.heads)] = True
        mine = chosen.chunk(self.shard.num_parts)[self.shard.part]
        places = [part.nonzero()[:, 0].to(keys.device) for part in (mine, ~mine)]
        held = [(part, heads) for part, heads in zip(self.parts, places, strict=True) if len(heads)]
        self.parts, self._places = tuple(part for part, _ in held), tuple(heads for _, heads in held)

    @property
    def waits_for_nothing(self) -> bool:
        """If both parts do."""
        return all(part.waits_for_nothing for part in self.parts)

    def _begin_step(self) -> Begun:
        """As both parts do."""
        begun = [part.begin_step() for part in self.parts]
        return Begun(any(each.anew for each in begun), any(each.leaves for each in begun))

    def catch_up(self) -> None:
        """As both parts do."""
        for part in self.parts:
            part.catch_up()

    def reserve(self, num_steps: int) -> bool:
        """As both parts do."""
        grown = [part.reserve(num_steps) for part in self.parts]
        return any(grown)

    def _append(self, keys: Tensor, values: Tensor) -> None:
        """Take in one token of each sequence."""
        for part, heads in zip(self.parts, self._places, strict=True):
            part.append(keys[:, heads], values[:, heads])

    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        """Attend with each query group to what its KV head has."""
        by_head = query.unflatten(1, (self.num_kv_heads, -1))
        outs = [
            part.attend(by_head[:, heads].flatten(1, 2), self._options(options, heads)).unflatten(1, (len(heads), -1))
            for part, heads in zip(self.parts, self._places, strict=True)
        ]
        return self._joined(outs).flatten(1, 2)

    def attend_past(self, query: Tensor, *, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attend to every token held, as a partial result."""
        by_head = query.unflatten(0, (self.batch_size, -1))
        outs, lses = [], []
        for part, heads in zip(self.parts, self._places, strict=True):
            out, lse = part.attend_past(by_head[:, heads].flatten(0, 1), scaling=scaling, softcap=softcap)
            outs.append(out.unflatten(0, (self.batch_size, -1)))
            lses.append(lse.unflatten(0, (self.batch_size, -1)))
        return self._joined(outs).flatten(0, 1), self._joined(lses).flatten(0, 1)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """[B, Hkv, ...] of both parts' [B, h, ...]."""
        order = torch.cat(self._places).argsort()
        return torch.cat(parts, 1).index_select(1, order)

    def _options(self, options: AttentionOptions, heads: Tensor) -> AttentionOptions:
        if options.attention_sinks is None:
            return options
        sinks = options.attention_sinks.view(self.num_kv_heads, -1)[heads]
        return replace(options, attention_sinks=sinks.flatten())

    def crop(self, counts: Tensor) -> None:
        """Forget the last tokens."""
        for part in self.parts:
            part.crop(counts)

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        for part in self.parts:
            part.select_batch(index)
        self.batch_size = len(index)

    @property
    def crops_exactly(self) -> bool:
        """If both parts do."""
        return all(part.crops_exactly for part in self.parts)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._places[0].device

    def _blank(self, batch_size: int) -> Self:
        """As both parts are."""
        other = copy(self)
        other.parts = tuple(part._fresh(batch_size) for part in self.parts)
        return other

    def _put(self, row: int, other: "SplitLayer", other_row: int) -> None:
        """As both parts do."""
        for part, theirs in zip(self.parts, other.parts, strict=True):
            part.put(row, theirs, other_row)

    def _clear(self, row: int) -> None:
        """As both parts do."""
        for part in self.parts:
            part.clear(row)

    def _hold(self, in_use: Tensor) -> None:
        """Both parts as well."""
        for part in self.parts:
            part._hold(in_use.clone())
        super()._hold(in_use)

    def _count_in(self, telemetry: LayerTelemetry) -> None:
        """Both parts as well."""
        super()._count_in(telemetry)
        for part in self.parts:
            part._count_in(telemetry)

    def _take_over_traffic(self, other: "SplitLayer") -> None:
        for part, theirs in zip(self.parts, other.parts, strict=True):
            part._take_over_traffic(theirs)

    def tiers(self) -> Tiers:
        """What both hold."""
        return reduce(add, (part.tiers() for part in self.parts))

    def attended_positions(self) -> Tensor:
        """Those of either."""
        found = [part.attended_positions().unflatten(0, (self.batch_size, -1)) for part in self.parts]
        longest = max(positions.shape[2] for positions in found)
        padded = [torch.nn.functional.pad(each, (0, longest - each.shape[2]), value=-1) for each in found]
        return self._joined(padded).flatten(0, 1)

    @property
    def traffic(self) -> Traffic:
        """What has moved in both."""
        return reduce(add, (part.traffic for part in self.parts))

    def check_integrity(self) -> None:
        """Both agree with themselves, and hold all heads."""
        assert sorted(torch.cat(self._places).tolist()) == list(range(self.num_kv_heads))
        for part in self.parts:
            part.check_integrity()
