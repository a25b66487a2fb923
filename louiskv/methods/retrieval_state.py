"""What a retrieval layer holds: a pool of units, an index and a resident set; and how rows of it come and go."""

from typing import Any, Self

import torch
from torch import Tensor

from louiskv.methods.ahead import Ahead
from louiskv.methods.base import KVLayer
from louiskv.methods.pace import Paces, Standing
from louiskv.methods.parts import Parts
from louiskv.methods.retrieval_integrity import check_retrieval
from louiskv.state import tensors_of
from louiskv.store.background import PromptWork
from louiskv.store.device import ResidentSet
from louiskv.store.pool import Pool
from louiskv.store.transfer import Traffic, Transfer
from louiskv.telemetry import LayerTelemetry, Tier, Tiers
from louiskv.units.index import UnitIndex
from louiskv.units.segments import Cuts


class RetrievalState(KVLayer):
    """Every token is a sink, in the window, or in one unit of the pool.

    Attributes:
        resident: Sinks, window and retrieved tokens, on the device.
        index: What the device keeps of every unit.
        pool: Keys and values of every unit.
        cuts: Where the window is cut into units.
        paces: When windows are full.
        ahead: The selection for the next step, if the trigger is late.
        taking_in: A prompt that is being taken in.
        looked_at: [B] whose windows may be full in this step, where rows come and go; None where all are alike.
    """

    resident: ResidentSet
    index: UnitIndex
    pool: Pool
    cuts: Cuts
    transfer: Transfer
    ahead: Ahead
    taking_in: PromptWork

    def __init__(self, parts: Parts, impl: str | None = None) -> None:
        super().__init__(impl)
        self.parts = parts
        self.trigger = parts.trigger.start(impl)
        self.paces = Paces(parts)
        self.looked_at: Tensor | None = None
        self._begun, self._expected = False, 0
        self._full: list[bool] = []

    def _begin(self, keys: Tensor, values: Tensor) -> None:
        num_rows = keys.shape[0] * keys.shape[1]
        key_dim, value_dim, dtype, device = keys.shape[-1], values.shape[-1], keys.dtype, keys.device
        parts = self.parts
        sizes = (parts.num_sinks, parts.window, parts.num_retrieved + parts.num_spare)
        coding = parts.new_coding(num_rows, key_dim, value_dim, dtype, device)
        self.pool = Pool(num_rows, coding, device, parts.store)
        self.pool.expected = self._expected
        self.resident = ResidentSet(num_rows, *sizes, key_dim, value_dim, dtype, device, self.pool.in_place)
        self.index = parts.new_index(num_rows, device)
        self.cuts = Cuts(parts.output.runs(parts.window), num_rows, parts.num_sinks, parts.window, device)
        self.paces.standing = [Standing(0, parts.num_sinks, 0, 0)] * num_rows
        self._begin_moving()

    def _begin_moving(self) -> None:
        device = self.resident.rows.device
        self.transfer = Transfer(device)
        self.ahead, self.taking_in = Ahead(device), PromptWork(device)
        self._begun = True
        self._count_in(self.telemetry)

    def expect(self, num_tokens: int) -> None:
        """Learn how many tokens will come."""
        self._expected = num_tokens
        if self._begun:
            self.pool.expected = num_tokens

    @property
    def _copied(self) -> tuple[ResidentSet, UnitIndex, Pool, Cuts]:
        """All that has rows."""
        return self.resident, self.index, self.pool, self.cuts

    def reserve(self, num_steps: int) -> bool:
        """Make room for so many tokens more, so that taking them in allocates nothing; whether there was too little."""
        self._wait_for_prompt()
        # What grows is given back, and may be given out again: not before it was read beside the model.
        self.ahead.catch_up()
        tokens = self.paces.longest + num_steps - self.parts.num_sinks
        in_pool = self.pool.reserve(tokens)
        in_index = self.index.reserve(self.paces.units_after(num_steps + self.paces.longest_run), tokens)
        return in_pool or in_index

    @property
    def _has_units(self) -> bool:
        return len(self.index.summaries) > 0 and self.index.sizes.shape[1] > 0

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
        if self._begun:
            # All that the state holds in attributes and tuples: when it grows, what it was is free at once.
            self.taking_in.join(lambda: (tensor for _, _, tensor in tensors_of([self])))

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of, once the prompt is in, and what was fetched ahead."""
        self._wait_for_prompt()
        if self._begun:
            self.ahead.wait()
        return vars(self)

    def _standing(self) -> list[Standing]:
        """Where each row stands: as the host knows since a prompt, else `_look` at it."""
        return self._look() if self.paces.standing is None else self.paces.standing

    def _look(self) -> list[Standing]:
        """Where each row stands; this waits for the device, once."""
        resident = self.resident
        figures = (resident.lengths, resident.window_start, self.pool.lengths, self.index.counts)
        return [Standing(*row) for row in torch.stack(figures, dim=1).tolist()]

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        self._land()
        rows = self.rows_of_batch(index)
        self.transfer.settle()
        for part in self._copied:
            part.select_rows(rows)
        self.trigger.select_batch(index)
        self.batch_size = len(index)
        self.paces.start(self.batch_size, self._look())

    @property
    def crops_exactly(self) -> bool:
        """Yes: nothing is gone."""
        return True

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.resident.rows.device

    def _blank(self, batch_size: int) -> Self:
        """Without tokens and without units."""
        state, num_rows = type(self)(self.parts, self.impl), batch_size * self.num_kv_heads
        state.resident, state.index = self.resident.blank(num_rows), self.index.blank(num_rows)
        state.pool, state.cuts = self.pool.blank(num_rows), self.cuts.blank(num_rows)
        state.paces.each = [None] * batch_size
        state.join(self.shard)
        state._begin_moving()
        return state

    def follow(self, other: Self) -> None:
        """Take its trigger, which has seen nothing yet."""
        self.trigger = other.trigger

    def _put(self, row: int, other: "RetrievalState", other_row: int) -> None:
        """Copy its part of the pool, the index and the resident set, and what trigger and host know of it."""
        mine, others = self.slice_of(row), other.slice_of(other_row)
        other._land()
        self._settle()
        other._settle()
        self.resident.put_rows(mine, other.resident, others)
        self.index.put_rows(mine, other.index, others)
        self.pool.put_rows(mine, other.pool, others)
        self.cuts.put_rows(mine, other.cuts, others)
        self.ahead.leave_out(mine, self.resident)
        self.trigger.put(row, other.trigger, other_row, self.batch_size)
        self.paces.put(row, other.paces.each[other_row])

    def _clear(self, row: int) -> None:
        """Empty its part of everything."""
        self._settle()
        for part in self._copied:
            part.clear_rows(self.slice_of(row))
        self.ahead.leave_out(self.slice_of(row), self.resident)
        self.trigger.put(row, None, 0, self.batch_size)
        self.paces.put(row, None)

    def _settle(self) -> None:
        """Wait for all that is on its way; what was fetched ahead is not in its slots yet."""
        self._wait_for_prompt()
        self.ahead.wait()
        self.transfer.settle()

    def _count_in(self, telemetry: LayerTelemetry) -> None:
        """What selections choose is counted where tokens are moved."""
        super()._count_in(telemetry)
        if self._begun:
            telemetry.selected.stands_in(self.transfer.chosen, 0)
            telemetry.missed.stands_in(self.transfer.chosen, 1)

    def _hold(self, in_use: Tensor) -> None:
        """Learn that rows come and go: each is looked at by its own count of steps."""
        super()._hold(in_use)
        self.looked_at = torch.zeros_like(in_use)

    def _take_over_traffic(self, other: "RetrievalState") -> None:
        self.transfer.take_over(other.transfer)

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
        check_retrieval(self.parts, self.resident, self.index, self.pool, self.impl)
