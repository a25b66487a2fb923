"""What a model gets in the place of keys and values that louiskv manages."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from louiskv.errors import UnsupportedModelError
from louiskv.methods.base import AttentionOptions, DenseAttention


class Managed(Protocol):
    """A layer of the cache, as attention needs it."""

    index: int

    def attend(self, query: Tensor, mask: Tensor | None, options: AttentionOptions, dense: DenseAttention) -> Tensor:
        """Attend with the queries [B, Hq, Tq, D] of the tokens that came last."""


# What may be read of a handle; attributes are known by their getters.
_READABLE = {
    *(vars(torch._C.TensorBase)[name].__get__ for name in ("shape", "dtype", "device", "ndim")),
    Tensor.size,
    Tensor.dim,
}


class Handle(Tensor):
    """Stands for the keys or values of a managed layer: has their shape, dtype and device, and nothing to compute with.

    Attributes:
        layer: The cache layer that holds them.
    """

    layer: Managed

    @staticmethod
    def __new__(cls, layer: Managed, shape: tuple[int, ...], like: Tensor) -> "Handle":
        """Make a handle of the given shape, with the dtype and device of `like`."""
        make: Callable[..., Handle] = torch.Tensor._make_wrapper_subclass
        handle = make(cls, shape, dtype=like.dtype, device=like.device)
        handle.layer = layer
        return handle

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let shape, dtype and device be read, and nothing else."""
        if func in _READABLE:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        raise UnsupportedModelError(
            f"The model applied {getattr(func, '__name__', func)!r} to keys or values that louiskv manages. Either its "
            "attention is not louiskv's: run it inside `with louiskv.attach(model, method)`, or with "
            "attn_implementation='louiskv'; or its attention works on the cache itself, and the model is not supported."
        )

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse every operation that got past `__torch_function__`."""
        return cls.__torch_function__(func, types, args, kwargs)
