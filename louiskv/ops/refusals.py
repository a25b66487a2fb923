"""Why compiled kernels cannot run on a tensor."""

import torch
from torch import Tensor

from louiskv.ops import native, nvcc, triton_runtime

_ON_THE_CPU = frozenset({torch.float32, torch.bfloat16, torch.int32, torch.int64, torch.bool, torch.uint8})
_ON_NVIDIA = frozenset(
    {torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool, torch.uint8}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
)


def refuses_cpu(like: Tensor) -> str | None:
    """Why the kernels in C++ cannot run on tensors like this one."""
    if not like.is_cpu:
        return f"it runs on the CPU, not on {like.device}"
    if like.dtype not in _ON_THE_CPU:
        return f"it has no kernels for {like.dtype}"
    reason: str | None = native.why_not()
    return reason


def refuses_triton(like: Tensor) -> str | None:
    """Why the kernels in Triton cannot run on tensors like this one."""
    return triton_runtime.refuses(like)


def refuses_cuda(like: Tensor) -> str | None:
    """Why the kernels in CUDA cannot run on tensors like this one."""
    if like.device.type != "cuda":
        return f"it runs on CUDA, not on {like.device}"
    if like.dtype not in _ON_NVIDIA:
        return f"it has no kernels for {like.dtype}"
    reason: str | None = nvcc.why_not()
    return reason
