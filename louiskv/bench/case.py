"""An operation with inputs, as it is measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from louiskv.bench.shapes import Inputs, Sizes


@dataclass(frozen=True)
class Case:
    """An operation with inputs.

    Attributes:
        op: Key of OPS.
        make: Makes the arguments; the first is a tensor and decides which implementations can run.
        call: Calls the operation with them, and `impl`.
        variant: Tells apart several of one operation.
        dtype: Type of the first tensor; None for the model's.
        moved: Bytes that must be read, and bytes that must be written; None for all of the inputs and of the outputs.
        flops: Multiplications and additions of the products of vectors.
        bus: On a GPU, where what is written comes over the bus.
    """

    op: str
    make: Callable[[Inputs], tuple[Tensor | int, ...]]
    call: Callable[..., Any]
    variant: str = ""
    dtype: torch.dtype | None = None
    moved: Callable[[Sizes], tuple[int, int]] | None = None
    flops: Callable[[Sizes], int] = lambda _: 0
    bus: Literal["to_device", "to_host"] | None = None

    @property
    def name(self) -> str:
        """The operation, and which of several."""
        return f"{self.op} {self.variant}".strip()
