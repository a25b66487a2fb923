"""Full attention with everything on the host, fetched whole at each step: the other yardstick."""

from copy import copy
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from louiskv.errors import check_count
from louiskv.methods.base import (
    AttentionOptions,
    Begun,
    Footprint,
    KVLayer,
    LayerShape,
    Method,
    setting,
)
from louiskv.ops.partial_attention import dim_by_attention_sinks, merge_attention, partial_attention
from louiskv.ops.ragged import left_aligned, take_rows
from louiskv.store.coding import Exact
from louiskv.store.pool import Pool
from louiskv.store.transfer import Traffic, Transfer
from louiskv.telemetry import Tier, Tiers


@dataclass(frozen=True, kw_only=True)
class FullOffloaded(Method):
    """Full attention over keys and values that lie on the host and are fetched whole at each step."""

    paper: ClassVar[str] = "Attention Is All You Need, arXiv 1706.03762"
    keeps: ClassVar[str] = "everything on the host"
    chunk_size: int = setting(4096, "tokens of a KV head on the device at once")

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("chunk_size", self.chunk_size, 1)

    def layer(self, layer_index: int, impl: str | None = None) -> "FullOffloadedLayer":
        """The state of one layer, empty."""
        return FullOffloadedLayer(self.chunk_size, impl)

    def footprint(self, layer_index: int, shape: LayerShape, num_tokens: int) -> Footprint:
        """All tokens on the host; each step fetches them all."""
        everything = num_tokens * shape.token_bytes
        return Footprint(resident=0, index=0, host=shape.pool_bytes(num_tokens), retrieval=everything)


class FullOffloadedLayer(KVLayer):
    """The host pool of one layer, its tokens in order of position."""

    def __init__(self, chunk_size: int, impl: str | None = None) -> None:
        super().__init__(impl)
        self.chunk_size = chunk_size
        self.key_dim = self._expected = 0
        self.pool: Pool
        self.transfer: Transfer

    def expect(self, num_tokens: int) -> None:
        """Learn how many tokens will come."""
        self._expected = num_tokens
        if self.key_dim:
            self.pool.expected = num_tokens

    def absorb(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        """Take in a prompt."""
        rows = torch.cat([keys, values], dim=-1).flatten(0, 1)
        if self.key_dim == 0:
            self.key_dim = keys.shape[-1]
            self.pool = Pool(len(rows), Exact(rows.shape[-1], rows.dtype), rows.device)
            self.pool.expected = self._expected
            self.transfer = Transfer(rows.device)
        if valid is None:
            counts = torch.full((len(rows),), rows.shape[1], device=rows.device)
        else:
            order, counts = left_aligned(valid.repeat_interleave(self.num_kv_heads, dim=0))
            rows = take_rows(rows, order)
        with self.telemetry.clock.time("offload", rows.device):
            positions = self.pool.lengths[:, None] + torch.arange(rows.shape[1], device=rows.device)
            self.transfer.offload(self.pool, rows, positions, counts)

    def reserve(self, num_steps: int) -> bool:
        """Make room for as many tokens."""
        return self.pool.reserve(int(self.pool.lengths.max()) + num_steps)

    def _begin_step(self) -> Begun:
        """Nothing to do: the pool grows when a token comes."""
        return Begun()

    def _append(self, keys: Tensor, values: Tensor) -> None:
        """Take in one token of each sequence; idle rows keep none."""
        valid = None if self.in_use is None or self.idle is None else self.in_use[:, None]
        self.absorb(keys, values, valid)

    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        """Attend to everything, fetched in chunks."""
        grouped = self.group(query)[:, :, None]
        out, lse = self.attend_past(grouped, scaling=options.scaling, softcap=options.softcap)
        sinks = options.sinks_by_row(self.batch_size, self.num_kv_heads)
        if sinks is not None:
            out = dim_by_attention_sinks(out, lse, sinks)
        return out.to(query.dtype).view(self.batch_size, -1, 1, out.shape[-1])

    def attend_past(self, query: Tensor, *, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attend to everything, as a partial result."""
        clock, device = self.telemetry.clock, query.device
        value_dim = self.pool.rows.shape[-1] - self.key_dim
        out = query.new_zeros(*query.shape[:-1], value_dim, dtype=torch.float32)
        lse = torch.full_like(out[..., 0], -torch.inf)
        chunks = self.transfer.read(self.pool, self.chunk_size)
        while True:
            with clock.time("fetch", device):
                chunk = next(chunks, None)
            if chunk is None:
                return out, lse
            rows, present = chunk
            with clock.time("attention", device):
                keys, values = rows[..., : self.key_dim], rows[..., self.key_dim :]
                mask = None if present is None else present[:, None, None]
                part = partial_attention(query, keys, values, mask, scaling=scaling, softcap=softcap, impl=self.impl)
                out, lse = merge_attention(out, lse, *part)

    def crop(self, counts: Tensor) -> None:
        """Forget the last tokens."""
        self.transfer.settle()
        ends = self.pool.lengths - counts.repeat_interleave(self.num_kv_heads).to(self.pool.lengths.device)
        self.pool.keep_before(ends)

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        self.transfer.settle()
        self.pool.select_rows(self.rows_of_batch(index))
        self.batch_size = len(index)

    @property
    def crops_exactly(self) -> bool:
        """Yes."""
        return True

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.pool.lengths.device

    def _blank(self, batch_size: int) -> Self:
        """With an empty pool."""
        state = copy(self)
        state.pool = self.pool.blank(batch_size * self.num_kv_heads)
        state.transfer = Transfer(self.device)
        return state

    def _put(self, row: int, other: "FullOffloadedLayer", other_row: int) -> None:
        """Copy its part of the pool."""
        for each in (self, other):
            each.transfer.settle()
        self.pool.put_rows(self.slice_of(row), other.pool, other.slice_of(other_row))

    def _clear(self, row: int) -> None:
        """Empty its part of the pool."""
        self.transfer.settle()
        self.pool.clear_rows(self.slice_of(row))

    def _take_over_traffic(self, other: "FullOffloadedLayer") -> None:
        self.transfer.take_over(other.transfer)

    def tiers(self) -> Tiers:
        """Everything is on the host."""
        tokens = int(self.pool.lengths.sum())
        nothing = Tier(0, 0)
        return Tiers(nothing, nothing, Tier(tokens, self.pool.num_bytes), Tier(tokens, tokens * self.pool.token_size))

    def check_integrity(self) -> None:
        """Tokens lie in order of position, none is missing."""
        token = torch.arange(self.pool.rows.shape[1])
        held = token < self.pool.lengths.cpu()[:, None]
        assert bool((self.pool.positions == token)[held].all())

    def attended_positions(self) -> Tensor:
        """Everything."""
        token = torch.arange(int(self.pool.lengths.max()))
        return token.where(token < self.pool.lengths.cpu()[:, None], -1)

    @property
    def traffic(self) -> Traffic:
        """What has moved between the tiers."""
        return self.transfer.traffic
