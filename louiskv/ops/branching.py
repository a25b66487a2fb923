"""Parts of a CUDA graph that its replay leaves out where they are not needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache as once
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from louiskv.ops import nvcc

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE


@once
def _streams(device: int) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    # One pair of a device for all of our graphs. torch gives out 32 streams in turn: one for the branches of each
    # captured step, and the one that it captures on itself, would be the same with every 32nd, and CUDA refuses both.
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


class Branches:
    """What some graphs with branches are captured with: streams, and memory of their own for what branches compute.

    Graphs that share it may not be replayed at the same time.
    """

    def __init__(self, device: torch.device) -> None:
        self._outside, self.inside = _streams(torch.cuda.current_device() if device.index is None else device.index)
        self.pool = torch.cuda.MemPool()

    @contextmanager
    def capture(self, graph: torch.cuda.CUDAGraph, pool: "_POOL_HANDLE | None" = None) -> Iterator[None]:
        """Capture what runs inside as a graph in which `only_if` makes branches.

        Args:
            graph: The graph.
            pool: Memory of another graph that this one may use as well.
        """
        token = _allowed.set(self)
        try:
            with torch.cuda.graph(graph, pool=pool, stream=self._outside):
                yield
        finally:
            _allowed.reset(token)


_allowed: ContextVar[Branches | None] = ContextVar("louiskv_branches", default=None)


def makes_branches() -> bool:
    """Whether `only_if` makes a branch here: a graph is being captured, may have some, and CUDA knows them."""
    return _allowed.get() is not None and torch.cuda.is_current_stream_capturing() and nvcc.knows_branches()


@contextmanager
def only_if(flags: Tensor) -> Iterator[None]:
    """Capture what runs inside so that a replay runs it only if one of the flags holds then.

    Elsewhere it simply runs. What it sets anew must be written inside to where it was before, for without it that is
    what stays.

    Args:
        flags: Boolean, on the device.

    Raises:
        ImplementationError: CUDA refuses.
    """
    branches = _allowed.get()
    if branches is None or not makes_branches():
        yield
        return
    flags = flags.contiguous()
    inside = branches.inside.cuda_stream
    nvcc.launch("branch_begin", flags.device, flags.data_ptr(), flags.numel(), inside)
    try:
        with torch.cuda.stream(branches.inside), torch.cuda.use_mem_pool(branches.pool):
            # In a branch there are no others.
            token = _allowed.set(None)
            try:
                yield
            finally:
                _allowed.reset(token)
    finally:
        nvcc.launch("branch_end", flags.device, inside)
