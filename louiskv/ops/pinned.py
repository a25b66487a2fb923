"""Host memory that a GPU reads and writes itself: locked in place, no larger than needed, and used again."""

import ctypes
import math
import mmap
import weakref
from collections import deque
from threading import Lock
from typing import ClassVar

import torch
from torch import Tensor

# What is used again may be larger than what is asked for by a quarter, and by a page of the large kind.
SPARE = 1.25
LARGE_PAGE = 2 * 1024 * 1024


class _Free:
    """Blocks that are locked and that nobody uses.

    Attributes:
        lock: Held by who reads or changes the lists.
        blocks: The smallest first; nothing that was launched reads or writes them any more.
        unsettled: What was launched may still do so.
        returned: Not counted yet: garbage is collected at any place, also where the lock is held.
    """

    lock = Lock()
    blocks: ClassVar[list[mmap.mmap]] = []
    unsettled: ClassVar[list[mmap.mmap]] = []
    returned: ClassVar[deque[mmap.mmap]] = deque()

    @classmethod
    def all(cls) -> list[mmap.mmap]:
        """All of them; the caller holds the lock."""
        while cls.returned:
            cls.unsettled.append(cls.returned.popleft())
        return cls.blocks + cls.unsettled

    @classmethod
    def settled(cls) -> list[mmap.mmap]:
        """The same, the smallest first, once the device has done what it was told; the caller holds the lock."""
        every = cls.all()
        if cls.unsettled:
            torch.cuda.synchronize()
            cls.blocks, cls.unsettled = sorted(every, key=len), []
        return cls.blocks


def empty_pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in pinned host memory, which may hold anything.

    torch's own pinned memory comes in powers of two, so that a pool of 33 GiB takes 64, and in small pages that are
    locked one by one. This is mapped in large pages where the system has them, and touched by all threads before. To
    lock memory takes long and may wait for the GPU, so a block that is no longer used is kept for the next.

    Raises:
        OSError, RuntimeError: There is no such memory.
    """
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())
    block = _used_again(size) or _locked(size)
    held = (ctypes.c_char * len(block)).from_buffer(block)
    weakref.finalize(held, _Free.returned.append, block)
    made: Tensor = torch.frombuffer(held, dtype=torch.uint8)[:size].view(dtype).view(shape)
    return made


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host, on the device; to copy it there waits for nothing."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def free_bytes() -> int:
    """Bytes that are locked and that nobody uses."""
    with _Free.lock:
        return sum(len(block) for block in _Free.all())


def release_pinned() -> None:
    """Give what nobody uses back to the system."""
    with _Free.lock:
        blocks, _Free.blocks = _Free.settled(), []
    for block in blocks:
        _unregister(_address(block))


def _used_again(size: int) -> mmap.mmap | None:
    """The smallest free block that is large enough, if it is not too large."""
    with _Free.lock:
        for place, block in enumerate(_Free.settled()):
            if len(block) >= size:
                return _Free.blocks.pop(place) if len(block) <= SPARE * size + LARGE_PAGE else None
    return None


def _locked(size: int) -> mmap.mmap:
    """A new block, in whole large pages; before there is too little memory, what is free is given back."""
    size = -(-size // LARGE_PAGE) * LARGE_PAGE
    try:
        return _lock(size)
    except (OSError, RuntimeError):
        if not free_bytes():
            raise
    release_pinned()
    return _lock(size)


def _lock(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    torch.frombuffer(block, dtype=torch.uint8).zero_()
    _register(_address(block), size)
    return block


def _address(block: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(block))


def _register(address: int, size: int) -> None:
    torch.cuda.check_error(int(torch.cuda.cudart().cudaHostRegister(address, size, 0)))


def _unregister(address: int) -> None:
    torch.cuda.check_error(int(torch.cuda.cudart().cudaHostUnregister(address)))
