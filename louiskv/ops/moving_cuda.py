"""Tokens on the way between the device and the host, in CUDA: kernels read and write pinned host memory themselves."""

import math

import torch
from torch import Tensor

from louiskv.errors import ImplementationError
from louiskv.ops import nvcc


def _like_nothing(*_args: Tensor) -> None:
    return None


@nvcc.operation(
    "fetch_rows(Tensor source, Tensor place, Tensor missing, Tensor(a!) target) -> ()",
    _like_nothing,
)
def fetch_rows(source: Tensor, place: Tensor, missing: Tensor, target: Tensor) -> None:
    """As `louiskv.ops.moving.fetch_rows`; places are int32 or int64.

    Host memory must stay allocated until the stream has come past the copy.

    Raises:
        ImplementationError: The source is out of reach, a dtype is another, or the tokens are not dense.
    """
    device = target.device
    if source.dtype != target.dtype or not nvcc.is_dense(source, 2) or not nvcc.is_dense(target, 2):
        raise ImplementationError(
            f"source and target have one dtype and dense tokens: {_told(source)}, {_told(target)}."
        )
    if missing.dtype != torch.bool or place.dtype not in (torch.int32, torch.int64):
        raise ImplementationError(f"missing is bool and place int32 or int64: {missing.dtype}, {place.dtype}.")
    nvcc.check_reach(device, source=source)
    nvcc.check_same(device, place=place, missing=missing)
    place, missing = place.contiguous(), missing.contiguous()
    nvcc.launch(
        "fetch_rows",
        device,
        *(source.data_ptr(), nvcc.stride_bytes(source, 0), nvcc.stride_bytes(source, 1)),
        *(place.data_ptr(), place.itemsize, missing.data_ptr()),
        *(target.data_ptr(), nvcc.stride_bytes(target, 0), nvcc.stride_bytes(target, 1)),
        *(*place.shape, target.shape[2] * target.itemsize),
    )


@nvcc.operation(
    "store_rows(Tensor(a!) target, Tensor lengths, Tensor rows, Tensor counts) -> ()",
    _like_nothing,
)
def store_rows(target: Tensor, lengths: Tensor, rows: Tensor, counts: Tensor) -> None:
    """As `louiskv.ops.moving.store_rows`.

    Host memory must stay allocated until the stream has come past the copy, and holds the entries only then.

    Raises:
        ImplementationError: The target is out of reach or not contiguous, or the dtypes differ.
    """
    device = rows.device
    if target.dtype != rows.dtype or not target.is_contiguous():
        raise ImplementationError(f"the target has the dtype of the rows, dense: {_told(target)}, {_told(rows)}.")
    nvcc.check_reach(device, target=target)
    nvcc.check_same(device, lengths=lengths, counts=counts)
    # What must be copied is held until the launch: memory that is given back may be given out again.
    rows, lengths, counts = nvcc.dense(rows, 2), lengths.long().contiguous(), counts.long().contiguous()
    nvcc.launch(
        "store_rows",
        device,
        *(target.data_ptr(), target.shape[1], lengths.data_ptr()),
        *(rows.data_ptr(), nvcc.stride_bytes(rows, 0), nvcc.stride_bytes(rows, 1)),
        *(counts.data_ptr(), *rows.shape[:2], math.prod(rows.shape[2:]) * rows.itemsize),
    )


def _told(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} of strides {list(tensor.stride())}"
