"""The retrieval loop: units on the host, an index and a resident set on the device, and what happens at each step."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from louiskv.methods.base import AttentionOptions, KVLayer
from louiskv.ops.attention import decode_attention, merge_attention, partial_attention
from louiskv.ops.ragged import left_aligned, take_rows
from louiskv.ops.selection import assign_slots, score_units, select_units
from louiskv.store.device import ResidentSet
from louiskv.store.host import HostPool
from louiskv.store.transfer import Traffic, Transfer
from louiskv.telemetry import Tier, Tiers
from louiskv.triggers import Trigger
from louiskv.units.clusters import Clusters
from louiskv.units.index import UnitIndex, mean_keys, unit_of_place
from louiskv.units.segments import SegmentCuts, Segments

# Tokens of each row that the device holds at once while a later prompt attends to the whole pool.
PAST_CHUNK = 4096


@dataclass(frozen=True)
class Parts:
    """What a retrieval method puts together.

    Attributes:
        num_sinks: First tokens, always resident.
        window: Newest tokens, always resident.
        num_retrieved: Tokens that a selection may fill.
        clusters: Units of prompts.
        segments: Units of outputs.
        trigger: When to retrieve.
    """

    num_sinks: int
    window: int
    num_retrieved: int
    clusters: Clusters
    segments: Segments
    trigger: Trigger


class RetrievalLayer(KVLayer):
    """One layer: every token is a sink, in the window, or in one unit of the host pool.

    Attributes:
        resident: Sinks, window and retrieved tokens, on the device.
        index: What the device keeps of every unit.
        pool: Keys and values of every unit, on the host.
        cuts: Where the window is cut into segments.
    """

    resident: ResidentSet
    index: UnitIndex
    pool: HostPool
    cuts: SegmentCuts
    transfer: Transfer

    def __init__(self, parts: Parts, impl: str | None = None) -> None:
        super().__init__(impl)
        self.parts = parts
        self.trigger = parts.trigger.start()
        self.steps_to_full = 0
        self._begun = False

    def absorb(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        """Take in a prompt: its newest tokens stay in the window; what no longer fits there becomes clusters.

        Tokens of the window that the prompt pushes out, an earlier prompt's tail or an earlier answer, are clustered
        with it: to what comes next they are prompt.
        """
        if not self._begun:
            self._begin(keys, values)
        rows = torch.cat([keys, values], dim=-1).flatten(0, 1)
        counts = torch.full_like(self.resident.lengths, rows.shape[1])
        if valid is not None:
            order, counts = left_aligned(valid.repeat_interleave(self.num_kv_heads, dim=0))
            rows = take_rows(rows, order)
        old, parts, resident = self.resident.lengths, self.parts, self.resident
        end = old + counts
        token = torch.arange(rows.shape[1], device=rows.device)
        position = old[:, None] + token
        resident.place(rows, position, (position < parts.num_sinks) & (token < counts[:, None]))

        # Behind the sinks the newest tokens by position: those of the window, then those of the prompt.
        ring = resident.rows[:, parts.num_sinks : parts.num_sinks + parts.window]
        rows = torch.cat([ring, rows], dim=1)

        def place_of(position: Tensor) -> Tensor:
            held = (position - parts.num_sinks) % parts.window
            new = (parts.window + position - old[:, None]).clamp(max=rows.shape[1] - 1)
            return torch.where(position < old[:, None], held, new)

        first, unit_size = resident.window_start, parts.clusters.unit_size
        num_newest = (end - first).clamp(min=0)
        excess = (num_newest - parts.window).clamp(min=0)
        num_leaving = (-(-excess // unit_size) * unit_size).minimum(num_newest)
        leaving = first[:, None] + torch.arange(int(num_leaving.max()), device=rows.device)
        self._cluster(rows, place_of(leaving), leaving, num_leaving)
        start = first + num_leaving
        staying = start[:, None] + torch.arange(parts.window, device=rows.device)
        resident.place(take_rows(rows, place_of(staying)), staying, staying < end[:, None])
        resident.advance(end, start)
        self.cuts.cut_evenly(start, end, unit_size)
        self.trigger.reset()
        self.steps_to_full = int(resident.window_room().min())

    def _begin(self, keys: Tensor, values: Tensor) -> None:
        num_rows = keys.shape[0] * keys.shape[1]
        key_dim, value_dim, dtype, device = keys.shape[-1], values.shape[-1], keys.dtype, keys.device
        parts = self.parts
        sizes = (parts.num_sinks, parts.window, parts.num_retrieved)
        self.resident = ResidentSet(num_rows, *sizes, key_dim, value_dim, dtype, device)
        self.index = UnitIndex(num_rows, key_dim, dtype, device)
        self.pool = HostPool(num_rows, key_dim + value_dim, dtype, device)
        self.cuts = SegmentCuts(parts.segments, num_rows, parts.num_sinks, parts.window, device)
        self.transfer = Transfer(device)
        self._begun = True

    def _cluster(self, rows: Tensor, source: Tensor, positions: Tensor, counts: Tensor) -> None:
        if source.shape[1] == 0:
            return
        clock, key_dim = self.telemetry.clock, self.resident.key_dim
        with clock.time("clustering", rows.device):
            order, sizes = self.parts.clusters.group(take_rows(rows, source)[..., :key_dim], counts, self.impl)
            rows = take_rows(rows, source.gather(1, order))
            summaries = mean_keys(rows[..., :key_dim], sizes)
        with clock.time("offload", rows.device):
            begin = self.transfer.offload(self.pool, rows, positions.gather(1, order), counts)
            offsets = begin.to(sizes.device)[:, None] + sizes.cumsum(1) - sizes
            self.index.append(offsets, sizes, summaries)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Take in one token of each sequence; where the window is full, its oldest segment leaves first."""
        if self.steps_to_full == 0:
            with self.telemetry.clock.time("offload", keys.device):
                self._offload_oldest()
        position = self.resident.append(torch.cat([keys, values], dim=-1).flatten(0, 2))
        self.cuts.append(position)
        self.steps_to_full -= 1

    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        """Retrieve where the trigger fires, then attend to what is resident."""
        clock, grouped = self.telemetry.clock, self.group(query)
        with clock.time("selection", query.device):
            fired = self.trigger.fire(query[:, :, 0], self.num_kv_heads)
            self._record(fired)
            fire = fired.flatten()
            # On a GPU this waits for the device; the kernels that test `fire` themselves do not.
            retrieve = bool(fire.any())
            if retrieve:
                self.cuts.cut(fire, self.resident.lengths - 1)
        if retrieve and self.index.sizes.shape[1] > 0:
            self._retrieve(grouped, fire, options.scaling)
        with clock.time("attention", query.device):
            out = decode_attention(
                grouped,
                self.resident.keys,
                self.resident.values,
                self.resident.bias,
                scaling=options.scaling,
                softcap=options.softcap,
                attention_sinks=options.sinks_by_row(self.batch_size, self.num_kv_heads),
                impl=self.impl,
            )
        return out.view(self.batch_size, -1, 1, out.shape[-1])

    def _retrieve(self, query: Tensor, fire: Tensor, scaling: float) -> None:
        index, resident = self.index, self.resident
        with self.telemetry.clock.time("selection", query.device):
            scores = score_units(query, index.summaries, index.sizes, scaling=scaling, impl=self.impl)
            take = select_units(scores, index.sizes, self.parts.num_retrieved, impl=self.impl)
            self.telemetry.selected_tokens += int((take * fire[:, None]).sum())
            self.telemetry.hit_tokens += int((take.minimum(index.resident) * fire[:, None]).sum())
            take = torch.where(fire[:, None], take, index.resident)
            unit, rank, missing = assign_slots(
                resident.slot_unit, resident.slot_rank, index.resident, take, impl=self.impl
            )
        with self.telemetry.clock.time("fetch", query.device):
            row, slot = missing.nonzero(as_tuple=True)
            place = index.offsets[row, unit[row, slot].long()] + rank[row, slot]
            self.transfer.fetch(self.pool, resident, row, place, slot)
            resident.assign(unit, rank)
            index.resident = take

    def _offload_oldest(self) -> None:
        """Move the oldest segment of every full window to the pool; it stays resident as far as slots are free."""
        resident, index, parts = self.resident, self.index, self.parts
        start = resident.window_start
        full = resident.window_room() <= 0
        sizes = self.cuts.oldest_size(start, resident.lengths) * full
        longest = int(sizes.max())
        positions = start[:, None] + torch.arange(longest, device=start.device)
        rows = take_rows(resident.rows, resident.slots_of(positions))
        begin = self.transfer.offload(self.pool, rows, positions, sizes)
        summaries = mean_keys(rows[..., : resident.key_dim], sizes[:, None])
        added = index.append(begin.to(start.device)[:, None], sizes[:, None], summaries)
        self.telemetry.count_segments(sizes)

        room = parts.num_retrieved - index.resident.sum(1)
        take = index.resident.scatter_add(
            1, added.clamp(max=index.sizes.shape[1] - 1)[:, None], sizes.minimum(room).to(torch.int32)[:, None]
        )
        unit, rank, missing = assign_slots(resident.slot_unit, resident.slot_rank, index.resident, take, impl=self.impl)
        row, slot = missing.nonzero(as_tuple=True)
        resident.fill_retrieved(row, slot, rows[row, rank[row, slot].long()])
        resident.assign(unit, rank)
        index.resident = take
        resident.advance(resident.lengths, start + sizes)
        self.steps_to_full = int(resident.window_room().min())

    def _record(self, fired: Tensor) -> None:
        self.telemetry.fired.append(fired)
        if self.trigger.similarity is not None:
            self.telemetry.similarity.append(self.trigger.similarity)

    def attend_past(self, query: Tensor, *, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attend to every token: sinks and window where they lie, the pool brought over in chunks."""
        resident = self.resident
        always = self.parts.num_sinks + self.parts.window
        attend = partial(partial_attention, query, scaling=scaling, softcap=softcap, impl=self.impl)
        occupied = resident.bias[:, :, None, :always] == 0
        out, lse = attend(resident.keys[:, :always], resident.values[:, :always], occupied)
        for rows, present in self.transfer.read(self.pool, PAST_CHUNK, query.device):
            keys, values = rows[..., : resident.key_dim], rows[..., resident.key_dim :]
            part = attend(keys, values, present[:, None, None])
            out, lse = merge_attention(out, lse, *part)
        return out, lse

    def crop(self, counts: Tensor) -> None:
        """Forget the last tokens; what was in the pool is taken out of its units."""
        resident = self.resident
        end = resident.lengths - counts.repeat_interleave(self.num_kv_heads).to(resident.lengths.device)
        start = torch.minimum(resident.window_start, end.clamp(min=self.parts.num_sinks))
        if bool((start < resident.window_start).any()):
            self._crop_pool(torch.where(start < resident.window_start, end, resident.lengths))
        resident.advance(end, start)
        self.cuts.crop(end)
        self.trigger.reset()
        self.steps_to_full = int(resident.window_room().min())

    def _crop_pool(self, end: Tensor) -> None:
        """Take the tokens from `end` [N] on out of the pool, and rebuild the index over what is left."""
        resident, old = self.resident, self.index
        self.transfer.settle()
        unit = unit_of_place(old.sizes.cpu().long(), self.pool.rows.shape[1])
        keep = self.pool.keep_before(end.cpu())
        sizes = torch.zeros(len(end), old.sizes.shape[1] + 1, dtype=torch.int64)
        sizes.scatter_add_(1, unit, keep.long())
        occupied, _ = left_aligned(sizes > 0)
        sizes = sizes.gather(1, occupied)
        self.index = UnitIndex(len(end), resident.key_dim, resident.rows.dtype, resident.rows.device)
        summaries = mean_keys(self.pool.rows[..., : resident.key_dim], sizes)
        device = resident.rows.device
        self.index.append((sizes.cumsum(1) - sizes).to(device), sizes.to(device), summaries.to(device))
        resident.forget_retrieved()

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        rows = self.rows_of_batch(index)
        self.transfer.settle()
        for part in (self.resident, self.index, self.pool, self.cuts):
            part.select_rows(rows)
        self.trigger.select_batch(index)
        self.batch_size = len(index)

    def tiers(self) -> Tiers:
        """What lies where."""
        resident = Tier(int(self.resident.num_resident.sum()), self.resident.num_bytes + self.cuts.num_bytes)
        index = Tier(int(self.index.counts.sum()), self.index.num_bytes)
        host = Tier(int(self.pool.lengths.sum()), self.pool.num_bytes)
        seen = int(self.resident.lengths.sum())
        return Tiers(resident, index, host, Tier(seen, seen * self.pool.token_size))

    @property
    def traffic(self) -> Traffic:
        """What has moved between the tiers."""
        return self.transfer.traffic

    def check_integrity(self) -> None:
        """Every token is in exactly one place, and what is resident is what the pool holds."""
        self.transfer.settle()
        resident, index, pool = self.resident, self.index, self.pool
        sizes, counts = index.sizes.long().cpu(), index.counts.cpu()
        held = torch.arange(sizes.shape[1]) < counts[:, None]
        assert bool(((sizes > 0) == held).all())
        assert bool((index.offsets.cpu() == sizes.cumsum(1) - sizes)[held].all())
        assert bool((sizes.sum(1) == pool.lengths).all())
        expected = mean_keys(pool.rows[..., : resident.key_dim], sizes)
        torch.testing.assert_close(index.summaries.cpu()[held], expected[held])

        length, start = resident.lengths.cpu(), resident.window_start.cpu()
        assert bool(((length - start) <= self.parts.window).all())
        for each in range(len(length)):
            sinks = torch.arange(min(int(length[each]), self.parts.num_sinks))
            window = torch.arange(int(start[each]), max(int(start[each]), int(length[each])))
            places = torch.cat([sinks, window, pool.positions[each, : int(pool.lengths[each])].long()])
            assert places.sort().values.tolist() == list(range(int(length[each])))

        row, slot = (resident.slot_unit >= 0).nonzero(as_tuple=True)
        unit, rank = resident.slot_unit[row, slot].long(), resident.slot_rank[row, slot]
        assert bool((rank < index.resident[row, unit]).all())
        distinct = torch.stack([row, unit, rank.long()]).unique(dim=1).shape[1]
        assert int(index.resident.sum()) == len(row) == distinct
        expected = pool.take(row, index.offsets[row, unit] + rank)
        retrieved = resident.rows[:, self.parts.num_sinks + self.parts.window :]
        torch.testing.assert_close(retrieved[row, slot].cpu(), expected, rtol=0, atol=0)
        assert int(resident.num_resident.max()) <= resident.rows.shape[1]
