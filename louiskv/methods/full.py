"""Full attention, everything on the device: the yardstick."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from louiskv.methods.base import AttentionOptions, Footprint, KVLayer, LayerShape, Method
from louiskv.ops.attention import decode_attention, partial_attention
from louiskv.ops.ragged import append_rows, grown, left_aligned, take_rows
from louiskv.store.transfer import Traffic
from louiskv.telemetry import Tier, Tiers

# Tokens of room added when the buffers are full.
GROWTH = 256


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Full attention with everything on the device, by grouped attention that repeats no keys."""

    paper: ClassVar[str] = "Attention Is All You Need, arXiv 1706.03762"
    keeps: ClassVar[str] = "everything on the device"

    def layer(self, layer_index: int, impl: str | None = None) -> "FullLayer":
        """The state of one layer, empty."""
        return FullLayer(impl)

    def footprint(self, layer_index: int, shape: LayerShape, num_tokens: int) -> Footprint:
        """All tokens on the device."""
        return Footprint(resident=num_tokens * shape.token_bytes, index=0, host=0, retrieval=0)


class FullLayer(KVLayer):
    """Keys [N, capacity, D] and values of one layer, on the device.

    Attributes:
        lengths: [N] tokens of each row.
        longest: Tokens of the longest row.
        ragged: Whether rows may differ in length.
    """

    def __init__(self, impl: str | None = None) -> None:
        super().__init__(impl)
        self.keys = self.values = torch.empty(0)
        self.lengths = torch.empty(0, dtype=torch.int64)
        self.longest = 0
        self.ragged = False

    def absorb(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        """Take in a prompt."""
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        if self.longest == 0:
            self.lengths = torch.zeros(len(keys), dtype=torch.int64, device=keys.device)
            self.keys, self.values = keys[:, :0].contiguous(), values[:, :0].contiguous()
        if valid is None:
            counts = torch.full_like(self.lengths, keys.shape[1])
        else:
            order, counts = left_aligned(valid.repeat_interleave(self.num_kv_heads, dim=0))
            keys, values = take_rows(keys.contiguous(), order), take_rows(values.contiguous(), order)
        lengths = self.lengths + counts
        self.longest, shortest = int(lengths.max()), int(lengths.min())
        self.ragged = shortest != self.longest
        self._reserve(self.longest)
        append_rows(self.keys, self.lengths, keys, counts)
        append_rows(self.values, self.lengths, values, counts)
        self.lengths = lengths

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Take in one token of each sequence."""
        self._reserve(self.longest + 1)
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        if self.ragged:
            place = self.lengths[:, None, None]
            self.keys.scatter_(1, place.expand(-1, 1, keys.shape[-1]), keys)
            self.values.scatter_(1, place.expand(-1, 1, values.shape[-1]), values)
        else:
            self.keys[:, self.longest] = keys[:, 0]
            self.values[:, self.longest] = values[:, 0]
        self.lengths = self.lengths + 1
        self.longest += 1

    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        """Attend to everything."""
        with self.telemetry.clock.time("attention", query.device):
            bias = None
            if self.ragged:
                bias = torch.zeros(len(self.lengths), 1, self.longest, dtype=query.dtype, device=query.device)
                bias.masked_fill_(~self._present(), -torch.inf)
            out = decode_attention(
                self.group(query),
                self.keys[:, : self.longest],
                self.values[:, : self.longest],
                bias,
                scaling=options.scaling,
                softcap=options.softcap,
                attention_sinks=options.sinks_by_row(self.batch_size, self.num_kv_heads),
                impl=self.impl,
            )
        return out.reshape(self.batch_size, -1, 1, out.shape[-1])

    def attend_past(self, query: Tensor, *, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attend to everything, as a partial result."""
        keys, values = self.keys[:, : self.longest], self.values[:, : self.longest]
        mask = self._present()[:, None] if self.ragged else None
        return partial_attention(query, keys, values, mask, scaling=scaling, softcap=softcap, impl=self.impl)

    def crop(self, counts: Tensor) -> None:
        """Forget the last tokens."""
        self.lengths = self.lengths - counts.repeat_interleave(self.num_kv_heads).to(self.lengths.device)
        self.longest = int(self.lengths.max())
        self.ragged = bool((self.lengths != self.longest).any())

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        rows = self.rows_of_batch(index)
        self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)
        self.lengths = self.lengths.index_select(0, rows)
        self.longest = int(self.lengths.max())
        self.ragged = bool((self.lengths != self.longest).any())
        self.batch_size = len(index)

    def tiers(self) -> Tiers:
        """Everything is resident."""
        size = self.keys.nbytes + self.values.nbytes + self.lengths.nbytes
        tokens = int(self.lengths.sum())
        token_size = (self.keys.shape[-1] + self.values.shape[-1]) * self.keys.element_size()
        nothing = Tier(0, 0)
        return Tiers(Tier(tokens, size), nothing, nothing, Tier(tokens, tokens * token_size))

    def check_integrity(self) -> None:
        """Lengths and capacities agree."""
        assert self.longest == int(self.lengths.max()) <= self.keys.shape[1] == self.values.shape[1]
        assert self.ragged or bool((self.lengths == self.longest).all())

    def attended_positions(self) -> Tensor:
        """Everything."""
        return torch.arange(self.longest, device=self.lengths.device).where(self._present()[:, 0], -1)

    @property
    def traffic(self) -> Traffic:
        """Nothing moves."""
        return Traffic()

    def _present(self) -> Tensor:
        return (torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None])[:, None]

    def _reserve(self, needed: int) -> None:
        if needed > self.keys.shape[1]:
            capacity = -(-needed // GROWTH) * GROWTH
            self.keys, self.values = grown(self.keys, capacity), grown(self.values, capacity)
