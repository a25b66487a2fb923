"""A decode step as a CUDA graph: captured once, replayed for every token after that."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from louiskv.cache import LouisKVCache, passing
from louiskv.cache_layer import CacheLayer


def why_not(model: PreTrainedModel, kv_cache: LouisKVCache) -> str | None:
    """Why the decode steps of a model with this cache cannot be captured, None if they can."""
    if model.device.type != "cuda":
        return f"the model is on {model.device}, and CUDA graphs need a GPU"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "the model is spread over several devices"
    left = [type(layer).__name__ for layer in kv_cache.layers if not isinstance(layer, CacheLayer)]
    if left:
        return f"the model has cache layers that are not louiskv's ({', '.join(sorted(set(left)))})"
    if not all(layer.state.waits_for_nothing for layer in kv_cache.managed):
        return f"{type(kv_cache.method).__name__} decides on the host what a step does"
    return None


class EagerStep:
    """Runs the model for one new token of each sequence."""

    def __init__(self, model: PreTrainedModel, kv_cache: LouisKVCache, positions: Tensor) -> None:
        """Begin behind a prompt whose last tokens stand at `positions` [B]."""
        self.model, self.kv_cache = model, kv_cache
        self.tokens = torch.zeros_like(positions)[:, None]
        self.positions = positions[:, None].clone()

    def run(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Feed tokens [B]; returns logits [B, V] of the next.

        Args:
            tokens: [B].
            positions: [B] where they stand; None for one behind those before.
        """
        self._place(tokens, positions)
        return self._forward()

    def touch(self) -> None:
        """Learn that the states were changed from outside."""

    def _place(self, tokens: Tensor, positions: Tensor | None) -> None:
        self.tokens.copy_(tokens[:, None])
        if positions is None:
            self.positions += 1
        else:
            self.positions.copy_(positions[:, None])

    def _forward(self) -> Tensor:
        output = self.model(
            input_ids=self.tokens,
            position_ids=self.positions,
            use_cache=True,
            **passing(self.model, self.kv_cache),
        )
        logits: Tensor = output.logits[:, -1]
        return logits


class CapturedStep(EagerStep):
    """The same, captured when nothing of a step's shape changes any more.

    All that a step needs is written in place: the tokens come in and the logits go out through tensors that stay where
    they are, and what a layer's state has set anew in the step, the graph copies back to where it was.

    Attributes:
        num_captured: How often a step was captured: anew when a state has grown.
    """

    def __init__(self, model: PreTrainedModel, kv_cache: LouisKVCache, positions: Tensor) -> None:
        super().__init__(model, kv_cache, positions)
        self.num_captured = 0
        self._touched = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._held: dict[Any, Tensor] = {}
        self._logits: Tensor
        self._shapes: dict[Any, torch.Size] = {}

    def touch(self) -> None:
        """Learn that the states were changed from outside: where shapes are the same, the graph stays what it is."""
        self._touched = True

    def run(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Feed tokens [B]; returns logits [B, V] of the next, which hold until the next run."""
        self._place(tokens, positions)
        changed = [layer.begin_step() for layer in self.kv_cache.managed]
        if (any(changed) or self._touched) and not self._settle():
            self._graph, self._held = None, {}
        self._touched = False
        if self._graph is None:
            # A step that runs as it is compiles and tunes all that the graph will launch.
            if not self._is_steady():
                return self._forward()
            self._capture()
        else:
            for layer in self.kv_cache.managed:
                layer.count_step()
        assert self._graph is not None
        self._graph.replay()
        return self._logits

    def _is_steady(self) -> bool:
        """Whether the states have the shapes that they had at the last step."""
        shapes = {path: tensor.shape for path, _, tensor in tensors_of(self.kv_cache)}
        steady, self._shapes = shapes == self._shapes, shapes
        return steady

    def _settle(self) -> bool:
        """Copy what the host's part of a step has set anew back to where the graph has it; False if it does not fit."""
        now = list(tensors_of(self.kv_cache))
        if self._graph is None or {path: tensor.shape for path, _, tensor in now} != _shapes_of(self._held):
            return False
        if any(owner is None and tensor is not self._held[path] for path, owner, tensor in now):
            return False
        for path, owner, tensor in now:
            _put_back(owner, path[-1], tensor, self._held[path])
        return True

    def _capture(self) -> None:
        self._held = {path: tensor for path, _, tensor in tensors_of(self.kv_cache)}
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._forward()
            for path, owner, tensor in tensors_of(self.kv_cache):
                _put_back(owner, path[-1], tensor, self._held[path])
        self.num_captured += 1


def _shapes_of(tensors: dict[Any, Tensor]) -> dict[Any, torch.Size]:
    return {path: tensor.shape for path, tensor in tensors.items()}


def _put_back(owner: Any, name: str, tensor: Tensor, held: Tensor) -> None:
    if tensor is not held:
        held.copy_(tensor)
        setattr(owner, name, held)


def tensors_of(kv_cache: LouisKVCache) -> Iterator[tuple[tuple[Any, ...], Any, Tensor]]:
    """Path, owner and value of every tensor in the states of a cache; no owner where it stands in a tuple."""
    for layer in kv_cache.managed:
        yield from _tensors((layer.index,), layer.state)


def _tensors(path: tuple[Any, ...], owner: Any) -> Iterator[tuple[tuple[Any, ...], Any, Tensor]]:
    for name, value in vars(owner).items():
        if isinstance(value, Tensor):
            yield (*path, name), owner, value
        elif isinstance(value, tuple):
            yield from (((*path, name, place), None, part) for place, part in enumerate(value) if torch.is_tensor(part))
        for place, part in enumerate(value if isinstance(value, tuple) else (value,)):
            if type(part).__module__.startswith("louiskv.") and hasattr(part, "__dict__"):
                yield from _tensors((*path, name, place), part)
