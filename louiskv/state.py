"""The tensors of a state, wherever they stand in it: found, and brought back to where they were."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

# Where a tensor is found: names of attributes, and places in tuples.
Path = tuple[Any, ...]


# Figures, of which there may be more at any step: they change nothing of what a step does.
FIGURES = "telemetry"


class Held:
    """The tensors of some states as they were."""

    def __init__(self, states: list[Any]) -> None:
        self.states = states
        self.tensors = {path: tensor for path, _, tensor in tensors_of(states)}

    def settle(self) -> bool:
        """Copy what was set anew to where it was, so that the states are the same tensors as before.

        Returns:
            Whether it was possible: not if there are others now, or of other shapes; then nothing was done.
        """
        now = list(tensors_of(self.states))
        self.tensors |= {path: each for path, _, each in now if FIGURES in path and path not in self.tensors}
        if {path: each.shape for path, _, each in now} != {path: each.shape for path, each in self.tensors.items()}:
            return False
        moved = [(path, owner, tensor) for path, owner, tensor in now if tensor is not self.tensors[path]]
        if any(owner is None for _, owner, _ in moved):
            return False
        for path, owner, tensor in moved:
            self.tensors[path].copy_(tensor)
            setattr(owner, path[-1], self.tensors[path])
        return True


def tensors_of(states: list[Any]) -> Iterator[tuple[Path, Any, Tensor]]:
    """Path, owner and value of every tensor in some states; no owner where it stands in a tuple."""
    for number, state in enumerate(states):
        yield from _tensors((number,), state)


def _tensors(path: Path, owner: Any) -> Iterator[tuple[Path, Any, Tensor]]:
    for name, value in vars(owner).items():
        if isinstance(value, Tensor):
            yield (*path, name), owner, value
        elif isinstance(value, tuple):
            parts = ((place, part) for place, part in enumerate(value) if isinstance(part, Tensor))
            yield from (((*path, name, place), None, part) for place, part in parts)
        for place, part in enumerate(value if isinstance(value, tuple) else (value,)):
            if type(part).__module__.startswith("louiskv.") and hasattr(part, "__dict__"):
                yield from _tensors((*path, name, place), part)
