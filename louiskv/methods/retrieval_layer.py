"""The retrieval loop: what happens at each prompt and at each step to units, index and resident set."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from louiskv.methods.base import AttentionOptions, Begun
from louiskv.methods.look import Look
from louiskv.methods.pace import Standing
from louiskv.methods.retrieval_state import RetrievalState
from louiskv.methods.retrieval_window import Leaving, admit, take_back
from louiskv.ops.attention import Chosen, decode_attention
from louiskv.ops.branching import makes_branches, only_if
from louiskv.ops.partial_attention import merge_attention, partial_attention
from louiskv.ops.ragged import counts_of, is_readable, kept_first, may_hold, take_rows, width_of
from louiskv.shard import Shard
from louiskv.state import Held, tensors_of
from louiskv.store.device import Change
from louiskv.units.summaries import Built

# Tokens of each row that the device holds at once while a later prompt attends to the whole pool.
PAST_CHUNK = 4096


class RetrievalLayer(RetrievalState):
    """One layer: takes in prompts and tokens, retrieves where the trigger fires, and attends."""

    def join(self, shard: Shard) -> None:
        """Learn where the other heads are; the trigger may look at them."""
        super().join(shard)
        self.trigger.join(shard)

    def absorb(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        """Take in a prompt: its newest tokens stay in the window; what no longer fits there becomes units.

        On a GPU beside the next layers, each when the one before is done; their keys and values are on the device until
        then, two layers' or as many as `background.MOST_WAITING` bytes are. The host launches it all and waits for
        nothing, but to read where rows stand behind an answer, and how much of a batch is padding.
        """
        if not self._begun:
            self._begin(keys, values)
        self._land()
        if is_readable(keys):
            self._take_in(keys, values, valid)
        else:
            given = (keys, values) if valid is None else (keys, values, valid)
            reads = chain(given, (tensor for _, _, tensor in tensors_of([self])))
            self.taking_in.run(partial(self._take_in, keys, values, valid), reads, keys.nbytes + values.nbytes)

    def _take_in(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        """The host reads once where rows stand, if it must; from there on it knows, and tells the device."""
        rows, units = torch.cat([keys, values], dim=-1).flatten(0, 1), self.parts.units
        counts = [rows.shape[1]] * len(rows)
        if valid is not None:
            rows = take_rows(rows, kept_first(valid).repeat_interleave(self.num_kv_heads, dim=0))
            counts = [count for count in counts_of(valid) for _ in range(self.num_kv_heads)]
        stood = self._standing()
        stands = [row.after(count, self.parts.prompt_window, units) for row, count in zip(stood, counts, strict=True)]
        leaving = admit(self.resident, rows, stood, stands, self.impl)
        if leaving.rows.shape[1]:
            num_units = self._group_prompt(leaving, stood)
            stands = [row._replace(units=row.units + num_units) for row in stands]
        first, end = torch.tensor([(row.window_start, row.length) for row in stands]).unbind(1)
        self.cuts.cut_tail(first, end, units.leaves_by)
        self.trigger.reset()
        self.paces.start(self.batch_size, stands)

    def _group_prompt(self, leaving: Leaving, stood: list[Standing]) -> int:
        """Make units of what leaves; how many there are of a row at the most."""
        rows, first, counts, num_leaving = leaving
        clock, device = self.telemetry.clock, rows.device
        with clock.time("clustering", device):
            order, sizes = self.parts.group_prompt(rows[..., : self.resident.key_dim], counts, self.impl)
            if order is not None:
                rows = take_rows(rows, order)
        in_pool = [row.in_pool for row in stood]
        with clock.time("offload", device):
            place = torch.arange(rows.shape[1], device=device) if order is None else order
            positions = first[:, None] + place
            begin, held = self.transfer.offload(self.pool, rows, positions, counts, (in_pool, num_leaving))
            self._note_coding(rows, held, counts)
        most = max(row.units for row in stood) + sizes.shape[1], max(map(sum, zip(in_pool, num_leaving, strict=True)))
        with clock.time("clustering", device):
            self.index.append(begin, sizes, *self._built(held, sizes), impl=self.impl, known=most)
        return sizes.shape[1]

    @property
    def waits_for_nothing(self) -> bool:
        """Yes."""
        return True

    def _begin_step(self) -> Begun:
        """Where windows may be full, see to it that their oldest runs have a place; what waits for a thread does so."""
        self._wait_for_prompt()
        if is_readable(self.resident.lengths):
            self._land()
        self._full, grown = self.paces.step(), False
        leaves = any(self._full)
        if leaves:
            grown = self.reserve(0)
            self.paces.leave(self._full)
            if self.looked_at is not None:
                full = torch.tensor(self._full, pin_memory=self.looked_at.is_cuda)
                self.looked_at.copy_(full, non_blocking=True)
        return Begun(grown, leaves)

    def _append(self, keys: Tensor, values: Tensor) -> None:
        """Take in one token of each sequence; idle rows count none.

        Before that, what was fetched ahead comes into its slots, and the oldest run of a full window leaves.
        """
        self._land()
        if any(self._full):
            with self.telemetry.clock.time("offload", keys.device):
                self._make_room()
        self.resident.append(keys.flatten(0, 2), values.flatten(0, 2), self.impl)
        if (idle := self.idle) is not None:
            self.resident.lengths.masked_fill_(idle, 0)

    def _make_room(self) -> None:
        """Move the oldest run of every full window to the pool; it stays resident as far as slots are free.

        What is summarised and what becomes resident is what the pool holds, and not what came: so it does not matter
        whether a token was in the window a moment ago.
        """
        resident, most = self.resident, self.parts.window - self.paces.stride
        counts = self.cuts.oldest_size(resident.window_start, resident.lengths, most, self.impl)
        if self.looked_at is not None:
            counts = counts * self.looked_at.repeat_interleave(self.num_kv_heads)
        if may_hold(counts):
            with nullcontext() if self.cuts.fixed else self._only_where(counts > 0, "offload"):
                self._move_out(counts)
        if is_readable(counts):
            self.paces.left(self._full, resident.window_room(), self.index.counts)

    def _move_out(self, counts: Tensor) -> None:
        """Move the oldest `counts` [N] tokens of the windows to the pool."""
        resident, parts, impl = self.resident, self.parts, self.impl
        width = width_of(counts, self.paces.longest_run)
        rows, positions = resident.take(width, impl)
        sizes = parts.output.sizes_in_order(counts, width)
        if sizes is None:
            order, sizes = parts.output.group(rows[..., : resident.key_dim], counts, impl)
            rows, positions = resident.take(width, impl, order)
        begin, held = self.transfer.offload_few(self.pool, rows, positions, counts, impl)
        self._note_coding(rows, held, counts)
        self.index.append_few(begin, sizes, *self._built(held, sizes), impl=impl)
        self.telemetry.segments.add(sizes, self.paces.longest_run)
        resident.release(counts, impl)
        resident.keep(begin, counts, held, parts.room(resident, impl), parts.num_spare, impl)

    def _note_coding(self, rows: Tensor, held: Tensor, counts: Tensor) -> None:
        if self.parts.pool_bits is not None:
            self.telemetry.coding_error.add(rows, held, self.resident.key_dim, counts)

    def _built(self, rows: Tensor, sizes: Tensor) -> Built:
        """What the index keeps of units of sizes [N, U], which are tokens [N, T, Dk + Dv]."""
        keys, values = rows.tensor_split([self.resident.key_dim], dim=-1)
        return self.parts.summary.build(keys, values, sizes, self.impl)

    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        """Retrieve where the trigger fires, then attend to what is resident, and by estimate to the rest."""
        clock, grouped, parts = self.telemetry.clock, self.group(query), self.parts
        attention_sinks = options.sinks_by_row(self.batch_size, self.num_kv_heads)
        look = parts.look(self.index, self.resident, grouped, options.scaling, attention_sinks, self.impl)
        with clock.time("selection", query.device):
            fired = self.trigger.fire(query[:, :, 0], self.num_kv_heads, look if self._has_units else None)
            if self.in_use is not None:
                fired = fired & self.in_use[:, None]
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
        seen = dict(vars(look))
        with self._only_where(fire, "selection"):
            yield
        # What was computed inside is not there when nothing fires; and what is resident may be another.
        vars(look).clear()
        vars(look).update(seen)
        look.forget_resident()

    @contextmanager
    def _only_where(self, flags: Tensor, phase: str) -> Iterator[None]:
        """In a graph, leave out what is inside where no flag holds; what it sets anew is copied to where it was."""
        if not makes_branches():
            yield
            return
        held = Held([self])
        with self.telemetry.clock.as_one(phase, flags.device), only_if(flags):
            yield
            settled = held.settle()
        assert settled, "a part of a step has changed the shapes of its state"

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

    def attend_past(self, query: Tensor, *, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attend to every token: sinks and window where they lie, the pool brought over in chunks."""
        self._land()
        resident = self.resident
        always = self.parts.num_sinks + self.parts.window
        attend = partial(partial_attention, query, scaling=scaling, softcap=softcap, impl=self.impl)
        occupied = resident.bias[:, :, None, :always] == 0
        out, lse = attend(resident.keys[:, :always], resident.values[:, :always], occupied)
        in_pool = [row.in_pool for row in self._standing()]
        for rows, present in self.transfer.read(self.pool, PAST_CHUNK, in_pool):
            keys, values = rows.tensor_split([resident.key_dim], dim=-1)
            mask = None if present is None else present[:, None, None]
            out, lse = merge_attention(out, lse, *attend(keys, values, mask))
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
        self.trigger.reset()
        self.paces.start(self.batch_size, self._look())

    def _crop_pool(self, start: Tensor, end: Tensor) -> None:
        """Take the tokens from `start` [N] on out of the pool, those before `end` [N] back into the window."""
        resident, pool = self.resident, self.pool
        sizes = take_back(resident, pool, self.transfer, self.index.sizes, start, end)
        device = resident.rows.device
        self.index = self.parts.new_index(len(sizes), device)
        sizes, begin = sizes.to(device), torch.zeros_like(pool.lengths)
        self.index.append(begin, sizes, *self._built(pool.decoded().to(device), sizes), impl=self.impl)
