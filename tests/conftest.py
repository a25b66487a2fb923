"""What every test needs: no hub, one thread for each worker, and memory that shows when it was never written."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch

# Without a GPU the kernels in Triton are tested in its interpreter, which must be asked for before they are imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from louiskv.ops import native

# The same examples in every run: what fails for one fails for all.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")

# Where there is no compiler, every test runs in plain torch, and this is the one place that need not say so.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    native.why_not()

# Each of them has processes of its own, of which there are enough.
ONE_WORKER = ("tests/serving/ray/", "tests/test_tensor_parallel.py")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Any worker takes any test, but those that share other processes are for one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return next((each for each in ONE_WORKER if nodeid.startswith(each)), nodeid)

    return Scheduling(config, log)


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that torch hands out unwritten holds NaN (or a huge number), so that reading it cannot go unnoticed."""

    def poisoning(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = function(*args, **kwargs)
            if tensor.dtype == torch.bool or tensor.numel() == 0:
                return tensor
            if tensor.dtype.is_floating_point:
                return tensor.fill_(torch.nan)
            return tensor.fill_(min(10**6, torch.iinfo(tensor.dtype).max))

        return poisoned

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoning(getattr(owner, name)))
