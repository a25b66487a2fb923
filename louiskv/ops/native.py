"""The library of kernels in C++: what it is made of, and how it comes into this process."""

import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from louiskv.errors import ImplementationError
from louiskv.ops.compiling import BuildError, Library, Unit

# Instruction sets the kernels are compiled for, the best first; the CPU decides at run time which of them runs.
INSTRUCTION_SETS = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "portable": (),
}


def cpu_library() -> Library:
    """The kernels for the CPU: once for each instruction set, and between them and torch its stable ABI."""
    torch_folder = Path(torch.__file__).parent
    isas = INSTRUCTION_SETS if platform.machine().lower() in ("x86_64", "amd64") else {"portable": ()}
    kernels = [Unit("kernels.cpp", (f"-DLOUISKV_ISA={isa}", *flags)) for isa, flags in isas.items()]
    choice = Unit("choice.cpp", tuple(f"-DLOUISKV_HAS_{isa.upper()}" for isa in isas))
    groups = ("attention", "kmeans", "scores", "selection", "candidates", "moving", "recording")
    shims = [Unit(f"ops_{group}.cpp") for group in (*groups, "sketches", "bisection", "units", "windows")]
    return Library(
        name="louiskv_cpu",
        language="C++",
        compilers=("g++", "c++", "clang++"),
        variable="CXX",
        units=(*kernels, choice, *shims),
        flags=(
            *("-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"),
            # Vectors are passed between inlined functions only.
            "-Wno-psabi",
            "-DTORCH_TARGET_VERSION=0x020a000000000000",
        ),
        link_flags=(f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"),
        include=(torch_folder / "include",),
    )


class _Loaded:
    """Whether the library is in this process: `reason` says why it is not."""

    lock = Lock()
    tried = False
    reason: str | None = None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def why_not() -> str | None:
    """Load the library when first asked, and say why it cannot be used, or None where it can.

    What cannot be used is warned about once: plain torch is then what runs.
    """
    if not _Loaded.tried:
        with _Loaded.lock:
            if not _Loaded.tried:
                _Loaded.reason = _load()
                _Loaded.tried = True
                if _Loaded.reason is not None:
                    warnings.warn(f"louiskv runs in plain torch, not in C++: {_Loaded.reason}.", stacklevel=2)
    return _Loaded.reason


def _load() -> str | None:
    try:
        torch.ops.load_library(cpu_library().build())
    except (BuildError, OSError) as error:
        return str(error)
    return None


def load() -> None:
    """Load the library.

    Raises:
        ImplementationError: It cannot be built or loaded.
    """
    reason = why_not()
    if reason is not None:
        raise ImplementationError(reason)


def fake(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function that gives tensors like those of an operation of the library, without computing them."""
    decorate: Callable[[Callable[..., Any]], Callable[..., Any]] = torch.library.register_fake(f"louiskv::{op}")
    return decorate
