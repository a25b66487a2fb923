"""How an operation finds the implementation that runs it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from louiskv.errors import ImplementationError


def _runs_everywhere(_device: torch.device) -> str | None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
        name: What `impl=` selects it by.
        function: Computes the operation; all implementations of one operation share its signature.
        refusal: Says why it cannot run on a device, or None where it can.
    """

    name: str
    function: Callable[..., Any]
    refusal: Callable[[torch.device], str | None] = _runs_everywhere


def choose(
    op: str, implementations: Sequence[Implementation], impl: str | None, device: torch.device
) -> Callable[..., Any]:
    """Return the implementation named `impl`, or the first that can run on `device` when `impl` is None.

    An implementation asked for by name is never replaced by another.

    Raises:
        ImplementationError: None can run, or the named one cannot; says for each why it was refused.
    """
    refused = []
    for candidate in implementations:
        if impl is not None and candidate.name != impl:
            continue
        reason = candidate.refusal(device)
        if reason is None:
            return candidate.function
        refused.append(f"{candidate.name}: {reason}")
    known = ", ".join(candidate.name for candidate in implementations)
    why = "; ".join(refused) or f"there is no {impl!r}"
    raise ImplementationError(f"{op} cannot run as impl={impl!r} on {device}: {why}. It has: {known}.")
