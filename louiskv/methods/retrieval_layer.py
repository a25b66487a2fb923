"""The retrieval loop: units in a pool, an index and a resident set on the device, and what happens at each step."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from louiskv.methods.ahead import Ahead
from louiskv.methods.base import AttentionOptions, Begun, KVLayer
from louiskv.methods.look import Look
from louiskv.methods.pace import Pace
from louiskv.methods.parts import Parts
from louiskv.methods.retrieval_integrity import check_retrieval
from louiskv.methods.retrieval_window import Leaving, admit, take_back
from louiskv.ops.attention import Chosen, decode_attention, merge_attention, partial_attention
from louiskv.ops.branching import makes_branches, only_if
from louiskv.ops.ragged import is_readable, left_aligned, may_hold, take_rows, width_of
from louiskv.state import Held
from louiskv.store.background import Background
from louiskv.store.device import Change, ResidentSet
from louiskv.store.pool import Pool
from louiskv.store.transfer import Traffic, Transfer
from louiskv.telemetry import Tier, Tiers
from louiskv.units.index import UnitIndex
from louiskv.units.segments import Cuts

# Tokens of each row that the device holds at once while a later prompt attends to the whole pool.
PAST_CHUNK = 4096


class RetrievalLayer(KVLayer):
    """One layer: every token is a sink, in the window, or in one unit of the pool.

    Attributes:
        resident: Sinks, window and retrieved tokens, on the device.
        index: What the device keeps of every unit.
        pool: Keys and values of every unit.
        cuts: Where the window is cut into units.
        pace: When windows are full.
        ahead: The selection for the next step, if the trigger is late.
        taking_in: A prompt that is being taken in.
    """

    resident: ResidentSet
    index: UnitIndex
    pool: Pool
    cuts: Cuts
    transfer: Transfer
    ahead: Ahead
    taking_in: Background[None]

    def __init__(self, parts: Parts, impl: str | None = None) -> None:
        super().__init__(impl)
        self.parts = parts
        self.trigger = parts.trigger.start(impl)
        self.pace = Pace.of(parts)
        self._begun = False
        self._leaves = False

    def absorb(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        """Take in a prompt: its newest tokens stay in the window; what no longer fits there becomes units.

        On a GPU beside the next layer: at no time do more than two layers have all their keys and values on the device.
        """
        if not self._begun:
            self._begin(keys, values)
        self._land()
        if is_readable(keys):
            self._take_in(keys, values, valid)
        else:
            self.taking_in.take_turn(partial(self._take_in, keys, values, valid))

    def _take_in(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        rows = torch.cat([keys, values], dim=-1).flatten(0, 1)
        resident, units = self.resident, self.parts.units
        counts = torch.full_like(resident.lengths, rows.shape[1])
        if valid is not None:
            order, counts = left_aligned(valid.repeat_interleave(self.num_kv_heads, dim=0))
            rows = take_rows(rows, order)
        leaving = admit(resident, rows, counts, self.parts.prompt_window, units)
        if leaving.rows.shape[1]:
            self._group_prompt(leaving)
        self.cuts.cut_tail(resident.window_start, resident.lengths, units.leaves_by)
        self._start_over()

    def _begin(self, keys: Tensor, values: Tensor) -> None:
        num_rows = keys.shape[0] * keys.shape[1]
        key_dim, value_dim, dtype, device = keys.shape[-1], values.shape[-1], keys.dtype, keys.device
        parts = self.parts
        sizes = (parts.num_sinks, parts.window, parts.num_retrieved + parts.num_spare)
        coding = parts.new_coding(num_rows, key_dim, value_dim, dtype, device)
        self.pool = Pool(num_rows, coding, device, parts.store)
        self.resident = ResidentSet(num_rows, *sizes, key_dim, value_dim, dtype, device, self.pool.in_place)
        self.index = parts.new_index(num_rows, device)
        self.cuts = Cuts(parts.output.runs(parts.window), num_rows, parts.num_sinks, parts.window, device)
        self.transfer = Transfer(device)
        self.telemetry.selected.stands_in(self.transfer.chosen, 0)
        self.telemetry.missed.stands_in(self.transfer.chosen, 1)
        self.ahead, self.taking_in = Ahead(device), Background(device)
        self._begun = True

    def _group_prompt(self, leaving: Leaving) -> None:
        rows, positions, counts = leaving
        clock, device = self.telemetry.clock, rows.device
        with clock.time("clustering", device):
            order, sizes = self.parts.group_prompt(rows[..., : self.resident.key_dim], counts, self.impl)
            rows = take_rows(rows, order)
        with clock.time("offload", device):
            begin, held = self.transfer.offload(self.pool, rows, positions.gather(1, order), counts)
            self._note_coding(rows, held, counts)
        with clock.time("clustering", device):
            self.index.append(*self._units(begin, sizes, held))

    @property
    def waits_for_nothing(self) -> bool:
        """Yes."""
        return True

    def _begin_step(self) -> Begun:
        """Where windows may be full, see to it that their oldest runs have a place; what waits for a thread does so."""
        self._wait_for_prompt()
        if is_readable(self.resident.lengths):
            self._land()
        self._leaves, grown = self.pace.step(), False
        if self._leaves:
            grown = self.reserve(0)
            self.pace.leave()
        return Begun(grown, self._leaves)

    def _append(self, keys: Tensor, values: Tensor) -> None:
        """Take in one token of each sequence.

        Before that, what was fetched ahead comes into its slots, and the oldest run of a full window leaves.
        """
        self._land()
        if self._leaves:
            with self.telemetry.clock.time("offload", keys.device):
                self._make_room()
        self.resident.append(keys.flatten(0, 2), values.flatten(0, 2), self.impl)

    def _make_room(self) -> None:
        """Move the oldest run of every full window to the pool; it stays resident as far as slots are free.

        What is summarised and what becomes resident is what the pool holds, and not what came: so it does not matter
        whether a token was in the window a moment ago.
        """
        resident, parts, impl = self.resident, self.parts, self.impl
        most = parts.window - self.pace.stride
        counts = self.cuts.oldest_size(resident.window_start, resident.lengths, most, impl)
        if may_hold(counts):
            rows, positions = resident.take(width_of(counts, self.pace.longest_run), impl)
            sizes = parts.output.sizes_in_order(counts, rows.shape[1])
            if sizes is None:
                order, sizes = parts.output.group(rows[..., : resident.key_dim], counts, impl)
                rows, positions = take_rows(rows, order), positions.gather(1, order)
            begin, held = self.transfer.offload_few(self.pool, rows, positions, counts, impl)
            self._note_coding(rows, held, counts)
            self.index.append_few(*self._units(begin, sizes, held), impl=impl)
            self.telemetry.segments.add(sizes, self.pace.longest_run)
            resident.release(counts, impl)
            resident.keep(begin, counts, held, parts.room(resident, impl), parts.num_spare, impl)
        if is_readable(counts):
            self.pace.left(resident.window_room(), self.index.counts)

    def reserve(self, num_steps: int) -> bool:
        """Make room for so many tokens more, so that taking them in allocates nothing; whether there was too little."""
        self._wait_for_prompt()
        tokens = self.pace.longest + num_steps - self.parts.num_sinks
        in_pool = self.pool.reserve(tokens)
        in_index = self.index.reserve(self.pace.units_after(num_steps + self.pace.longest_run), tokens)
        return in_pool or in_index

    def _note_coding(self, rows: Tensor, held: Tensor, counts: Tensor) -> None:
        if self.parts.pool_bits is not None:
            self.telemetry.coding_error.add(rows, held, self.resident.key_dim, counts)

    def _units(
        self, begin: Tensor, sizes: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor | None]:
        """What the index is told of units of sizes [N, U], whose tokens [N, T, Dk + Dv] begin in the pool at [N]."""
        keys, values = rows.tensor_split([self.resident.key_dim], dim=-1)
        summaries, details = self.parts.summarise(keys, values, sizes)
        # Where there is one, it begins where they all do.
        offsets = begin[:, None] if sizes.shape[1] == 1 else begin[:, None] + sizes.cumsum(1) - sizes
        return offsets, sizes, summaries, details

    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        """Retrieve where the trigger fires, then attend to what is resident, and by estimate to the rest."""
        clock, grouped, parts = self.telemetry.clock, self.group(query), self.parts
        attention_sinks = options.sinks_by_row(self.batch_size, self.num_kv_heads)
        look = parts.look(self.index, self.resident, grouped, options.scaling, attention_sinks, self.impl)
        with clock.time("selection", query.device):
            fired = self.trigger.fire(query[:, :, 0], self.num_kv_heads, look if self._has_units else None)
            self.telemetry.record(fired, self.trigger.ahead, self.trigger.similarity, self.impl)
            fire = fired.flatten()
            if not parts.estimate and self.trigger.ahead is None:
                look.where = fire
        if may_hold(fire):
            self._at_boundary(look, fired)
        rest = None
        if self._has_units:
            if parts.estimate:
                with clock.time("estimate", query.device):
                    rest = look.rest(parts.max_estimated)
            if self.trigger.ahead is not None and may_hold(self.trigger.ahead):
                self._start_ahead(look, self.trigger.ahead.flatten())
        in_place = self._has_units and self.resident.in_place
        with clock.time("attention", query.device):
            out = decode_attention(
                grouped,
                self.resident.keys,
                self.resident.values,
                self.resident.bias,
                scaling=options.scaling,
                softcap=options.softcap,
                attention_sinks=attention_sinks,
                chosen=Chosen(self.pool.rows, self.resident.slot_place) if in_place else None,
                rest=rest,
                impl=self.impl,
            )
        return out.view(self.batch_size, -1, 1, out.shape[-1])

    @property
    def _has_units(self) -> bool:
        return len(self.index.summaries) > 0 and self.index.sizes.shape[1] > 0

    def _at_boundary(self, look: Look, fired: Tensor) -> None:
        """Cut the output, and retrieve, where `fired` [B, Hkv]."""
        fire = fired.flatten()
        with self._branch(look, fire):
            self.cuts.cut(fire, self.resident.lengths, self.impl)
            if self._has_units:
                self._retrieve(look, fire)
                self.trigger.retrieved(fired, look)

    @contextmanager
    def _branch(self, look: Look, fire: Tensor) -> Iterator[None]:
        """In a graph, leave out what is inside where nothing fires, if ever nothing does."""
        if self.parts.trigger.gap == 1 or not makes_branches():
            yield
            return
        if self.parts.estimate and self._has_units:
            look.needed_by_rest()
        held, seen = Held([self]), dict(vars(look))
        with self.telemetry.clock.as_one("selection", fire.device), only_if(fire):
            yield
            settled = held.settle()
        assert settled, "a retrieval has changed the shapes of its state"
        # What was computed inside is not there when nothing fires; and what is resident may be another.
        vars(look).clear()
        vars(look).update(seen)
        look.forget_resident()

    def _retrieve(self, look: Look, where: Tensor) -> None:
        """Select again in rows `where` [N], and fetch what is missing."""
        with self.telemetry.clock.time("selection", look.query.device):
            wanted = self.parts.select(look)
            change = self.resident.change(wanted, self.impl, where=where, counts=self.transfer.chosen)
            look.forget_resident()
        with self.telemetry.clock.time("fetch", look.query.device):
            self.transfer.fetch(self.pool, change, self.resident.retrieved, self.impl)

    def _start_ahead(self, look: Look, where: Tensor) -> None:
        """Select and fetch for the next step beside this one, changing nothing yet.

        This step must have asked the look for all that it needs: what is computed beside it is of another stream.
        """
        clock, device = self.telemetry.clock, where.device

        def select(out: Tensor) -> Change:
            with clock.time("ahead", device):
                wanted, counts = self.parts.select(look), self.transfer.chosen
                return self.resident.change_to(wanted, self.impl, where=where, counts=counts, out=out)

        def fetch(change: Change, rows: Tensor) -> None:
            with clock.time("ahead", device):
                self.transfer.fetch(self.pool, change, rows, self.impl)

        self.ahead.start(self.resident, select, fetch)

    def catch_up(self) -> None:
        """Let what follows wait for what is fetched ahead."""
        if self._begun:
            self.ahead.catch_up()

    def _land(self) -> None:
        """Wait for a prompt to be taken in, and put what was fetched ahead into its slots."""
        self._wait_for_prompt()
        if self._begun and self.ahead.pending:
            with self.telemetry.clock.time("fetch", self.resident.rows.device):
                self.ahead.land(self.resident, self.impl)

    def _wait_for_prompt(self) -> None:
        if self._begun and self.taking_in.busy:
            self.taking_in.collect()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of, once the prompt is in, and what was fetched ahead."""
        self._wait_for_prompt()
        if self._begun:
            self.ahead.wait()
        return vars(self)

    def attend_past(self, query: Tensor, *, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attend to every token: sinks and window where they lie, the pool brought over in chunks."""
        self._land()
        resident = self.resident
        always = self.parts.num_sinks + self.parts.window
        attend = partial(partial_attention, query, scaling=scaling, softcap=softcap, impl=self.impl)
        occupied = resident.bias[:, :, None, :always] == 0
        out, lse = attend(resident.keys[:, :always], resident.values[:, :always], occupied)
        for rows, present in self.transfer.read(self.pool, PAST_CHUNK):
            keys, values = rows.tensor_split([resident.key_dim], dim=-1)
            out, lse = merge_attention(out, lse, *attend(keys, values, present[:, None, None]))
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
        self.cuts.crop(end)
        self._start_over()

    def _crop_pool(self, start: Tensor, end: Tensor) -> None:
        """Take the tokens from `start` [N] on out of the pool, those before `end` [N] back into the window."""
        resident, pool = self.resident, self.pool
        sizes = take_back(resident, pool, self.transfer, self.index.sizes, start, end)
        device = resident.rows.device
        self.index = self.parts.new_index(len(sizes), device)
        self.index.append(*self._units(torch.zeros_like(pool.lengths), sizes.to(device), pool.decoded().to(device)))

    def _start_over(self) -> None:
        """Begin with the window as it lies: what the trigger has seen is over."""
        self.trigger.reset()
        self._look_around()

    def _look_around(self) -> None:
        self.pace.start(self.resident.lengths, self.resident.window_room(), self.index.counts)

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        self._land()
        rows = self.rows_of_batch(index)
        self.transfer.settle()
        for part in (self.resident, self.index, self.pool, self.cuts):
            part.select_rows(rows)
        self.trigger.select_batch(index)
        self.batch_size = len(index)
        self._look_around()

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
        self._wait_for_prompt()
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
        check_retrieval(self.parts, self.resident, self.index, self.pool)
