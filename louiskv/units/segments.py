"""Segments: units of the output, runs of tokens between semantic boundaries; and where the window is cut."""

from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.errors import check_count
from louiskv.units.base import Grouping, Runs, Units
from louiskv.units.pages import consecutive


@dataclass(frozen=True)
class Segments(Units):
    """Runs of output tokens between boundaries (LouisKV, section 4.2 of arXiv 2510.11292).

    A prompt has no boundaries, since its queries are not watched: as its units, segments are even runs.

    Attributes:
        min_segment: A boundary that comes earlier than this many tokens after the last one cuts nothing.
        max_segment: A segment is closed at this size without a boundary.
    """

    min_segment: int = 4
    max_segment: int = 64

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("min_segment", self.min_segment, 1)
        check_count("max_segment", self.max_segment, self.min_segment)

    @property
    def leaves_by(self) -> int:
        """Whole segments."""
        return self.max_segment

    def runs(self, window: int) -> Runs:
        """At most half the window, so that closing the oldest segment never empties it."""
        longest = max(1, min(self.max_segment, window // 2))
        return Runs(min(self.min_segment, longest), longest)

    def group(self, keys: Tensor, counts: Tensor, impl: str | None = None) -> Grouping:
        """Even runs; what leaves the window as one run of the output is one segment."""
        return consecutive(keys, counts, self.max_segment)

    def num_units(self, num_tokens: int) -> int:
        """Even runs."""
        return -(-num_tokens // self.max_segment)


class Cuts:
    """Where the tokens in the window of one layer are cut into runs.

    Attributes:
        starts: [N, W] True at the ring place (position mod W) of a token that begins a run.
        opened: [N] position where the newest run begins (or will, if no token has that position yet).
    """

    def __init__(self, runs: Runs, num_rows: int, num_sinks: int, window: int, device: torch.device) -> None:
        self.runs = runs
        self.num_sinks, self.window = num_sinks, window
        self.starts = torch.zeros(num_rows, window, dtype=torch.bool, device=device)
        self.opened = torch.full((num_rows,), num_sinks, dtype=torch.int64, device=device)

    @property
    def num_bytes(self) -> int:
        """Bytes of device memory."""
        return self.starts.nbytes + self.opened.nbytes

    @property
    def fixed(self) -> bool:
        """Whether runs end at their longest size only, so that boundaries cut nothing."""
        return self.runs.shortest > self.runs.longest

    def append(self, position: Tensor) -> None:
        """Take in the tokens at `position` [N]: each begins a run where the newest has not begun or is full."""
        begins = (position == self.opened) | (position - self.opened >= self.runs.longest)
        self.starts.scatter_(1, (position % self.window)[:, None], begins[:, None])
        self.opened = torch.where(begins, position, self.opened)

    def cut(self, boundary: Tensor, position: Tensor) -> None:
        """Begin a run at the token at `position` [N] where `boundary` [N] says so and the newest is long enough."""
        if self.fixed:
            return
        begins = boundary & (position - self.opened >= self.runs.shortest)
        place = (position % self.window)[:, None]
        self.starts.scatter_(1, place, self.starts.gather(1, place) | begins[:, None])
        self.opened = torch.where(begins, position, self.opened)

    def cut_tail(self, first: Tensor, end: Tensor, size: int) -> None:
        """Cut a prompt's tail, from `first` [N] to before `end` [N], evenly.

        Runs of fixed size go on in the output; otherwise they have `size` tokens and the next token begins one.
        """
        run = self.runs.longest if self.fixed else min(size, self.runs.longest)
        position = first[:, None] + torch.arange(self.window, device=first.device)
        begins = ((position - first[:, None]) % run == 0) & (position < end[:, None])
        self.starts.scatter_(1, position % self.window, begins)
        open_run = first + (end - first).clamp(min=0) // run * run if self.fixed else end
        self.opened = open_run.clamp(min=self.num_sinks)

    def crop(self, first: Tensor, end: Tensor) -> None:
        """Forget the tokens from `end` [N] on, when the oldest left stands at `first` [N]."""
        if self.fixed:
            self.cut_tail(first, end, self.runs.longest)
        else:
            self.opened = torch.minimum(self.opened, end.clamp(min=self.num_sinks))

    @property
    def least_leaving(self) -> int:
        """Tokens that leave a window at once, at the least."""
        return self.runs.longest if self.fixed else self.runs.shortest

    def oldest_size(self, first: Tensor, end: Tensor) -> Tensor:
        """[N] size of the run that begins at `first` [N], when the newest token stands before `end` [N].

        One that is shorter than runs may be, since a prompt ended there, takes of the next what it can.
        """
        step = torch.arange(1, self.runs.longest + 1, device=first.device)
        position = first[:, None] + step
        starts = self.starts.gather(1, position % self.window) & (step >= self.least_leaving)
        closes = starts | (position >= end[:, None]) | (step == self.runs.longest)
        return closes.to(torch.uint8).argmax(dim=1) + 1

    def blank(self, num_rows: int) -> "Cuts":
        """The same for so many empty windows."""
        return Cuts(self.runs, num_rows, self.num_sinks, self.window, self.starts.device)

    def put_rows(self, rows: slice, other: "Cuts", others: slice) -> None:
        """Cut windows as others are, in place."""
        self.starts[rows], self.opened[rows] = other.starts[others], other.opened[others]

    def clear_rows(self, rows: slice) -> None:
        """Begin with empty windows, in place."""
        self.starts[rows], self.opened[rows] = False, self.num_sinks

    def select_rows(self, index: Tensor) -> None:
        """Make row i a copy of the former row `index[i]`."""
        self.starts = self.starts.index_select(0, index)
        self.opened = self.opened.index_select(0, index)
