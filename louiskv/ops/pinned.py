"""Host memory that a GPU reads and writes itself: locked in place, of just the size that is asked for."""

import math
import mmap

import torch
from torch import Tensor


class _Locked(mmap.mmap):
    """Memory of the system that CUDA knows until nothing refers to it any more."""

    address: int | None = None

    def lock(self, address: int) -> None:
        """Make it known to CUDA.

        Raises:
            RuntimeError: The system does not lock so much.
        """
        torch.cuda.check_error(int(torch.cuda.cudart().cudaHostRegister(address, len(self), 0)))
        self.address = address

    def __del__(self) -> None:
        if self.address is not None and not torch.cuda.is_current_stream_capturing():
            # What was launched may still read it.
            torch.cuda.synchronize()
        if self.address is not None:
            torch.cuda.cudart().cudaHostUnregister(self.address)


def zeros_pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in pinned host memory.

    torch's own pinned memory comes in powers of two, so that a pool of 33 GiB takes 64, and in small pages that are
    locked one by one. This is mapped in large pages where the system has them, and touched by all threads before.

    Raises:
        OSError, RuntimeError: There is no such memory.
    """
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)
    memory = _Locked(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    flat = torch.frombuffer(memory, dtype=dtype)
    flat.zero_()
    memory.lock(flat.data_ptr())
    return flat.view(shape)
