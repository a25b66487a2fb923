"""Where compiled kernels come from, and why there may be none."""

from torch import Tensor

from louiskv.ops import triton_runtime


def refuses_cpu(like: Tensor) -> str | None:
    """Why the kernels in C++ cannot run on tensors like this one."""
    return None if like.device.type == "cpu" else f"it runs on the CPU, not on {like.device}"


def refuses_triton(like: Tensor) -> str | None:
    """Why the kernels in Triton cannot run on tensors like this one."""
    return triton_runtime.refuses(like)


def refuses_cuda(like: Tensor) -> str | None:
    """Why the kernels in CUDA cannot run on tensors like this one."""
    return None if like.device.type == "cuda" else f"it runs on CUDA, not on {like.device}"
