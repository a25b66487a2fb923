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
        where: [N] rows that have selected.
        place: [N, num_retrieved] as `Change` has it.
        missing: [N, num_retrieved] as `Change` has it.
        pending: Whether there is a selection that is in no slots yet.
    """

    where: Tensor
    place: Tensor
    missing: Tensor

    def __init__(self, device: torch.device) -> None:
        self.rows = torch.empty(0)
        self.pending = False
        self._thread: Background[None] = Background(device)
        self._beside = Beside(device)

    def start(
        self,
        where: Tensor,
        resident: ResidentSet,
        select: Callable[[], Change],
        fetch: Callable[[Change, Tensor], None],
    ) -> None:
        """Select for rows `where` [N], and fetch what is missing into rows of its own, beside what follows."""
        if self.rows.shape != resident.retrieved.shape:
            self.rows = torch.zeros_like(resident.retrieved)

        def prepare() -> None:
            change = select()
            fetch(change, self.rows)
            self.where, self.place, self.missing = where, change.place, change.missing

        self.pending = True
        if is_readable(where):
            self._thread.start(prepare)
        else:
            self._beside.run(prepare)

    def leave_out(self, rows: slice, resident: ResidentSet) -> None:
        """Leave rows as they are now, in place: they hold other sequences than the one that has selected."""
        if self.rows.numel():
            self.where[rows], self.missing[rows] = False, False
            self.place[rows] = resident.slot_place[rows]

    def catch_up(self) -> None:
        """Let what follows on the device wait until it is done there."""
        self._beside.join()

    def wait(self) -> None:
        """Wait until it is done."""
        if self._thread.busy:
            self._thread.collect()
        self.catch_up()

    def land(self, resident: ResidentSet, impl: str | None) -> tuple[Tensor, Change]:
        """Put what was selected into its slots; returns where, and what has changed."""
        self.pending = False
        self.wait()
        change = Change(self.place, self.missing)
        slot = torch.arange(self.rows.shape[1], device=self.rows.device).expand(len(self.rows), -1)
        resident.fill(change, self.rows, slot, impl)
        return self.where, change
