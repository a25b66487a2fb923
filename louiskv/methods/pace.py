"""What the host knows of a retrieval layer without asking the device: when windows are full, what room is needed."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from louiskv.methods.parts import Parts
from louiskv.units.base import Units


class Standing(NamedTuple):
    """Where one row stands.

    Attributes:
        length: Tokens seen.
        window_start: Position of the oldest token in the window.
        in_pool: Tokens in the pool.
        units: Units in the index, at most.
    """

    length: int
    window_start: int
    in_pool: int
    units: int

    def after(self, num_tokens: int, prompt_window: int, units: Units) -> "Standing":
        """Where it stands when so many tokens of a prompt have come, but for the units that are made of others.

        Those leave the window: an earlier prompt's tail or an earlier answer leaves with the prompt's own tokens, for
        to what comes next they are prompt.

        Args:
            num_tokens: Tokens that come.
            prompt_window: Newest tokens that stay.
            units: What those that leave will be grouped into.
        """
        length = self.length + num_tokens
        newest = max(0, length - self.window_start)
        leaving = -(-max(0, newest - prompt_window) // units.leaves_by) * units.leaves_by
        leaving = min(leaving, newest // units.aligned_by * units.aligned_by)
        return Standing(length, self.window_start + leaving, self.in_pool + leaving, self.units)

    def room(self, num_sinks: int, window: int) -> int:
        """Tokens it can still take in before its window is over-full."""
        return max(0, num_sinks - self.length) + window - max(0, self.length - self.window_start)


@dataclass
class Pace:
    """Bounds that hold for every KV head of a sequence; where values are readable without a wait, they are exact.

    But not of units that a prompt was given and that stayed empty: those are counted until windows are looked at.

    Rows give up a run when their window has no room for the tokens until the next look. From one look to the next it is
    as many steps as a run has tokens at the least, so that one run is enough; where runs are of fixed size, one step.
    Each sequence is looked at by its own count of steps, whatever others it is decoded with.

    Attributes:
        stride: Steps from one look to the next.
        due: Steps until the next look.
        room: Tokens that every window can take in, at least.
        longest: Tokens that a row has seen.
        units: Units that a row has in the index, at most.
    """

    stride: int
    fixed: bool
    longest_run: int
    units_of_run: int
    due: int = 0
    room: int = 0
    longest: int = 0
    units: int = 0

    @classmethod
    def of(cls, parts: Parts) -> "Pace":
        """The pace of a sequence in a layer of these parts."""
        runs = parts.output.runs(parts.window)
        fixed = runs.shortest > runs.longest
        stride = 1 if fixed else runs.shortest
        return cls(stride, fixed, runs.longest, parts.output.num_units(runs.longest))

    def step(self) -> bool:
        """Begin a step; whether a window may be without room."""
        self.longest += 1
        looks = self.due == 0
        if looks:
            self.due = self.stride
        self.due -= 1
        full = looks and self.room < self.stride
        self.room -= 1
        return full

    def leave(self) -> None:
        """Count on with windows without room that give up a run in this step."""
        self.room = self.room + self.longest_run if self.fixed else self.stride - 1
        self.units += self.units_of_run

    def left(self, room: int, units: int) -> None:
        """Learn what room there is, at least, and what units, at most, when they have."""
        self.room, self.units = room - 1, units

    def units_after(self, num_steps: int) -> int:
        """Units that a row may have when so many tokens more have come."""
        least = self.longest_run if self.fixed else self.stride
        return self.units + -(-num_steps // least) * self.units_of_run


class Paces:
    """The pace of each sequence of a batch.

    Attributes:
        each: None for an idle row.
        stride: Steps from one look to the next.
        longest_run: Tokens that leave a window at once, at the most.
        standing: Where each row stands, with the most units that all its prompts can have made; None once steps have
            come, for then the device alone knows.
    """

    def __init__(self, parts: Parts) -> None:
        self._like, self._zones = Pace.of(parts), (parts.num_sinks, parts.window)
        self.stride, self.longest_run = self._like.stride, self._like.longest_run
        self.each: list[Pace | None] = []
        self.standing: list[Standing] | None = None

    def start(self, batch_size: int, rows: list[Standing]) -> None:
        """Begin anew with rows that stand so, those of a sequence side by side."""
        size, self.standing = len(rows) // batch_size, rows
        self.each = [self._of_sequence(rows[first : first + size]) for first in range(0, len(rows), size)]

    def _of_sequence(self, rows: list[Standing]) -> Pace:
        longest, units = max(row.length for row in rows), max(row.units for row in rows)
        return replace(self._like, longest=longest, room=min(row.room(*self._zones) for row in rows), units=units)

    def step(self) -> list[bool]:
        """Begin a step; for each sequence whether a window may be without room."""
        self.standing = None
        return [pace is not None and pace.step() for pace in self.each]

    def leave(self, full: list[bool]) -> None:
        """Count on where windows that may be `full` give up a run in this step."""
        for pace, is_full in zip(self.each, full, strict=True):
            if pace is not None and is_full:
                pace.leave()

    def left(self, full: list[bool], room: Tensor, units: Tensor) -> None:
        """Learn what room [N] there is and what units [N] when they have; only where that is readable."""
        least, most = room.view(len(full), -1).amin(1).tolist(), units.view(len(full), -1).amax(1).tolist()
        for pace, was_full, room_now, units_now in zip(self.each, full, least, most, strict=True):
            if pace is not None and was_full:
                pace.left(room_now, units_now)

    def put(self, row: int, pace: Pace | None) -> None:
        """Give a sequence the pace that it had elsewhere; None for a row that is idle."""
        self.each[row], self.standing = None if pace is None else replace(pace), None

    @property
    def longest(self) -> int:
        """Tokens that a row has seen, at most."""
        return max((pace.longest for pace in self.each if pace is not None), default=0)

    def units_after(self, num_steps: int) -> int:
        """Units that a row may have when so many tokens more have come."""
        return max((pace.units_after(num_steps) for pace in self.each if pace is not None), default=0)
