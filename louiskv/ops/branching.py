"""Parts of a CUDA graph that its replay leaves out where they are not needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from louiskv.ops import nvcc


class Branches:
    """What the branches of some graphs are captured with: a stream, and memory of their own for what they compute.

    Graphs that share it may not be replayed at the same time.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.MemPool()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Let `only_if` make branches of what is captured inside."""
        token = _allowed.set(self)
        try:
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
    inside = branches.stream.cuda_stream
    nvcc.launch("branch_begin", flags.device, flags.data_ptr(), flags.numel(), inside)
    try:
        with torch.cuda.stream(branches.stream), torch.cuda.use_mem_pool(branches.pool):
            # In a branch there are no others.
            token = _allowed.set(None)
            try:
                yield
            finally:
                _allowed.reset(token)
    finally:
        nvcc.launch("branch_end", flags.device, inside)
