"""The eviction loop: a fixed number of slots on the device, and what leaves them at each step."""

from copy import copy
from typing import Self

import torch
from torch import Tensor

from louiskv.importance import Observation
from louiskv.methods.base import AttentionOptions, Begun, DenseAttention, KVLayer
from louiskv.methods.eviction_parts import Candidates, EvictionParts
from louiskv.ops.attention import attention_with_weights, decode_attention
from louiskv.ops.eviction import choose_victims
from louiskv.ops.partial_attention import partial_attention
from louiskv.ops.ragged import is_readable, left_aligned, take_rows
from louiskv.store.kept import KeptSet
from louiskv.store.transfer import Traffic
from louiskv.telemetry import Tier, Tiers

# Weights held at once (float32): on a CPU so few that they stay in its caches.
MAX_WEIGHTS, MAX_WEIGHTS_CPU = 64 * 1024 * 1024, 1024 * 1024


class EvictionLayer(KVLayer):
    """One layer: a token is in a slot, or it is gone; it may live on in the token it was merged with.

    Attributes:
        kept: The slots.
        lengths: [N] int64, tokens seen by each row.
        limits: [N] int64, tokens that each row may keep.
        steps_to_full: Tokens that can be taken in before a row must give one up.
    """

    kept: KeptSet
    lengths: Tensor
    limits: Tensor

    def __init__(self, parts: EvictionParts, impl: str | None = None) -> None:
        super().__init__(impl)
        self.parts = parts
        self.steps_to_full = 0
        self._begun = False

    def prompt(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        valid: Tensor | None,
        options: AttentionOptions,
        dense: DenseAttention,
    ) -> Tensor:
        """Attend densely, see what the newest queries attend to, and keep what matters most.

        Where importance looks at all queries, attention is computed once, with its weights.
        """
        num_queries, watched = query.shape[2], self.parts.importance.prompt_queries
        watched = num_queries if watched is None else min(watched, num_queries)
        if watched == 0:
            return super().prompt(query, keys, values, mask, valid, options, dense)
        out = None
        if watched < num_queries:
            out = self.attend_densely(query, keys, values, mask, options, dense)
        self.begin(keys.shape[0], keys.shape[1], query.shape[1])
        candidates = self._candidates(keys, values, valid)
        with self.telemetry.clock.time("prefill", keys.device):
            newest, stats = self._observe(query, candidates, watched, mask, options)
        self._keep(candidates._replace(stats=stats))
        return newest if out is None else torch.cat([out[:, :, :-watched], newest], dim=2)

    def absorb(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        """Take in a prompt of whose queries nothing is known."""
        self._keep(self._candidates(keys, values, valid))

    def _begin(self, keys: Tensor, values: Tensor) -> None:
        num_rows, parts = keys.shape[0] * keys.shape[1], self.parts
        sizes = keys.shape[-1], values.shape[-1], parts.importance.num_stats
        self.kept = KeptSet(num_rows, parts.budget, *sizes, parts.merging.compensates, keys.dtype, keys.device)
        self.lengths = torch.zeros(num_rows, dtype=torch.int64, device=keys.device)
        self.limits = torch.full_like(self.lengths, parts.budget)
        self._begun = True

    def _candidates(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> Candidates:
        if not self._begun:
            self._begin(keys, values)
        kept, old = self.kept, self.lengths
        kept.sort()
        rows = torch.cat([keys, values], dim=-1).flatten(0, 1)
        counts, columns = torch.full_like(old, rows.shape[1]), None
        if valid is not None:
            columns, counts = left_aligned(valid.repeat_interleave(self.num_kv_heads, dim=0))
            rows = take_rows(rows, columns)
        token = torch.arange(rows.shape[1], device=rows.device)
        present = token < counts[:, None]
        votes = torch.zeros(present.shape, device=rows.device).masked_fill(~present, -torch.inf)
        return Candidates(
            rows=torch.cat([kept.rows, rows], 1),
            positions=torch.cat([kept.positions, torch.where(present, old[:, None] + token, -1)], 1),
            votes=torch.cat([kept.votes, votes], 1),
            stats=torch.cat([kept.stats, kept.stats.new_zeros(*rows.shape[:2], kept.stats.shape[2])], 1),
            num_slots=kept.rows.shape[1],
            columns=columns,
            end=old + counts,
        )

    def _observe(
        self, query: Tensor, candidates: Candidates, watched: int, mask: Tensor | None, options: AttentionOptions
    ) -> tuple[Tensor, Tensor]:
        """The attention [B, Hq, watched, Dv] of the newest queries, and the candidates' stats after seeing it."""
        importance, num_queries = self.parts.importance, query.shape[2]
        step = watched
        if importance.prompt_queries is None:
            most = MAX_WEIGHTS_CPU if query.device.type == "cpu" else MAX_WEIGHTS
            step = max(1, most // (query.shape[1] * candidates.rows.shape[1]))
        sinks = options.sinks_by_row(1, self.num_kv_heads)
        outs, stats = [], []
        for sequence in range(self.batch_size):
            rows = slice(sequence * self.num_kv_heads, (sequence + 1) * self.num_kv_heads)
            held, positions, votes = candidates.rows[rows], candidates.positions[rows], candidates.votes[rows]
            known = candidates.stats[rows].clone()
            for first in range(num_queries - watched, num_queries, step):
                queries = slice(first, min(first + step, num_queries))
                visible, times = self._visible(candidates, sequence, queries, mask)
                # Without a mask no query sees what comes after it.
                seen = slice(candidates.num_slots + queries.stop if mask is None else None)
                out, weights, lse = attention_with_weights(
                    query[sequence, :, queries].unflatten(0, (self.num_kv_heads, -1)),
                    held[:, seen, : query.shape[-1]],
                    held[:, seen, query.shape[-1] :],
                    torch.where(visible[:, seen], votes[:, None, seen], -torch.inf)[:, None],
                    scaling=options.scaling,
                    softcap=options.softcap,
                    attention_sinks=sinks,
                    impl=self.impl,
                )
                times = times.expand(self.num_kv_heads, -1)
                observation = Observation(weights, lse, votes[:, seen], positions[:, seen], times)
                known[:, seen] = importance.observe(known[:, seen], observation)
                outs.append(out.flatten(0, 1).to(query.dtype))
            stats.append(known)
        by_sequence = torch.cat(outs, 1).unflatten(1, (self.batch_size, -1))
        return by_sequence.transpose(0, 1), torch.cat(stats)

    def _visible(
        self, candidates: Candidates, sequence: int, queries: slice, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Which candidates [Tq, C] some queries of a sequence may attend to; and the queries' positions [Tq]."""
        row, num_slots = sequence * self.num_kv_heads, candidates.num_slots
        positions = candidates.positions[row, num_slots:]
        columns = torch.arange(len(positions), device=positions.device)
        if candidates.columns is not None:
            columns = candidates.columns[row]
        times = torch.empty_like(positions).scatter_(0, columns, positions)[queries]
        if mask is None:
            new = columns <= torch.arange(queries.start, queries.stop, device=columns.device)[:, None]
        else:
            new = mask[sequence, 0, queries][:, columns]
        # Padding looks at nothing and is not looked at.
        visible = torch.cat([new.new_ones(len(times), num_slots), new & (positions >= 0)], 1)
        return visible & (times >= 0)[:, None], times

    def _keep(self, candidates: Candidates) -> None:
        """Let go what is over the limits, and put the others into the slots."""
        parts, kept = self.parts, self.kept
        rows, positions, votes, stats, num_slots, _, end = candidates
        with self.telemetry.clock.time("selection", rows.device):
            self.lengths = end
            share = (parts.share * end.double()).ceil().long() + parts.num_sinks
            self.limits = share.clamp(min=parts.budget)
            is_prompt = torch.arange(rows.shape[1], device=rows.device) >= num_slots
            page_size = parts.importance.page_size
            newest = -(-max(parts.window, parts.prompt_window) // page_size) * page_size
            room = self.limits - newest - page_size
            stats = parts.importance.observe_prompt(stats, is_prompt & (positions >= 0), room)
            lost = self._victims(positions, votes, stats, parts.prompt_window, num_new=0)
            if parts.merging.compensates:
                kept.compensate(rows, lost)
            rows, votes = self._merge(rows, votes, stats, lost)
            order, counts = left_aligned((positions >= 0) & ~lost)
            order = order[:, : int(counts.max())]
            present = torch.arange(order.shape[1], device=rows.device) < counts[:, None]
            kept.reserve(int(self.limits.max()))
            kept.fill(
                take_rows(rows, order),
                positions.gather(1, order).masked_fill(~present, -1),
                votes.gather(1, order).masked_fill(~present, -torch.inf),
                take_rows(stats, order),
            )
            self._look_around()

    def _victims(self, positions: Tensor, votes: Tensor, stats: Tensor, window: int, num_new: int) -> Tensor:
        """Where tokens [N, C] must go so that each row keeps to its limit when `num_new` more have come."""
        parts, page_size = self.parts, self.parts.importance.page_size
        newest = (self.lengths + num_new - window) // page_size * page_size
        may_go = (positions >= parts.num_sinks) & (positions < newest[:, None])
        scores = parts.importance.scores(stats, positions, votes).masked_fill(~may_go, torch.inf)
        excess = ((positions >= 0).sum(1) + num_new - self.limits).clamp(min=0)
        return choose_victims(scores, positions, excess, page_size=page_size, impl=self.impl)

    def _merge(
        self, rows: Tensor, votes: Tensor, stats: Tensor, lost: Tensor, most: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows and votes after the tokens [N, C] that are lost have gone into others, if they do."""
        log_scores = self.parts.importance.log_scores(stats)
        return self.parts.merging.merge(rows, self.kept.key_dim, votes, log_scores, lost, most, self.impl)

    def reserve(self, num_steps: int) -> bool:
        """Nothing to do: the slots are all there are."""
        return False

    @property
    def waits_for_nothing(self) -> bool:
        """Yes."""
        return True

    def _begin_step(self) -> Begun:
        """Where all slots are taken, the least important token is freed; where that is not readable, when one comes."""
        if not is_readable(self.lengths):
            return Begun()
        full = self.steps_to_full == 0
        if full:
            self._make_room()
            self._look_around()
        self.steps_to_full -= 1
        return Begun(full)

    def _append(self, keys: Tensor, values: Tensor) -> None:
        """Take in one token of each sequence."""
        if not is_readable(self.lengths):
            self._make_room()
        idle = self.idle
        if idle is not None:
            # Of what an idle row was given at the step before nothing stays.
            self.kept.drop(idle[:, None])
        self.kept.append(torch.cat([keys, values], dim=-1).flatten(0, 2), self.lengths)
        self.lengths = self.lengths + 1
        if idle is not None:
            self.lengths = self.lengths.masked_fill(idle, 0)

    def _make_room(self) -> None:
        """Let one token of each full row go, or its page."""
        kept, parts = self.kept, self.parts
        with self.telemetry.clock.time("selection", self.lengths.device):
            lost = self._victims(kept.positions, kept.votes, kept.stats, parts.window, num_new=1)
            if parts.merging.compensates:
                kept.compensate(kept.rows, lost)
            most = parts.importance.page_size
            kept.rows, kept.votes = self._merge(kept.rows, kept.votes, kept.stats, lost, most)
            kept.drop(lost)

    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        """Attend to what is kept, and see what gets how much."""
        kept, grouped, importance = self.kept, self.group(query), self.parts.importance
        sinks = options.sinks_by_row(self.batch_size, self.num_kv_heads)
        with self.telemetry.clock.time("attention", query.device):
            if not importance.watches_output:
                out = decode_attention(
                    grouped,
                    kept.keys,
                    kept.values,
                    kept.votes[:, None].to(query.dtype),
                    scaling=options.scaling,
                    softcap=options.softcap,
                    attention_sinks=sinks,
                    impl=self.impl,
                )
            else:
                out, weights, lse = attention_with_weights(
                    grouped[:, :, None],
                    kept.keys,
                    kept.values,
                    kept.votes[:, None, None],
                    scaling=options.scaling,
                    softcap=options.softcap,
                    attention_sinks=sinks,
                    impl=self.impl,
                )
                seen = Observation(weights, lse, kept.votes, kept.positions, self.lengths[:, None] - 1)
                kept.stats = importance.observe(kept.stats, seen)
        return out.to(query.dtype).reshape(self.batch_size, -1, 1, out.shape[-1])

    def attend_past(self, query: Tensor, *, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attend to what is kept, as a partial result."""
        kept = self.kept
        mask = kept.votes[:, None, None]
        return partial_attention(query, kept.keys, kept.values, mask, scaling=scaling, softcap=softcap, impl=self.impl)

    def crop(self, counts: Tensor) -> None:
        """Forget the last tokens; what was dropped before does not come back, what was merged stays."""
        self.lengths = self.lengths - counts.repeat_interleave(self.num_kv_heads).to(self.lengths.device)
        self.kept.crop(self.lengths)
        self._look_around()

    @property
    def crops_exactly(self) -> bool:
        """No: what was dropped does not come back."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.lengths.device

    def _blank(self, batch_size: int) -> Self:
        """With as many slots."""
        state, num_rows = copy(self), batch_size * self.num_kv_heads
        state.kept, state.lengths = self.kept.blank(num_rows), self.lengths.new_zeros(num_rows)
        state.limits = torch.full_like(state.lengths, self.parts.budget)
        state._look_around()
        return state

    def _put(self, row: int, other: "EvictionLayer", other_row: int) -> None:
        """Copy what is kept."""
        mine, others = self.slice_of(row), other.slice_of(other_row)
        self.kept.put_rows(mine, other.kept, others)
        self.lengths[mine], self.limits[mine] = other.lengths[others], other.limits[others]
        self._look_around()

    def _clear(self, row: int) -> None:
        """Empty its slots."""
        mine = self.slice_of(row)
        self.kept.clear_rows(mine)
        self.lengths[mine], self.limits[mine] = 0, self.parts.budget
        self._look_around()

    def _look_around(self) -> None:
        self.steps_to_full = int((self.limits - self.kept.counts).min())

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        rows = self.rows_of_batch(index)
        self.kept.select_rows(rows)
        self.lengths, self.limits = self.lengths.index_select(0, rows), self.limits.index_select(0, rows)
        self.batch_size = len(index)
        self._look_around()

    def tiers(self) -> Tiers:
        """What is kept is resident; nothing is anywhere else."""
        kept, seen, nothing = self.kept, int(self.lengths.sum()), Tier(0, 0)
        size = kept.num_bytes + self.lengths.nbytes + self.limits.nbytes
        row_size = kept.rows.shape[2] * kept.rows.element_size()
        return Tiers(Tier(int(kept.counts.sum()), size), nothing, nothing, Tier(seen, seen * row_size))

    def attended_positions(self) -> Tensor:
        """What is kept; a token that others were merged into counts as itself."""
        return self.kept.positions

    @property
    def traffic(self) -> Traffic:
        """Nothing moves."""
        return Traffic()

    def check_integrity(self) -> None:
        """No token is doubled, no row is over its limit, and an empty slot takes no part."""
        kept, parts, in_use = self.kept, self.parts, self.held
        assert bool((kept.counts <= self.limits)[in_use].all())
        assert not is_readable(self.lengths) or self.steps_to_full <= int((self.limits - kept.counts).min())
        for each, length in enumerate(self.lengths.where(in_use, 1).tolist()):
            held = kept.positions[each][kept.positions[each] >= 0]
            assert held.unique().numel() == held.numel()
            assert bool((held < length).all())
        occupied = kept.positions >= 0
        tokens = kept.votes.shape[1] - kept.with_rest
        assert bool(((kept.votes > -torch.inf) == occupied)[:, :tokens].all())
        if parts.merging.compensates:
            assert bool((kept.num_rest == self.lengths - kept.counts)[in_use].all())
            torch.testing.assert_close(kept.votes[:, -1].exp(), kept.num_rest.float())
