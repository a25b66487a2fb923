"""How an operation finds the implementation that runs it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from louiskv.errors import ImplementationError
from louiskv.ops import refusals


def _runs_everywhere(_like: Tensor) -> str | None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
        name: What `impl=` selects it by.
        function: Computes the operation; all implementations of one operation share its signature.
        refusal: Says why it cannot run on tensors of the dtype and device of one, or None where it can.
        home: Type of the devices on which it is taken without being named; None for all. Elsewhere it may run, slowly.
    """

    name: str
    function: Callable[..., Any]
    refusal: Callable[[Tensor], str | None] = _runs_everywhere
    home: str | None = None

    def declines(self, like: Tensor) -> str | None:
        """Why it does not run on tensors like one unless it is named, None if it does."""
        reason = self.refusal(like)
        if reason is None and self.home not in (None, like.device.type):
            return f"on {like.device} it runs only when it is named"
        return reason


# Best first: of those that can run, the first does.
_REFUSALS: dict[str, Callable[[Tensor], str | None]] = {
    "cuda": refusals.refuses_cuda,
    "triton": refusals.refuses_triton,
    "cpu": refusals.refuses_cpu,
}
_HOMES = {"cuda": "cuda", "triton": "cuda", "cpu": "cpu"}


def implementations(module: str, reference: Callable[..., Any], twins: Sequence[str]) -> tuple[Implementation, ...]:
    """The twins of an operation, best first, then its reference.

    The twin `x_cpu.name` of the reference `x._name` takes the same arguments. It is imported when it is first used.

    Args:
        module: Name of the reference's module, x.
        reference: The specification, in plain torch.
        twins: Of "cuda", "triton" and "cpu" those that there are.
    """
    name = reference.__name__.removeprefix("_")
    found = [
        Implementation(twin, _imported_late(f"louiskv.ops.{module}_{twin}", name), refusal, _HOMES[twin])
        for twin, refusal in _REFUSALS.items()
        if twin in twins
    ]
    return (*found, Implementation("torch", reference))


def _imported_late(module: str, name: str) -> Callable[..., Any]:
    found: list[Callable[..., Any]] = []

    # While `torch.compile` traces a call, this is run and not traced.
    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def find() -> None:
        if not found:
            found.append(getattr(import_module(module), name))

    def call(*args: Any) -> Any:
        find()
        return found[0](*args)

    return call


def choose(op: str, candidates: Sequence[Implementation], impl: str | None, like: Tensor) -> Callable[..., Any]:
    """Return the implementation named `impl`, or the first that can run on tensors like one when `impl` is None.

    `impl` may name several, with commas between them: the first named that the operation has and that can run.
    An implementation that is not named never runs.

    Raises:
        ImplementationError: None can run, or none of those named; says for each why it was refused.
    """
    if torch.compiler.is_compiling():
        return _choose(op, candidates, impl, like)
    # A step asks for the same again and again; what can run once can run until the process ends.
    asked = op, impl, like.dtype, like.device.type
    found = _FOUND.get(asked)
    if found is not None and found[0] is candidates:
        return found[1]
    chosen = _choose(op, candidates, impl, like)
    _FOUND[asked] = candidates, chosen
    return chosen


_FOUND: dict[tuple[str, str | None, torch.dtype, str], tuple[Sequence[Implementation], Callable[..., Any]]] = {}


def _choose(op: str, candidates: Sequence[Implementation], impl: str | None, like: Tensor) -> Callable[..., Any]:
    if impl is not None:
        by_name = {candidate.name: candidate for candidate in candidates}
        known, candidates = candidates, [by_name[name] for name in impl.split(",") if name in by_name]
    refused = []
    for candidate in candidates:
        reason = candidate.declines(like) if impl is None else candidate.refusal(like)
        if reason is None:
            return candidate.function
        refused.append(f"{candidate.name}: {reason}")
    why = "; ".join(refused) or f"there is no {impl!r}"
    names = ", ".join(candidate.name for candidate in known)
    more = "" if impl is None else f" Several may be named, the first first, as in impl='{impl},torch'."
    raise ImplementationError(f"{op} cannot run as impl={impl!r} on {like.device}: {why}. It has: {names}.{more}")
