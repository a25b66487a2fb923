"""The retrieval loop: units in a pool, an index and a resident set on the device, and what happens at each step."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from louiskv.methods.base import AttentionOptions, KVLayer
from louiskv.methods.look import Look
from louiskv.methods.selecting import select_inside, select_whole
from louiskv.ops.attention import decode_attention, merge_attention, partial_attention
from louiskv.ops.ragged import left_aligned, take_rows
from louiskv.ops.selection import assign_slots
from louiskv.store.background import Background
from louiskv.store.coding import Coding, Exact, FewBits
from louiskv.store.device import ResidentSet
from louiskv.store.pool import Pool
from louiskv.store.transfer import Traffic, Transfer
from louiskv.telemetry import Tier, Tiers
from louiskv.triggers import Trigger
from louiskv.units.base import Units
from louiskv.units.bundles import in_bundles
from louiskv.units.index import Bundles, UnitIndex
from louiskv.units.segments import Cuts
from louiskv.units.summaries import Summary, unit_of_place

# Units that have a summary together, where there are two levels of them.
BUNDLE_SIZE = 16

# Tokens of each row that the device holds at once while a later prompt attends to the whole pool.
PAST_CHUNK = 4096


@dataclass(frozen=True)
class Parts:
    """What a retrieval method puts together; `Retrieval` says what each is.

    Attributes:
        num_retrieved: Slots for retrieved tokens.
        num_spare: Slots in which a run that left the window waits for the selection of the same step.
        taken_by: A selection takes tokens in multiples of this.
        output: Units of outputs.
    """

    budget: int
    num_sinks: int
    window: int
    prompt_window: int
    num_retrieved: int
    num_spare: int
    taken_by: int
    units: Units
    output: Units
    summary: Summary
    reduce: str
    scaled: bool
    trigger: Trigger
    store: str
    pool_bits: int | None
    recent_units: int
    hold: float
    oversample: int
    estimate: bool
    max_estimated: int | None
    max_looked: int | None


class Change(NamedTuple):
    """A selection on its way into the slots.

    Attributes:
        where: [N] rows that have selected.
        place: [N, S] place in the pool of the token in each slot.
        row: [J] rows of the missing tokens.
        slot: [J] their slots.
        rows: [J, Dk + Dv] what they are.
    """

    where: Tensor
    place: Tensor
    row: Tensor
    slot: Tensor
    rows: Tensor


class RetrievalLayer(KVLayer):
    """One layer: every token is a sink, in the window, or in one unit of the pool.

    Attributes:
        resident: Sinks, window and retrieved tokens, on the device.
        index: What the device keeps of every unit.
        pool: Keys and values of every unit.
        cuts: Where the window is cut into units.
        ahead: The selection for the next step, if the trigger is late.
    """

    resident: ResidentSet
    index: UnitIndex
    pool: Pool
    cuts: Cuts
    transfer: Transfer
    ahead: Background[Change]

    def __init__(self, parts: Parts, impl: str | None = None) -> None:
        super().__init__(impl)
        self.parts = parts
        self.trigger = parts.trigger.start()
        self.steps_to_full = 0
        self._begun = False

    def absorb(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        """Take in a prompt: its newest tokens stay in the window; what no longer fits there becomes units.

        Tokens of the window that the prompt pushes out, an earlier prompt's tail or an earlier answer, are grouped
        with it: to what comes next they are prompt.
        """
        if not self._begun:
            self._begin(keys, values)
        self._land()
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

        first, step = resident.window_start, parts.units.leaves_by
        num_newest = (end - first).clamp(min=0)
        excess = (num_newest - parts.prompt_window).clamp(min=0)
        num_leaving = (-(-excess // step) * step).minimum(num_newest // parts.units.aligned_by * parts.units.aligned_by)
        leaving = first[:, None] + torch.arange(int(num_leaving.max()), device=rows.device)
        self._group_prompt(rows, place_of(leaving), leaving, num_leaving)
        start = first + num_leaving
        staying = start[:, None] + torch.arange(parts.window, device=rows.device)
        resident.place(take_rows(rows, place_of(staying)), staying, staying < end[:, None])
        resident.advance(end, start)
        self.cuts.cut_tail(start, end, step)
        self.trigger.reset()
        self.steps_to_full = int(resident.window_room().min())

    def _begin(self, keys: Tensor, values: Tensor) -> None:
        num_rows = keys.shape[0] * keys.shape[1]
        key_dim, value_dim, dtype, device = keys.shape[-1], values.shape[-1], keys.dtype, keys.device
        parts = self.parts
        sizes = (parts.num_sinks, parts.window, parts.num_retrieved + parts.num_spare)
        self.resident = ResidentSet(num_rows, *sizes, key_dim, value_dim, dtype, device)
        self.index = self._new_index(num_rows)
        coding: Coding = Exact(key_dim + value_dim, dtype)
        if parts.pool_bits is not None:
            coding = FewBits(parts.pool_bits, num_rows, key_dim, value_dim, dtype, device)
        self.pool = Pool(num_rows, coding, device, parts.store)
        self.cuts = Cuts(parts.output.runs(parts.window), num_rows, parts.num_sinks, parts.window, device)
        self.transfer = Transfer(device)
        self.ahead = Background(device)
        self._begun = True

    def _new_index(self, num_rows: int) -> UnitIndex:
        parts = self.parts
        bundles = None if parts.max_looked is None else Bundles(BUNDLE_SIZE, parts.summary)
        return UnitIndex(num_rows, parts.summary.strides, self.resident.rows.device, bundles)

    def _group_prompt(self, rows: Tensor, source: Tensor, positions: Tensor, counts: Tensor) -> None:
        if source.shape[1] == 0:
            return
        clock, key_dim = self.telemetry.clock, self.resident.key_dim
        with clock.time("clustering", rows.device):
            keys = take_rows(rows, source)[..., :key_dim]
            grouping = self.parts.units.group(keys, counts, self.impl)
            if self.index.bundles is not None:
                grouping = in_bundles(keys, grouping, self.index.bundles.size)
            order, sizes = grouping
            rows = take_rows(rows, source.gather(1, order))
        with clock.time("offload", rows.device):
            begin, held = self._offload(rows, positions.gather(1, order), counts)
        with clock.time("clustering", rows.device):
            self.index.append(begin[:, None] + sizes.cumsum(1) - sizes, sizes, *self._summarise(held, sizes))

    def _offload(self, rows: Tensor, positions: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Move tokens to the end of the pool: [N] where they begin there, and what it holds of them.

        What is summarised and what becomes resident is that, and not what came: so it does not matter whether a token
        was in the window a moment ago.
        """
        begin, held = self.transfer.offload(self.pool, rows, positions, counts)
        if self.parts.pool_bits is not None:
            self.telemetry.coding_error.add(rows, held, self.resident.key_dim, counts)
        return begin.to(rows.device), held

    def _summarise(self, rows: Tensor, sizes: Tensor) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """What the index keeps of units of these sizes [N, U], and of their tokens [N, T, Dk + Dv]."""
        keys, values = rows[..., : self.resident.key_dim], rows[..., self.resident.key_dim :]
        summaries = self.parts.summary.build(keys, values, sizes)
        return summaries, self.parts.summary.details(keys, sizes, summaries)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Take in one token of each sequence; where the window is full, its oldest run leaves first."""
        self._land()
        if self.steps_to_full == 0:
            with self.telemetry.clock.time("offload", keys.device):
                self._offload_oldest()
        position = self.resident.append(torch.cat([keys, values], dim=-1).flatten(0, 2))
        self.cuts.append(position)
        self.steps_to_full -= 1

    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        """Retrieve where the trigger fires, then attend to what is resident, and by estimate to the rest."""
        clock, grouped, parts = self.telemetry.clock, self.group(query), self.parts
        attention_sinks = options.sinks_by_row(self.batch_size, self.num_kv_heads)
        look = Look(
            self.index,
            self.resident,
            parts.summary,
            grouped,
            scaling=options.scaling if parts.scaled else 1.0,
            reduce=parts.reduce,
            max_looked=parts.max_looked,
            attention_sinks=attention_sinks,
            impl=self.impl,
        )
        with clock.time("selection", query.device):
            fired = self.trigger.fire(query[:, :, 0], self.num_kv_heads, look if self._has_units else None)
            self._record(fired)
            fire = fired.flatten()
            # On a GPU this waits for the device; the kernels that test `fire` themselves do not.
            retrieve = bool(fire.any())
            if retrieve:
                self.cuts.cut(fire, self.resident.lengths - 1)
        rest = None
        if self._has_units:
            if retrieve:
                self._retrieve(look, fire)
                self.trigger.retrieved(fired, look)
            if parts.estimate:
                with clock.time("estimate", query.device):
                    rest = look.rest(parts.max_estimated)
            if self.trigger.ahead is not None and bool(self.trigger.ahead.any()):
                self._start_ahead(look, self.trigger.ahead.flatten())
        with clock.time("attention", query.device):
            out = decode_attention(
                grouped,
                self.resident.keys,
                self.resident.values,
                self.resident.bias,
                scaling=options.scaling,
                softcap=options.softcap,
                attention_sinks=attention_sinks,
                rest=rest,
                impl=self.impl,
            )
        return out.view(self.batch_size, -1, 1, out.shape[-1])

    @property
    def _has_units(self) -> bool:
        return self.index.sizes.shape[1] > 0

    def _retrieve(self, look: Look, fire: Tensor) -> None:
        """Select again where `fire` [N] says so, and fetch what is missing."""
        with self.telemetry.clock.time("selection", look.query.device):
            change = self._change(look, fire)
        with self.telemetry.clock.time("fetch", look.query.device):
            self._apply(change())

    def _start_ahead(self, look: Look, where: Tensor) -> None:
        """Select and fetch for the next step in the background, changing nothing yet.

        This step must have asked the look for all that it needs: what the background computes is of another stream.
        """

        def prepare() -> Change:
            with self.telemetry.clock.time("ahead", look.query.device):
                return self._change(look, where)()

        self.ahead.start(prepare)

    def _land(self) -> None:
        """Put what was fetched ahead into its slots."""
        if self._begun and self.ahead.busy:
            with self.telemetry.clock.time("fetch", self.resident.rows.device):
                self._apply(self.ahead.collect())

    def _select(self, look: Look) -> Tensor:
        """[N, S] places in the pool of the tokens that the queries choose, -1 for none."""
        parts, slot_place, room = self.parts, self.resident.slot_place, self._room()
        if parts.oversample:
            return select_inside(look, room, slot_place, parts.hold, parts.oversample)
        return select_whole(look, room, slot_place, parts.hold, parts.recent_units)

    def _room(self) -> Tensor:
        """[N] tokens that may be retrieved: what the window leaves of the budget until the trigger fires again."""
        resident, parts, gap = self.resident, self.parts, self.parts.trigger.gap
        if gap is None:
            return torch.full_like(resident.lengths, parts.num_retrieved)
        in_window = (resident.lengths - resident.window_start).clamp(min=0)
        room = parts.budget - parts.num_sinks - (in_window + gap - 1).clamp(max=parts.window)
        return (room // parts.taken_by * parts.taken_by).clamp(max=parts.num_retrieved)

    def _change(self, look: Look, where: Tensor) -> "partial[Change]":
        """What must change in the slots for a new selection in rows `where` [N]; calling it fetches what is missing."""
        before = self.resident.slot_place
        wanted = torch.where(where[:, None], self._select(look), before)
        place, missing = assign_slots(before, wanted, impl=self.impl)
        row, slot = missing.nonzero(as_tuple=True)

        def fetch() -> Change:
            return Change(where, place, row, slot, self.transfer.gather(self.pool, row, place[row, slot]))

        return partial(fetch)

    def _apply(self, change: Change) -> None:
        self._count(change)
        self._fill(change.place, change.row, change.slot, change.rows)

    def _count(self, change: Change) -> None:
        """Count what a selection took, and what of it was resident already."""
        selected = int(((change.place >= 0) & change.where[:, None]).sum())
        self.telemetry.selected_tokens += selected
        self.telemetry.hit_tokens += selected - len(change.row)

    def _fill(self, place: Tensor, row: Tensor, slot: Tensor, rows: Tensor) -> None:
        """Put tokens [J, Dk + Dv] into slots [J] of rows [J]; from then on those of the places [N, S] are resident."""
        self.resident.fill_retrieved(row, slot, rows)
        self.resident.assign(place)
        self.index.count_resident(place)

    def _offload_oldest(self) -> None:
        """Move the oldest run of every full window to the pool; it stays resident as far as slots are free."""
        resident, index, parts = self.resident, self.index, self.parts
        start, key_dim = resident.window_start, resident.key_dim
        counts = self.cuts.oldest_size(start, resident.lengths) * (resident.window_room() <= 0)
        positions = start[:, None] + torch.arange(int(counts.max()), device=start.device)
        rows = take_rows(resident.rows, resident.slots_of(positions))
        order, sizes = parts.output.group(rows[..., :key_dim], counts, self.impl)
        rows, positions = take_rows(rows, order), positions.gather(1, order)
        begin, held = self._offload(rows, positions, counts)
        index.append(begin[:, None] + sizes.cumsum(1) - sizes, sizes, *self._summarise(held, sizes))
        self.telemetry.count_segments(sizes)
        resident.advance(resident.lengths, start + counts)

        room = self._room() + parts.num_spare - (resident.slot_place >= 0).sum(1)
        token = torch.arange(rows.shape[1], device=start.device)
        stays = (begin[:, None] + token).where(token < counts.minimum(room)[:, None], -1)
        place, new = assign_slots(
            resident.slot_place, torch.cat([resident.slot_place.long(), stays], dim=1), impl=self.impl
        )
        row, slot = new.nonzero(as_tuple=True)
        self._fill(place, row, slot, held[row, place[row, slot] - begin[row]])
        self.steps_to_full = int(resident.window_room().min())

    def _record(self, fired: Tensor) -> None:
        self.telemetry.fired.append(fired)
        if self.trigger.ahead is not None:
            self.telemetry.ahead.append(self.trigger.ahead)
        if self.trigger.similarity is not None:
            self.telemetry.similarity.append(self.trigger.similarity)

    def attend_past(self, query: Tensor, *, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attend to every token: sinks and window where they lie, the pool brought over in chunks."""
        self._land()
        resident = self.resident
        always = self.parts.num_sinks + self.parts.window
        attend = partial(partial_attention, query, scaling=scaling, softcap=softcap, impl=self.impl)
        occupied = resident.bias[:, :, None, :always] == 0
        out, lse = attend(resident.keys[:, :always], resident.values[:, :always], occupied)
        for rows, present in self.transfer.read(self.pool, PAST_CHUNK):
            keys, values = rows[..., : resident.key_dim], rows[..., resident.key_dim :]
            part = attend(keys, values, present[:, None, None])
            out, lse = merge_attention(out, lse, *part)
        return out, lse

    def crop(self, counts: Tensor) -> None:
        """Forget the last tokens; what was in the pool is taken out of its units.

        Where units are aligned, what is left of the last one comes back into the window.
        """
        self._land()
        resident, parts = self.resident, self.parts
        end = resident.lengths - counts.repeat_interleave(self.num_kv_heads).to(resident.lengths.device)
        start = torch.minimum(resident.window_start, end.clamp(min=parts.num_sinks))
        reached = start < resident.window_start
        if bool(reached.any()):
            behind = (start - parts.num_sinks) // parts.units.aligned_by * parts.units.aligned_by
            start = torch.where(reached, parts.num_sinks + behind, start)
            self._crop_pool(torch.where(reached, start, resident.lengths), end)
        resident.advance(end, start)
        self.cuts.crop(start, end)
        self.trigger.reset()
        self.steps_to_full = int(resident.window_room().min())

    def _crop_pool(self, start: Tensor, end: Tensor) -> None:
        """Take the tokens from `start` [N] on out of the pool, those before `end` [N] back into the window."""
        resident, old, pool = self.resident, self.index, self.pool
        self.transfer.settle()
        present = torch.arange(pool.rows.shape[1], device=pool.device) < pool.lengths[:, None]
        where = present & (pool.positions >= start.to(pool.device)[:, None])
        row, place = (where & (pool.positions < end.to(pool.device)[:, None])).nonzero(as_tuple=True)
        position = pool.positions[row, place].long().to(end.device)
        resident.put(row.to(end.device), position, self.transfer.gather(pool, row, place))

        unit = unit_of_place(old.sizes.to(pool.device).long(), pool.rows.shape[1])
        keep = pool.keep_before(start)
        sizes = torch.zeros(len(end), old.sizes.shape[1] + 1, dtype=torch.int64, device=pool.device)
        sizes = sizes.scatter_add_(1, unit, keep.long())[:, :-1]
        occupied, _ = left_aligned(sizes > 0)
        sizes = sizes.gather(1, occupied)
        device = resident.rows.device
        self.index = self._new_index(len(end))
        summaries, details = self._summarise(pool.decoded(), sizes)
        offsets = (sizes.cumsum(1) - sizes).to(device)
        self.index.append(
            offsets,
            sizes.to(device),
            tuple(part.to(device) for part in summaries),
            None if details is None else details.to(device),
        )
        resident.forget_retrieved()

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        self._land()
        rows = self.rows_of_batch(index)
        self.transfer.settle()
        for part in (self.resident, self.index, self.pool, self.cuts):
            part.select_rows(rows)
        self.trigger.select_batch(index)
        self.batch_size = len(index)
        self.steps_to_full = int(self.resident.window_room().min())

    def tiers(self) -> Tiers:
        """What lies where."""
        self._land()
        resident, index, pool = self.resident, self.index, self.pool
        in_pool, seen = Tier(int(pool.lengths.sum()), pool.num_bytes), int(resident.lengths.sum())
        slots = resident.num_bytes + self.cuts.num_bytes + pool.coding.num_bytes
        on_host = pool.tier == "host"
        tokens = int(resident.num_resident.sum()) if on_host else seen
        return Tiers(
            resident=Tier(tokens, slots + (0 if on_host else in_pool.bytes)),
            index=Tier(int(index.counts.sum()), index.num_bytes),
            host=in_pool if on_host else Tier(0, 0),
            seen=Tier(seen, seen * resident.token_size),
        )

    def attended_positions(self) -> Tensor:
        """What lies in the slots; a selection on its way is not there yet."""
        resident, pool = self.resident, self.pool
        always = resident.positions()
        if not self._has_units:
            return always
        self.transfer.settle()
        place = resident.slot_place.clamp(min=0).long()
        held = pool.positions.gather(1, place.to(pool.device)).to(always)
        return torch.cat([always, held.where(resident.slot_place >= 0, -1)], dim=1)

    @property
    def traffic(self) -> Traffic:
        """What has moved between the tiers."""
        self._land()
        return self.transfer.traffic

    def check_integrity(self) -> None:
        """Every token is in exactly one place, and what is resident is what the pool holds."""
        self._land()
        self.transfer.settle()
        resident, index, pool = self.resident, self.index, self.pool
        positions, pool_lengths = pool.positions.cpu(), pool.lengths.cpu()
        sizes, counts = index.sizes.long().cpu(), index.counts.cpu()
        held = torch.arange(sizes.shape[1]) < counts[:, None]
        assert bool(((sizes > 0) == held).all())
        assert bool((index.offsets.cpu() == sizes.cumsum(1) - sizes)[held].all())
        assert bool((sizes.sum(1) == pool_lengths).all())
        assert torch.equal(index.num_tokens.cpu(), pool_lengths)
        if index.summaries:
            # Where they were built: a sum in another order may round to another code.
            built, details = self._summarise(pool.decoded().to(resident.rows.device), index.sizes)
            for part, expected, stride in zip(index.summaries, built, index.strides, strict=True):
                used = torch.arange(part.shape[1]) < (counts // stride)[:, None]
                torch.testing.assert_close(part.cpu()[used], expected.cpu()[used])
            if details is not None:
                assert index.details is not None
                longest = int(pool_lengths.max())
                used = torch.arange(longest) < pool_lengths[:, None]
                kept, expected = (each[:, :longest].cpu()[used] for each in (index.details, details))
                assert torch.equal(kept, expected)

        length, start = resident.lengths.cpu(), resident.window_start.cpu()
        assert bool(((length - start) <= self.parts.window).all())
        for each in range(len(length)):
            sinks = torch.arange(min(int(length[each]), self.parts.num_sinks))
            window = torch.arange(int(start[each]), max(int(start[each]), int(length[each])))
            places = torch.cat([sinks, window, positions[each, : int(pool_lengths[each])].long()])
            assert places.sort().values.tolist() == list(range(int(length[each])))

        row, slot = (resident.slot_place >= 0).nonzero(as_tuple=True)
        place = resident.slot_place[row, slot].long()
        assert bool((place < pool_lengths.to(place.device)[row]).all())
        assert torch.stack([row, place]).unique(dim=1).shape[1] == len(row)
        counted = torch.zeros_like(index.sizes)
        if len(row):
            unit = index.unit_of(resident.slot_place.clamp(min=0))[row, slot]
            counted.index_put_((row, unit), torch.ones_like(unit, dtype=counted.dtype), accumulate=True)
        assert torch.equal(index.resident, counted)
        expected = pool.coding.decode(pool.take(row, place), row).cpu()
        retrieved = resident.rows[:, self.parts.num_sinks + self.parts.window :]
        torch.testing.assert_close(retrieved[row, slot].cpu(), expected, rtol=0, atol=0)
