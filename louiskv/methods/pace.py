"""What the host knows of a retrieval layer without asking the device: when windows are full, what room is needed."""

from dataclasses import dataclass

from torch import Tensor

from louiskv.methods.parts import Parts


@dataclass
class Pace:
    """Bounds that hold for every row of a layer; where values are readable without a wait, they are exact.

    Rows give up a run when their window has no room for the tokens until the next look. From one look to the next it is
    as many steps as a run has tokens at the least, so that one run is enough; where runs are of fixed size, one step.

    Attributes:
        stride: Steps from one look to the next.
        due: Steps until the next look.
        room: Tokens that every window can take in, at least.
        longest: Tokens that a row has seen, at most.
        units: Units that a row has in the index, at most.
        even: Whether all rows are equally long.
    """

    stride: int
    fixed: bool
    longest_run: int
    units_of_run: int
    due: int = 0
    room: int = 0
    longest: int = 0
    units: int = 0
    even: bool = True

    @classmethod
    def of(cls, parts: Parts) -> "Pace":
        """The pace of a layer of these parts."""
        runs = parts.output.runs(parts.window)
        fixed = runs.shortest > runs.longest
        stride = 1 if fixed else runs.shortest
        return cls(stride, fixed, runs.longest, parts.output.num_units(runs.longest))

    def start(self, lengths: Tensor, room: Tensor, units: Tensor) -> None:
        """Begin anew after a prompt or a crop: tokens seen [N], room of the windows [N], units [N]. This may wait."""
        self.due = 0
        shortest, self.longest = (int(each) for each in lengths.aminmax())
        self.even = shortest == self.longest
        self.room, self.units = int(room.min()), int(units.max())

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
        gained = self.room + self.longest_run if self.fixed and self.even else self.stride - 1
        self.room, self.units = gained, self.units + self.units_of_run

    def left(self, room: Tensor, units: Tensor) -> None:
        """Learn what room [N] there is and what units [N] when they have; only where that is readable."""
        self.room, self.units = int(room.min()) - 1, int(units.max())

    def units_after(self, num_steps: int) -> int:
        """Units that a row may have when so many tokens more have come."""
        least = self.longest_run if self.fixed else self.stride
        return self.units + -(-num_steps // least) * self.units_of_run
