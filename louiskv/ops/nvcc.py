"""The library of kernels in CUDA: what it is made of, how it comes into this process, and how torch calls it.

Its launchers are C functions of pointers, sizes and a stream: nothing of torch is compiled, and one library serves all
versions of torch. They put one kernel on the current stream and wait for nothing, so a CUDA graph can capture them.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from louiskv.errors import ImplementationError
from louiskv.ops.compiling import BuildError, Library, Unit

Architecture = tuple[int, int]

# What is compiled ahead of time: with machine code for x.0 all GPUs of compute capability x.y run.
AHEAD: tuple[Architecture, ...] = ((8, 0), (9, 0), (10, 0), (12, 0))

_INT, _LONG, _FLOAT, _ADDRESS = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
# What the launchers take before the device and the stream, as in the sources.
LAUNCHERS: dict[str, tuple[Any, ...]] = {
    "select_units": (
        *(_ADDRESS, _LONG, _ADDRESS, _LONG, _INT),  # scores, sizes
        *(_ADDRESS, _LONG, _ADDRESS, _ADDRESS, _LONG, _LONG),  # budgets, budget, where, take, rows, units
    ),
    "list_candidates": (
        *(_ADDRESS, _ADDRESS, _ADDRESS),  # take, offsets, slot_place
        *(_ADDRESS, _ADDRESS, _ADDRESS, _LONG, _ADDRESS),  # unit_offsets, counts, first_entry, stretch, scratch
        *(_ADDRESS, _ADDRESS, _ADDRESS),  # place, entry, resident
        *(_LONG, _LONG, _LONG, _LONG, _LONG),  # rows, entries, slots, units, width
    ),
    "best_tokens": (
        *(_ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _FLOAT),  # scores, place, resident, room, hold
        *(_ADDRESS, _LONG, _LONG, _LONG),  # wanted, rows, tokens, num_wanted
    ),
    "count_rest": (
        *(_ADDRESS, _LONG, _ADDRESS, _INT, _ADDRESS, _ADDRESS),  # place, places, sizes, size_bytes, offsets, counts
        *(_ADDRESS, _ADDRESS, _LONG, _LONG),  # scratch, left, rows, units
    ),
    "assign_slots": (
        *(_ADDRESS, _ADDRESS, _INT, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS),  # slot_place, wanted, where to missing
        *(_ADDRESS, _LONG, _INT, _LONG, _ADDRESS, _LONG, _LONG, _LONG),  # bias, counts, rows, slots, num_wanted
    ),
    "fetch_rows": (
        *(_ADDRESS, _LONG, _LONG, _ADDRESS, _INT, _ADDRESS),  # source, place, missing
        *(_ADDRESS, _LONG, _LONG, _LONG, _LONG, _LONG),  # target, rows, slots, token_bytes
    ),
    "store_rows": (
        *(_ADDRESS, _LONG, _ADDRESS, _ADDRESS, _LONG, _LONG),  # target, lengths, entries
        *(_ADDRESS, _LONG, _LONG, _LONG),  # counts, rows, num_new, entry_bytes
    ),
    "branch_begin": (_ADDRESS, _LONG, _ADDRESS),
    "branch_end": (_ADDRESS,),
}


def cuda_library(architectures: Sequence[Architecture], *, by_any: bool = False) -> Library:
    """The kernels for GPUs of some compute capabilities; CUDA's runtime is linked in."""
    home = os.environ.get("CUDA_HOME")
    numbers = [f"{major}{minor}" for major, minor in architectures]
    return Library(
        name="louiskv_cuda",
        language="CUDA",
        compilers=(*((str(Path(home, "bin", "nvcc")),) if home else ()), "nvcc", "/usr/local/cuda/bin/nvcc"),
        variable="CUDACXX",
        units=tuple(Unit(f"cuda_{each}.cu") for each in ("moving", "selection", "candidates", "slots", "branch")),
        flags=(
            *("-std=c++17", "-O3", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden"),
            *(f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers),
        ),
        advice="set CUDA_HOME or put nvcc on PATH",
        by_any=by_any,
    )


def library_ahead() -> Library:
    """The library that is compiled ahead of time; it is found also where there is no compiler."""
    return cuda_library(AHEAD, by_any=True)


class _Loaded:
    """The library in this process, or `reason`, which says why it is not."""

    lock = Lock()
    tried = False
    reason: str | None = None
    library: ctypes.CDLL


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def why_not() -> str | None:
    """Load the library when first asked, and say why it cannot be used, or None where it can."""
    if not _Loaded.tried:
        with _Loaded.lock:
            if not _Loaded.tried:
                _Loaded.reason = _load()
                _Loaded.tried = True
    return _Loaded.reason


def _load() -> str | None:
    if torch.version.hip is not None or not torch.cuda.is_available():
        return "there is no NVIDIA GPU"
    here = sorted({torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())})
    try:
        library = open_library(_built(here))
        check(library, library.louiskv_ready(torch.cuda.current_device()), "kernels cannot be loaded")
    except (BuildError, OSError, ImplementationError) as error:
        return str(error)
    _Loaded.library = library
    return None


def _built(here: Sequence[Architecture]) -> Path:
    """Path of the library compiled ahead of time, if it is there and runs on these GPUs, otherwise of one for them."""
    ahead = library_ahead().path()
    if {major for major, _ in here} <= {major for major, _ in AHEAD} and ahead.is_file():
        return ahead
    return cuda_library(here).build()


def open_library(path: Path) -> ctypes.CDLL:
    """Load a library of kernels, and declare its functions."""
    library = ctypes.CDLL(str(path))
    for name, takes in LAUNCHERS.items():
        getattr(library, f"louiskv_{name}").argtypes = (*takes, _INT, _ADDRESS)
    for count in (library.louiskv_assign_slots_scratch, library.louiskv_candidates_scratch):
        count.argtypes, count.restype = (_LONG,), _LONG
    library.louiskv_ready.argtypes = library.louiskv_error.argtypes = (_INT,)
    library.louiskv_error.restype = ctypes.c_char_p
    return library


def knows_branches() -> bool:
    """Whether a graph can have parts that its replay leaves out."""
    return why_not() is None and bool(_Loaded.library.louiskv_branches())


def launch(name: str, device: torch.device, *args: float | None) -> None:
    """Launch a kernel on the current stream of a device.

    Args:
        name: Of LAUNCHERS.
        device: A CUDA device, with its index.
        args: What the launcher takes before the device and the stream; pointers as numbers, None for a null pointer.

    Raises:
        ImplementationError: The library cannot be loaded, or the kernel cannot be launched.
    """
    library = loaded()
    stream = torch.cuda.current_stream(device).cuda_stream
    error = getattr(library, f"louiskv_{name}")(*args, device.index, stream)
    check(library, error, f"{name} cannot be launched on {device}")


def loaded() -> ctypes.CDLL:
    """The library.

    Raises:
        ImplementationError: It cannot be built or loaded.
    """
    reason = why_not()
    if reason is not None:
        raise ImplementationError(reason)
    return _Loaded.library


def check(library: ctypes.CDLL, error: int, what: str) -> None:
    """Raise `ImplementationError` for what a function of the library answered, unless it is 0."""
    if error:
        raise ImplementationError(f"{what}: {library.louiskv_error(error).decode()} (CUDA error {error})")


_OPERATIONS = torch.library.Library("louiskv_cuda", "FRAGMENT")


def operation(schema: str, like: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function that launches a kernel: `torch.compile` calls it as an operation of torch.

    Otherwise it is called as it is, which costs less.

    Args:
        schema: Of the operation.
        like: Gives tensors like those that the function gives, without computing them.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        name = _OPERATIONS.define(schema)
        _OPERATIONS.impl(name, function, "CUDA")
        torch.library.register_fake(f"louiskv_cuda::{name}", like, lib=_OPERATIONS)
        traced = getattr(torch.ops.louiskv_cuda, name).default

        def call(*args: Any) -> Any:
            return traced(*args) if torch.compiler.is_compiling() else function(*args)

        return call

    return decorate


def is_dense(tensor: Tensor, first: int) -> bool:
    """Whether the numbers of a tensor's dimensions from one on lie side by side."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape[first:]), reversed(tensor.stride()[first:]), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def dense(tensor: Tensor, first: int) -> Tensor:
    """The tensor, or a contiguous copy if its dimensions from one on are not dense."""
    return tensor if is_dense(tensor, first) else tensor.contiguous()


def stride_bytes(tensor: Tensor, dim: int) -> int:
    """Bytes from one entry of a dimension to the next; 0 where there is only one."""
    return tensor.stride(dim) * tensor.itemsize if tensor.shape[dim] > 1 else 0


def check_same(device: torch.device, **tensors: Tensor | None) -> None:
    """Raise `ImplementationError` unless all tensors lie on the device."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ImplementationError(f"{name} lies on {tensor.device}, not on {device}.")


def check_reach(device: torch.device, **tensors: Tensor) -> None:
    """Raise `ImplementationError` unless kernels on the device reach all tensors: there, or in pinned host memory."""
    for name, tensor in tensors.items():
        if tensor.device != device and not (tensor.is_cpu and tensor.is_pinned()):
            where = "host memory that is not pinned" if tensor.is_cpu else str(tensor.device)
            raise ImplementationError(f"{name} lies in {where}, where kernels on {device} cannot reach it.")
