"""What each sequence is compared with: the trigger's own number, or one that the sequence has come with."""

from typing import Self

import torch
from torch import Tensor


class Taus:
    """One number for each sequence.

    The host knows them all, so that putting one in a row waits for nothing.

    Attributes:
        own: The trigger's.
        tensor: [B] float32 once there was a step.
    """

    def __init__(self, own: float) -> None:
        self.own = own
        self.tensor: Tensor | None = None
        # Of each sequence, if they have come from elsewhere.
        self._each: list[float] | None = None

    def of(self, query: Tensor) -> Tensor:
        """[B] for the sequences of a query [B, ...]."""
        if self.tensor is None or len(self.tensor) != len(query):
            self.tensor = torch.tensor(self._known(len(query)), dtype=torch.float32, device=query.device)
        return self.tensor

    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""
        if self._each is not None:
            self._each, self.tensor = [self._each[row] for row in index.tolist()], None

    def put(self, row: int, other: Self | None, other_row: int, batch_size: int) -> None:
        """Have for a sequence what another one has for one of its own; the trigger's own number if it is None."""
        self._each = self._known(batch_size)
        self._each[row] = self.own if other is None else other._at(other_row)
        if self.tensor is not None:
            self.tensor = self.tensor.clone()
            self.tensor[row] = self._each[row]

    def _known(self, batch_size: int) -> list[float]:
        return [self.own] * batch_size if self._each is None else self._each

    def _at(self, row: int) -> float:
        return self.own if self._each is None else self._each[row]
