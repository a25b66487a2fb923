"""Implementations with the devices on which they can run here, for tests that run on each."""

from collections.abc import Callable

import pytest
import torch

from louiskv.ops import OPS

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def on_each_device(op: str) -> pytest.MarkDecorator:
    """Run a test, which takes `impl` and `device`, for each implementation of an operation and where it can run."""
    runs = []
    for device in DEVICES:
        like = torch.empty(0, device=device)
        runs += [(candidate.name, device) for candidate in OPS[op] if candidate.refusal(like) is None]
    return pytest.mark.parametrize(("impl", "device"), runs)


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
