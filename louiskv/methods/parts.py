"""What a retrieval method puts together, and what its parts make of tokens and queries."""

from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.methods.look import Look
from louiskv.methods.selecting import select_inside, select_whole
from louiskv.ops.windows import room_beside
from louiskv.store.coding import Coding, Exact, FewBits
from louiskv.store.device import ResidentSet
from louiskv.triggers import Trigger
from louiskv.units.base import Units
from louiskv.units.bundles import in_bundles
from louiskv.units.index import Bundles, UnitIndex
from louiskv.units.summaries import Summary

# Units that have a summary together, where there are two levels of them.
BUNDLE_SIZE = 16


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

    def new_index(self, num_rows: int, device: torch.device) -> UnitIndex:
        """An index without units."""
        bundles = None if self.max_looked is None else Bundles(BUNDLE_SIZE, self.summary)
        return UnitIndex(num_rows, self.summary.strides, device, bundles)

    def new_coding(
        self, num_rows: int, key_dim: int, value_dim: int, dtype: torch.dtype, device: torch.device
    ) -> Coding:
        """How the pool keeps a token."""
        if self.pool_bits is None:
            return Exact(key_dim + value_dim, dtype)
        return FewBits(self.pool_bits, num_rows, key_dim, value_dim, dtype, device)

    def group_prompt(self, keys: Tensor, counts: Tensor, impl: str | None) -> tuple[Tensor | None, Tensor]:
        """Group the first `counts[n]` of the keys [N, T, D] of a prompt; near units beside each other for bundles.

        As `Units.group` does, but without an order where tokens keep theirs.
        """
        if self.max_looked is not None:
            return in_bundles(keys, self.units.group(keys, counts, impl), BUNDLE_SIZE, impl)
        sizes = self.units.sizes_in_order(counts, keys.shape[1])
        return self.units.group(keys, counts, impl) if sizes is None else (None, sizes)

    def look(
        self,
        index: UnitIndex,
        resident: ResidentSet,
        query: Tensor,
        scaling: float,
        attention_sinks: Tensor | None,
        impl: str | None,
    ) -> Look:
        """Look at an index with queries [N, G, D]."""
        return Look(
            index,
            resident,
            self.summary,
            query,
            scaling=scaling if self.scaled else 1.0,
            reduce=self.reduce,
            max_looked=self.max_looked,
            attention_sinks=attention_sinks,
            impl=impl,
        )

    def room(self, resident: ResidentSet, impl: str | None = None) -> Tensor | int:
        """Tokens that may be retrieved: what the window leaves of the budget until the trigger fires again.

        Of each row [N], or one number for all.
        """
        gap = self.trigger.gap
        if gap is None:
            return self.num_retrieved
        return room_beside(
            resident.window_start,
            resident.lengths,
            budget=self.budget - self.num_sinks,
            window=self.window,
            coming=gap - 1,
            taken_by=self.taken_by,
            most=self.num_retrieved,
            impl=impl,
        )

    def select(self, look: Look) -> Tensor:
        """[N, S] places in the pool of the tokens that the queries choose, -1 for none.

        They may be anything in rows for which the look is not asked.
        """
        room, slot_place = self.room(look.resident, look.impl), look.resident.slot_place
        if self.oversample:
            room = room if isinstance(room, Tensor) else torch.full_like(look.resident.lengths, room)
            return select_inside(look, room, slot_place, self.hold, self.oversample)
        return select_whole(look, room, slot_place, self.hold, self.recent_units)
