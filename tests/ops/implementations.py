"""Implementations and instruction sets that can run here, for tests that run once for each."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from louiskv.ops import OPS, native

# Where the tensors of these tests lie.
DEVICE = torch.device("cpu")


def here(op: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """Names of the implementations of an operation that can run here, on tensors of a dtype."""
    like = torch.empty(0, dtype=dtype, device=DEVICE)
    return [candidate.name for candidate in OPS[op] if candidate.refusal(like) is None]


def each(op: str) -> pytest.MarkDecorator:
    """Run a test, which takes `impl`, for each implementation of an operation that can run here."""
    return pytest.mark.parametrize("impl", here(op))


def instruction_sets() -> list[str]:
    """Those of the kernels in C++ that this CPU has; none where they cannot be built."""
    if native.why_not() is not None:
        return []
    names: str = torch.ops.louiskv.instruction_sets()
    return names.split(",")


on_each_instruction_set = pytest.mark.parametrize("isa", instruction_sets())
on_the_best_instruction_set = pytest.mark.parametrize("isa", instruction_sets()[:1])


@contextmanager
def on(isa: str) -> Iterator[None]:
    """Run the kernels in C++ in this instruction set."""
    torch.ops.louiskv.use_instruction_set(isa)
    try:
        yield
    finally:
        torch.ops.louiskv.use_instruction_set("")
