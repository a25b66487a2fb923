"""The sequences of a batch: how many they are, and in some caches how they come and go, each in a row of its own."""

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from louiskv.ops.ragged import is_readable
from louiskv.telemetry import LayerTelemetry


class Rows(ABC):
    """Sizes of a layer's batch, and what was counted of it.

    In a layer that was `spread`, a row of the batch holds a sequence or is idle. Idle rows take part in the arithmetic,
    see nothing but the token that each step gives them, and keep nothing.

    Attributes:
        telemetry: What the layer did.
        batch_size: Sequences, known from the first prompt on.
        num_kv_heads: KV heads, known from the first prompt on.
        group_size: Query heads of a KV head, known from the first prompt on.
        in_use: [B] which rows hold a sequence; None if all do, and always will.
    """

    def __init__(self) -> None:
        self.telemetry = LayerTelemetry()
        self.batch_size = 0
        self.num_kv_heads = 0
        self.group_size = 0
        self.in_use: Tensor | None = None
        self._num_idle = 0

    def begin(self, batch_size: int, num_kv_heads: int, num_query_heads: int) -> None:
        """Learn the sizes, before the first prompt is taken in."""
        self.batch_size, self.num_kv_heads = batch_size, num_kv_heads
        self.group_size = num_query_heads // num_kv_heads

    def take(self, row: int) -> Self:
        """A state of its own that holds a copy of the sequence of a row; nothing was counted there yet."""
        other = self._fresh(1)
        other._put(0, self, row)
        return other

    def spread(self, places: dict[int, int], batch_size: int) -> Self:
        """A state whose rows come and go, `batch_size` in number.

        Args:
            places: Where each row that is copied comes, in the order of copying: with the longest first, room is made
                once.
            batch_size: Rows; those that hold no copy are idle.
        """
        other = self._fresh(batch_size)
        other._hold(torch.zeros(batch_size, dtype=torch.bool, device=self.device))
        for row, place in places.items():
            other.put(place, self, row)
        return other

    def put(self, row: int, other: "Rows", other_row: int = 0) -> None:
        """Let an idle row hold a copy of a sequence of another state of the same method.

        Everything is written where it lies, and no other row is touched, unless there is no room for so long a
        sequence: then what has grown is new.
        """
        self._put(row, other, other_row)
        self._use(row, True)

    def clear(self, row: int) -> None:
        """Forget the sequence of a row, which is idle from now on."""
        self._clear(row)
        self._use(row, False)

    def take_over(self, other: "Rows") -> None:
        """Count also what another state has done, as if this one had done it."""
        self.telemetry.take_over(other.telemetry)
        self._take_over_traffic(other)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model computes, known from the first prompt on."""

    @property
    @abstractmethod
    def crops_exactly(self) -> bool:
        """Whether nothing is gone for good, so that a crop leaves all that there was before."""

    @abstractmethod
    def _blank(self, batch_size: int) -> Self:
        """A state of the same sizes for so many sequences, all empty."""

    @abstractmethod
    def _put(self, row: int, other: Any, other_row: int) -> None:
        """As `put`."""

    @abstractmethod
    def _clear(self, row: int) -> None:
        """As `clear`; in place, so that a step that was captured finds it."""

    def _take_over_traffic(self, other: Any) -> None:
        """Count also what another state has moved; nothing, where nothing moves."""
        return

    def _fresh(self, batch_size: int) -> Self:
        other = self._blank(batch_size)
        other.in_use, other._num_idle = None, 0
        other.begin(batch_size, self.num_kv_heads, self.num_kv_heads * self.group_size)
        other._count_in(LayerTelemetry())
        return other

    def _count_in(self, telemetry: LayerTelemetry) -> None:
        """Count there from now on."""
        self.telemetry = telemetry

    def _hold(self, in_use: Tensor) -> None:
        """Learn that rows come and go, and which [B] are in use."""
        self.in_use, self._num_idle = in_use, int((~in_use).sum())
        self._count_in(LayerTelemetry.of_rows(in_use))

    def _use(self, row: int, used: bool) -> None:
        if self.in_use is not None:
            self._num_idle += int(self.in_use[row]) - used
            self.in_use[row] = used

    @property
    def idle(self) -> Tensor | None:
        """[N] which rows are idle; None if it is readable that none is."""
        if self.in_use is None or (self._num_idle == 0 and is_readable(self.in_use)):
            return None
        return ~self.in_use.repeat_interleave(self.num_kv_heads)

    @property
    def held(self) -> Tensor:
        """[N] which rows hold a sequence."""
        if self.in_use is not None:
            return self.in_use.repeat_interleave(self.num_kv_heads)
        return torch.ones(self.batch_size * self.num_kv_heads, dtype=torch.bool, device=self.device)

    def slice_of(self, row: int) -> slice:
        """Rows of [N, ...] that belong to a sequence."""
        return slice(row * self.num_kv_heads, (row + 1) * self.num_kv_heads)

    def rows_of_batch(self, index: Tensor) -> Tensor:
        """Rows [N] that belong to the sequences `index`."""
        head = torch.arange(self.num_kv_heads, device=index.device)
        return (index[:, None] * self.num_kv_heads + head).flatten()
