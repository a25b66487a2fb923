"""How kernels in Triton are launched: where they can run, what they are compiled for, and how they are tuned."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from threading import Lock
from typing import Any

import torch
from torch import Tensor

# Triton decides when it is imported whether kernels are compiled, or interpreted on the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_DTYPES = frozenset(
    (torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
)
# How long a configuration is timed, in ms: enough for kernels of 10 to 1,000 us.
_WARMUP, _TIMED = 5, 20


# Least rows of a product of tensor cores.
LEAST_ROWS = 16

_IS_INSTALLED = find_spec("triton") is not None


def refuses(like: Tensor) -> str | None:
    """Why kernels in Triton cannot run on tensors of the device and dtype of this one, None where they can."""
    if not _IS_INSTALLED:
        return "triton is not installed"
    if like.device.type != "cuda" and not INTERPRETED:
        return f"it runs on CUDA, not on {like.device}, where only TRITON_INTERPRET=1 makes it run"
    return None if like.dtype in _DTYPES else f"it has no kernels for {like.dtype}"


class Kernel:
    """A kernel with what it may be configured by.

    With several configurations the best is found by timing, once for each value of the key and each dtype. Where
    nothing can be timed (in the interpreter, or while a CUDA graph is captured and the key is new) the first is taken.
    Only a kernel that may run twice on the same tensors can have several. It must have run before it is captured, for
    what it is compiled to cannot be loaded then.

    Attributes:
        function: The kernel, as `triton.jit` returns it.
        checks: Type or constant of every parameter, for each way to compile it that the tests try; T is float32,
            float16 or bfloat16.
        configs: Constants of the kernel, `num_warps` and `num_stages`; the first must fit on an A100.
        key: Names of the arguments that tell apart what is tuned apart.
    """

    def __init__(
        self,
        function: Any,
        checks: Sequence[Mapping[str, Any]],
        configs: Sequence[Mapping[str, int]],
        key: Sequence[str],
    ) -> None:
        self.function, self.checks, self.configs, self.key = function, checks, configs, key
        self._tuned: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        self._lock = Lock()
        self._tuner: Any = None

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        """What launches it over a grid; takes arguments that stand in the key by name."""
        return partial(self._launch, grid)

    def _launch(self, grid: Any, *args: Any, **kwargs: Any) -> None:
        device = next((arg.device for arg in args if isinstance(arg, Tensor) and arg.is_cuda), None)
        if device is not None and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self._launch(grid, *args, **kwargs)
        constants: Mapping[str, Any] | None = self.configs[0]
        if len(self.configs) > 1 and not INTERPRETED:
            dtypes = [arg.dtype for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
            key = (*(kwargs[name] for name in self.key), *dtypes)
            # Triton's tuner would look for what is best at each launch, for longer than the launch takes.
            constants = self._tuned.get(key)
            if constants is None and not torch.cuda.is_current_stream_capturing():
                self._tuned[key] = self._tune(grid, args, kwargs)
                return None
        self.function[grid](*args, **kwargs, **(constants or self.configs[0]))
        return None

    def _tune(self, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Launch it with the configuration that is best for these arguments; returns that."""
        # Triton's tuner keeps the arguments of a launch to itself until it is done.
        with self._lock:
            tuner = self._autotuner()
            tuner[grid](*args, **kwargs)
            best: dict[str, Any] = tuner.best_config.all_kwargs()
            return best

    def _autotuner(self) -> Any:
        if self._tuner is None:
            import triton
            from triton.testing import do_bench

            configs = []
            for each in self.configs:
                constants = {name: value for name, value in each.items() if name not in ("num_warps", "num_stages")}
                configs.append(triton.Config(constants, num_warps=each["num_warps"], num_stages=each["num_stages"]))
            timed = partial(do_bench, warmup=_WARMUP, rep=_TIMED)
            self._tuner = triton.autotune(configs, list(self.key), do_bench=timed)(self.function)
        return self._tuner


def kernel(
    *, checks: Sequence[Mapping[str, Any]], configs: Sequence[Mapping[str, int]], key: Sequence[str] = ()
) -> Callable[[Any], Kernel]:
    """Declare, above `triton.jit`, how a kernel is compiled and configured; see `Kernel`."""

    def declared(function: Any) -> Kernel:
        return Kernel(function, checks, configs, key)

    return declared


def bucket(size: int) -> int:
    """The least power of two that is not under a size: what is tuned for one size is used for all that share it."""
    return 1 << max(0, size - 1).bit_length()


def dense(tensor: Tensor) -> Tensor:
    """The tensor, copied if its last dimension is not dense."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def strides_of(tensor: Tensor | None, *dims: int) -> tuple[int, ...]:
    """Strides of some dimensions; of a dimension of size 1, or where there is no tensor, 0."""
    if tensor is None:
        return (0,) * len(dims)
    return tuple(tensor.stride(each) if tensor.shape[each] > 1 else 0 for each in dims)


def as_bytes(flags: Tensor | None) -> Tensor | None:
    """Booleans as the bytes they are, for a kernel."""
    return None if flags is None else dense(flags).view(torch.uint8)
