"""Segments: units of the output, runs of tokens between semantic boundaries."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Runs of output tokens between boundaries (LouisKV, section 4.2 of arXiv 2510.11292).

    Attributes:
        min_size: A boundary that comes earlier than this many tokens after the last one cuts nothing.
        max_size: A segment is closed at this size without a boundary.
    """

    min_size: int = 4
    max_size: int = 64


class SegmentCuts:
    """Where the tokens in the window of one layer are cut into segments.

    Attributes:
        starts: [N, W] True at the ring place (position mod W) of a token that begins a segment.
        opened: [N] position where the newest segment begins (or will, if no token has that position yet).
    """

    def __init__(self, segments: Segments, num_rows: int, num_sinks: int, window: int, device: torch.device) -> None:
        self.min_size = segments.min_size
        # Half the window at the most, so that closing the oldest segment never empties it.
        self.max_size = max(1, min(segments.max_size, window // 2))
        self.num_sinks, self.window = num_sinks, window
        self.starts = torch.zeros(num_rows, window, dtype=torch.bool, device=device)
        self.opened = torch.full((num_rows,), num_sinks, dtype=torch.int64, device=device)

    @property
    def num_bytes(self) -> int:
        """Bytes of device memory."""
        return self.starts.nbytes + self.opened.nbytes

    def append(self, position: Tensor) -> None:
        """Take in the tokens at `position` [N]: each begins a segment where the newest has not begun or is full."""
        begins = (position == self.opened) | (position - self.opened >= self.max_size)
        self.starts.scatter_(1, (position % self.window)[:, None], begins[:, None])
        self.opened = torch.where(begins, position, self.opened)

    def cut(self, boundary: Tensor, position: Tensor) -> None:
        """Begin a segment at the token at `position` [N] where `boundary` [N] says so and the newest is long enough."""
        begins = boundary & (position - self.opened >= self.min_size)
        place = (position % self.window)[:, None]
        self.starts.scatter_(1, place, self.starts.gather(1, place) | begins[:, None])
        self.opened = torch.where(begins, position, self.opened)

    def cut_evenly(self, first: Tensor, end: Tensor, size: int) -> None:
        """Cut the tokens from `first` [N] to before `end` [N] into runs of `size`; the next token begins a segment."""
        position = first[:, None] + torch.arange(self.window, device=first.device)
        run = min(size, self.max_size)
        begins = ((position - first[:, None]) % run == 0) & (position < end[:, None])
        self.starts.scatter_(1, position % self.window, begins)
        self.opened = end.clamp(min=self.num_sinks)

    def crop(self, end: Tensor) -> None:
        """Forget the tokens from `end` [N] on."""
        self.opened = torch.minimum(self.opened, end.clamp(min=self.num_sinks))

    def oldest_size(self, first: Tensor, end: Tensor) -> Tensor:
        """[N] size of the segment that begins at `first` [N], when the newest token stands before `end` [N]."""
        step = torch.arange(1, self.window + 1, device=first.device)
        position = first[:, None] + step
        closes = self.starts.gather(1, position % self.window) | (position >= end[:, None])
        return closes.to(torch.uint8).argmax(dim=1) + 1

    def select_rows(self, index: Tensor) -> None:
        """Make row i a copy of the former row `index[i]`."""
        self.starts = self.starts.index_select(0, index)
        self.opened = self.opened.index_select(0, index)
