"""Segments: units of the output, runs of tokens between semantic boundaries; and where the window is cut."""

from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.errors import check_count
from louiskv.ops.pinned import on_device
from louiskv.ops.windows import cut_runs, oldest_runs
from louiskv.units.base import Grouping, Runs, Units
from louiskv.units.pages import consecutive, consecutive_sizes


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

    def sizes_in_order(self, counts: Tensor, num_tokens: int) -> Tensor | None:
        """Even runs, mostly one."""
        return consecutive_sizes(counts, num_tokens, self.max_segment)

    def num_units(self, num_tokens: int) -> int:
        """Even runs."""
        return -(-num_tokens // self.max_segment)


class Cuts:
    """Where the tokens in the window of one layer are cut into runs.

    Where runs are fixed, that follows from where the window starts. Otherwise a run has a start where a prompt was cut
    or a boundary was, and every `longest` tokens from there, which is not written down.

    Attributes:
        starts: [N, W] int32, the position of a token that begins a run at its ring place (position mod W), otherwise
            that of one that is gone or has not come; W is 0 if runs are fixed.
        opened: [N] the last position in it (that of the next token if it begins a run).
    """

    def __init__(self, runs: Runs, num_rows: int, num_sinks: int, window: int, device: torch.device) -> None:
        self.runs = runs
        self.num_sinks, self.window = num_sinks, window
        width = 0 if self.fixed else window
        self.starts = torch.full((num_rows, width), -1, dtype=torch.int32, device=device)
        self.opened = torch.full((num_rows,), num_sinks, dtype=torch.int64, device=device)

    @property
    def num_bytes(self) -> int:
        """Bytes of device memory."""
        return self.starts.nbytes + self.opened.nbytes

    @property
    def fixed(self) -> bool:
        """Whether runs end at their longest size only, so that boundaries cut nothing."""
        return self.runs.shortest > self.runs.longest

    def cut(self, boundary: Tensor, lengths: Tensor, impl: str | None = None) -> None:
        """Begin a run at the last of `lengths` [N] tokens where `boundary` [N], if the newest run is long enough."""
        if not self.fixed:
            sizes = {"shortest": self.runs.shortest, "longest": self.runs.longest}
            cut_runs(self.starts, self.opened, lengths, boundary, **sizes, impl=impl)

    def cut_tail(self, first: Tensor, end: Tensor, size: int) -> None:
        """Cut a prompt's tail, from `first` [N] to before `end` [N], evenly into `size`; the next token begins a run.

        Both are on the host. Runs of fixed size go on in the output.
        """
        if self.fixed:
            return
        ring, opened = torch.arange(self.window), end.clamp(min=self.num_sinks)
        behind = (ring - first[:, None]) % self.window
        position = first[:, None] + behind
        begins = (behind % min(size, self.runs.longest) == 0) & (position < end[:, None])
        starts = opened[:, None].where(ring == (opened % self.window)[:, None], position.where(begins, -1))
        self.starts = on_device(starts.int(), self.starts.device)
        self.opened = on_device(opened, self.opened.device)

    def crop(self, end: Tensor) -> None:
        """Forget the tokens from `end` [N] on."""
        if not self.fixed:
            self.starts.masked_fill_(self.starts >= end[:, None], -1)
            self.opened = torch.minimum(self.opened, end.clamp(min=self.num_sinks))
            self.starts.scatter_(1, (self.opened % self.window)[:, None], self.opened[:, None].int())

    @property
    def least_leaving(self) -> int:
        """Tokens that leave a window at once, at the least."""
        return self.runs.longest if self.fixed else self.runs.shortest

    def oldest_size(self, first: Tensor, end: Tensor, most: int = 0, impl: str | None = None) -> Tensor:
        """[N] size of the run that begins at `first` [N], when the newest token stands before `end` [N].

        One that is shorter than runs may be, since a prompt ended there, takes of the next what it can. Nothing leaves
        a window of `most` tokens or fewer.
        """
        sizes = {"shortest": self.least_leaving, "longest": self.runs.longest, "most": most}
        return oldest_runs(self.starts, first, end, **sizes, impl=impl)

    def blank(self, num_rows: int) -> "Cuts":
        """The same for so many empty windows."""
        return Cuts(self.runs, num_rows, self.num_sinks, self.window, self.starts.device)

    def put_rows(self, rows: slice, other: "Cuts", others: slice) -> None:
        """Cut windows as others are, in place."""
        self.starts[rows], self.opened[rows] = other.starts[others], other.opened[others]

    def clear_rows(self, rows: slice) -> None:
        """Begin with empty windows, in place."""
        self.starts[rows], self.opened[rows] = -1, self.num_sinks

    def select_rows(self, index: Tensor) -> None:
        """Make row i a copy of the former row `index[i]`."""
        self.starts = self.starts.index_select(0, index)
        self.opened = self.opened.index_select(0, index)
