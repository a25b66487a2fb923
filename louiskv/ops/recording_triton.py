"""What a decode step leaves behind, in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_runtime import kernel


@kernel(
    checks=tuple(
        {"step": "*i64", "first": "*u8", "of_first": "*u8", "first_size": "i32"}
        | {"second": second, "of_second": second, "second_size": "i32"}
        | {"third": third, "of_third": third, "third_size": "i32"}
        for second, third in (("*u8", "*u8"), ("*u8", None), (None, None))
    ),
    # One warp: what one of several has counted, the others would read.
    configs=({"block": 256, "num_warps": 1, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["first_size", "second_size", "third_size"])
def _record(
    step: tl.tensor,
    first: tl.tensor,
    of_first: tl.tensor,
    first_size: tl.tensor,
    second: tl.tensor,
    of_second: tl.tensor,
    second_size: tl.tensor,
    third: tl.tensor,
    of_third: tl.tensor,
    third_size: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Copy the bytes of all values."""
    number = tl.load(step)
    _copy(first + number * first_size, of_first, first_size, block)
    if second is not None:
        _copy(second + number * second_size, of_second, second_size, block)
    if third is not None:
        _copy(third + number * third_size, of_third, third_size, block)
    tl.store(step, number + 1)


@triton.jit
def _copy(target: tl.tensor, source: tl.tensor, size: tl.tensor, block: tl.constexpr) -> None:
    for start in range(0, size, block):
        byte = start + tl.arange(0, block)
        tl.store(target + byte, tl.load(source + byte, mask=byte < size), mask=byte < size)


def record_step(step: Tensor, series: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> None:
    """Twin of the reference."""
    parts: list[Tensor | int | None] = []
    for held, value in zip(series, values, strict=True):
        parts += [_bytes_of(held), _bytes_of(value.contiguous()), value.numel() * value.itemsize]
    parts += [None, None, 0] * (3 - len(series))
    _record[1,](step, *parts)


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
