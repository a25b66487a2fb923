"""Implementations with the devices on which they can run here, for tests that run on each."""

from collections.abc import Callable

import pytest
import torch

from louiskv.ops import OPS

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def on_each_device(op: str, *dtypes: torch.dtype) -> pytest.MarkDecorator:
    """Run a test for each implementation of an operation, wherever it can run.

    It takes `impl` and `device`, and `dtype` where some are given: each that the implementation has kernels for.
    """
    runs: list[tuple[object, ...]] = []
    for device in DEVICES:
        for candidate in OPS[op]:
            # Interpreted, it is too slow for sizes as on a GPU; it has tests of its own.
            if (candidate.name, device) == ("triton", "cpu"):
                continue
            runs += [
                (candidate.name, device, dtype)
                for dtype in dtypes or (torch.float32,)
                if candidate.refusal(torch.empty(0, dtype=dtype, device=device)) is None
            ]
    if dtypes:
        return pytest.mark.parametrize(("impl", "device", "dtype"), runs)
    return pytest.mark.parametrize(("impl", "device"), [run[:2] for run in runs])


def host_tensor(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """A copy in host memory, pinned if the device is a GPU."""
    return tensor.clone().pin_memory() if device == "cuda" else tensor.clone()


def wait(device: str) -> None:
    """Wait for what the device still does."""
    if device == "cuda":
        torch.cuda.synchronize()


def repeated(function: Callable[[], object], impl: str, device: str) -> Callable[[], object]:
    """Run a function, and return what runs it again: on a GPU a CUDA graph, which plain torch may not be fit for."""
    function()
    if device == "cpu" or impl == "torch":
        return function
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay
