"""What a layer selects and fetches for its next step while this one goes on."""

from collections.abc import Callable

import torch
from torch import Tensor

from louiskv.ops.ragged import is_readable
from louiskv.store.background import Background, Beside
from louiskv.store.device import Change, ResidentSet


class Ahead:
    """At most one selection, begun in one step and put into its slots in the next.

    On a CPU a thread makes it; on a GPU a stream beside the model's, so that a graph can have it in it.

    Attributes:
        rows: [N, num_retrieved, Dk + Dv] what was fetched.
        place: [N, num_retrieved] as `Change` has it.
        missing: [N, num_retrieved] as `Change` has it.
        pending: Whether there is a selection that is in no slots yet.
    """

    def __init__(self, device: torch.device) -> None:
        self.rows, self.place = torch.empty(0), torch.empty(0)
        self.missing = torch.empty(0, dtype=torch.bool)
        self.pending = False
        self._thread: Background[None] = Background()
        self._beside = Beside(device)

    def start(
        self,
        resident: ResidentSet,
        select: Callable[[Tensor], Change],
        fetch: Callable[[Change, Tensor], None],
    ) -> None:
        """Select into places of its own, and fetch what is missing into rows of its own, beside what follows."""
        if self.rows.shape != resident.retrieved.shape:
            self.rows = torch.zeros_like(resident.retrieved)
        if self.place.shape != resident.slot_place.shape:
            self.place = torch.empty_like(resident.slot_place)

        def prepare() -> None:
            change = select(self.place)
            fetch(change, self.rows)
            self.missing = change.missing

        self.pending = True
        if is_readable(self.rows):
            self._thread.start(prepare)
        else:
            self._beside.run(prepare)

    def leave_out(self, rows: slice, resident: ResidentSet) -> None:
        """Leave rows as they are now, in place: they hold other sequences than the one that has selected."""
        if len(self.missing):
            self.missing[rows] = False
            self.place[rows] = resident.slot_place[rows]

    def catch_up(self) -> None:
        """Let what follows on the device wait until it is done there."""
        self._beside.join()

    def wait(self) -> None:
        """Wait until it is done."""
        if self._thread.busy:
            self._thread.collect()
        self.catch_up()

    def land(self, resident: ResidentSet, impl: str | None) -> None:
        """Put what was selected into its slots."""
        self.pending = False
        self.wait()
        slot = torch.arange(self.rows.shape[1], device=self.rows.device).expand(len(self.rows), -1)
        resident.fill(Change(self.place, self.missing), self.rows, slot, impl)
