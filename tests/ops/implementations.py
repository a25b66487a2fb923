"""Implementations and instruction sets that can run here, for tests that run once for each."""

import pytest
import torch

from louiskv.ops import OPS
from louiskv.ops.dispatch import Implementation

# The device on which a test makes its tensors, for all implementations that run there.
DEVICE = "cpu"


def here(op: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """Names of the implementations of an operation that can run here."""
    like = torch.empty(0, dtype=dtype, device=DEVICE)
    return [candidate.name for candidate in OPS[op] if _runs(candidate, like)]


def _runs(candidate: Implementation, like: torch.Tensor) -> bool:
    return candidate.refusal(like) is None


def each(op: str) -> pytest.MarkDecorator:
    """Run a test, which takes `impl`, for each implementation of an operation that can run here."""
    return pytest.mark.parametrize("impl", here(op))
