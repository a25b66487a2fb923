"""Full attention, everything on the device: the yardstick."""

from copy import copy
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from louiskv.methods.base import AttentionOptions, Begun, Footprint, KVLayer, LayerShape, Method
from louiskv.ops.attention import decode_attention
from louiskv.ops.moving import append_token
from louiskv.ops.partial_attention import partial_attention
from louiskv.ops.ragged import append_rows, counts_of, grown, is_readable, left_aligned, take_rows
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
    """Keys and values of one layer, on the device.

    Attributes:
        rows: [N, capacity, Dk + Dv] in order of position.
        bias: [N, 1, capacity], 0 where there is a token and -inf where not.
        lengths: [N] tokens of each row.
        longest: Tokens of the longest row.
        ragged: Whether rows may differ in length.
    """

    def __init__(self, impl: str | None = None) -> None:
        super().__init__(impl)
        self.rows = self.bias = torch.empty(0)
        self.lengths = torch.empty(0, dtype=torch.int64)
        self.key_dim = 0
        self.longest = 0
        self.ragged = False

    @property
    def keys(self) -> Tensor:
        """[N, longest, Dk], a view."""
        return self.rows[:, : self.longest, : self.key_dim]

    @property
    def values(self) -> Tensor:
        """[N, longest, Dv], a view."""
        return self.rows[:, : self.longest, self.key_dim :]

    def absorb(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        """Take in a prompt."""
        rows = torch.cat([keys, values], dim=-1).flatten(0, 1)
        if self.longest == 0:
            self.key_dim = keys.shape[-1]
            self.lengths = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
            self.rows = rows[:, :0].contiguous()
            self.bias = rows.new_zeros(len(rows), 1, 0)
        # To read lengths waits for the device: those of rows that are alike are known, and padding is looked at once.
        # A step that has failed when it had begun has counted a token that is not there.
        held = self.lengths.tolist() if self.ragged or self._step_begun else [self.longest] * len(rows)
        self._step_begun = False
        if valid is None:
            counts, new = torch.full_like(self.lengths, rows.shape[1]), [rows.shape[1]] * len(rows)
        else:
            order, counts = left_aligned(valid.repeat_interleave(self.num_kv_heads, dim=0))
            rows, new = take_rows(rows, order), [each for each in counts_of(valid) for _ in range(self.num_kv_heads)]
        lengths = [length + count for length, count in zip(held, new, strict=True)]
        self._make_room(max(lengths))
        append_rows(self.rows, held, rows, new)
        self.lengths = self.lengths + counts
        self._look_around(lengths)

    def reserve(self, num_steps: int) -> bool:
        """Make room for as many tokens."""
        return self._make_room(self.longest + num_steps)

    @property
    def waits_for_nothing(self) -> bool:
        """Yes."""
        return True

    def _begin_step(self) -> Begun:
        """Make room for a token."""
        self.longest += 1
        return Begun(self._make_room(self.longest))

    def _append(self, keys: Tensor, values: Tensor) -> None:
        """Take in one token of each sequence."""
        # A window of one, the last slot: so each token's slot is its position.
        sizes = {"num_sinks": self.rows.shape[1] - 1, "window": 1}
        append_token(
            self.rows, self.bias, self.lengths, keys.flatten(0, 2), values.flatten(0, 2), **sizes, impl=self.impl
        )
        if (idle := self.idle) is not None:
            self.lengths.masked_fill_(idle, 0)

    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        """Attend to everything."""
        # On a GPU all that there is room for, and the bias says what counts: so a step has the shape of the one before.
        num_slots = self.longest if is_readable(query) else self.rows.shape[1]
        rows, masked = self.rows[:, :num_slots], self.ragged or num_slots > self.longest
        with self.telemetry.clock.time("attention", query.device):
            out = decode_attention(
                self.group(query),
                rows[..., : self.key_dim],
                rows[..., self.key_dim :],
                self.bias[..., :num_slots] if masked else None,
                scaling=options.scaling,
                softcap=options.softcap,
                attention_sinks=options.sinks_by_row(self.batch_size, self.num_kv_heads),
                impl=self.impl,
            )
        return out.reshape(self.batch_size, -1, 1, out.shape[-1])

    def attend_past(self, query: Tensor, *, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attend to everything, as a partial result."""
        mask = self._present()[:, None] if self.ragged else None
        return partial_attention(query, self.keys, self.values, mask, scaling=scaling, softcap=softcap, impl=self.impl)

    def crop(self, counts: Tensor) -> None:
        """Forget the last tokens."""
        self._resize(self.lengths - counts.repeat_interleave(self.num_kv_heads).to(self.lengths.device))

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        rows = self.rows_of_batch(index)
        self.rows, self.bias = self.rows.index_select(0, rows), self.bias.index_select(0, rows)
        self._resize(self.lengths.index_select(0, rows))
        self.batch_size = len(index)

    @property
    def crops_exactly(self) -> bool:
        """Yes."""
        return True

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.rows.device

    def _blank(self, batch_size: int) -> Self:
        """Without room for any token."""
        state = copy(self)
        num_rows = batch_size * self.num_kv_heads
        state.rows, state.bias = (
            self.rows.new_empty(num_rows, 0, self.rows.shape[2]),
            self.bias.new_empty(num_rows, 1, 0),
        )
        state.lengths, state.longest, state.ragged = self.lengths.new_zeros(num_rows), 0, True
        return state

    def _put(self, row: int, other: "FullLayer", other_row: int) -> None:
        """Copy its tokens."""
        mine, others = self.slice_of(row), other.slice_of(other_row)
        length = int(other.lengths[others].max())
        self._make_room(length)
        self.rows[mine, :length] = other.rows[others, :length]
        self.lengths[mine] = other.lengths[others]
        self._look_around()

    def _clear(self, row: int) -> None:
        """Close its slots."""
        self.lengths[self.slice_of(row)] = 0
        self._look_around()

    def tiers(self) -> Tiers:
        """Everything is resident."""
        size = self.rows.nbytes + self.bias.nbytes + self.lengths.nbytes
        tokens = int(self.lengths.sum())
        token_size = self.rows.shape[-1] * self.rows.element_size()
        nothing = Tier(0, 0)
        return Tiers(Tier(tokens, size), nothing, nothing, Tier(tokens, tokens * token_size))

    def check_integrity(self) -> None:
        """Lengths and capacities agree."""
        longest, held = int(self.lengths.max()), self.held
        assert longest <= self.longest <= self.rows.shape[1] == self.bias.shape[2]
        assert longest == self.longest or self.in_use is not None
        assert self.ragged or bool((self.lengths == self.longest).all())
        assert torch.equal((self.bias[:, :, : self.longest] == 0)[held], self._present()[held])
        assert bool((self.bias[held, :, self.longest :] == -torch.inf).all())

    def attended_positions(self) -> Tensor:
        """Everything."""
        return torch.arange(self.longest, device=self.lengths.device).where(self._present()[:, 0], -1)

    @property
    def traffic(self) -> Traffic:
        """Nothing moves."""
        return Traffic()

    def _present(self) -> Tensor:
        return (torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None])[:, None]

    def _resize(self, lengths: Tensor) -> None:
        """Hold so many tokens of each row; this waits for the device."""
        self.lengths = lengths
        self._look_around()

    def _look_around(self, lengths: list[int] | None = None) -> None:
        """See how long rows are, as the host knows or by waiting for the device, and open the slots of their tokens."""
        lengths = self.lengths.tolist() if lengths is None else lengths
        self.longest = max(lengths)
        self.ragged = min(lengths) != self.longest or self.in_use is not None
        slot = torch.arange(self.rows.shape[1], device=self.lengths.device)
        self.bias.zero_().masked_fill_((slot >= self.lengths[:, None])[:, None], -torch.inf)

    def _make_room(self, needed: int) -> bool:
        """Grow if there is no room for so many tokens; whether that was so."""
        if needed <= self.rows.shape[1]:
            return False
        capacity = -(-needed // GROWTH) * GROWTH
        closed = self.bias.new_full((len(self.bias), 1, capacity - self.bias.shape[2]), -torch.inf)
        self.rows, self.bias = grown(self.rows, capacity), torch.cat([self.bias, closed], dim=-1)
        return True
