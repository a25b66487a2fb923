"""A decode step as a CUDA graph: captured once, replayed for every token after that."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from louiskv.cache import LouisKVCache, passing
from louiskv.cache_layer import CacheLayer
from louiskv.ops.branching import Branches
from louiskv.state import Held

# Which layers have runs that leave the window in a step.
Kind = tuple[bool, ...]


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

    Steps in which runs leave a window are more work than others, so there is a graph for each kind of step. All that a
    step needs is written in place: the tokens come in and the logits go out through tensors that stay where they are,
    and what a layer's state has set anew in the step, the graph copies back to where it was.

    Attributes:
        num_captured: How often a step was captured: each kind once, and anew when a state has grown.
    """

    def __init__(self, model: PreTrainedModel, kv_cache: LouisKVCache, positions: Tensor) -> None:
        super().__init__(model, kv_cache, positions)
        self.num_captured = 0
        self._graphs: dict[Kind, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._seen: set[Kind] = set()
        self._held: Held | None = None
        self._branches = Branches(model.device)

    def touch(self) -> None:
        """Learn that the states were changed from outside: where shapes are the same, graphs stay what they are."""
        if self._held is not None and not self._held.settle():
            self.forget()

    def run(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Feed tokens [B]; returns logits [B, V] of the next, which hold until the next run."""
        self._place(tokens, positions)
        begun = [layer.begin_step() for layer in self.kv_cache.managed]
        if any(each.anew for each in begun):
            self.forget()
        kind = tuple(each.leaves for each in begun)
        if kind in self._graphs:
            for layer in self.kv_cache.managed:
                layer.count_step()
        elif kind in self._seen:
            self._capture(kind)
        else:
            # A step that runs as it is compiles and tunes all that the graph will launch.
            self._seen.add(kind)
            logits = self._whole_step()
            if self._held is None or not self._held.settle():
                self.forget()
                self._held = Held([layer.state for layer in self.kv_cache.managed])
            return logits
        graph, logits = self._graphs[kind]
        graph.replay()
        return logits

    @property
    def num_kinds(self) -> int:
        """Kinds of steps that there are graphs of."""
        return len(self._graphs)

    @property
    def num_seen(self) -> int:
        """Kinds of steps that have run as they are, to be captured when they come again."""
        return len(self._seen)

    def forget(self) -> None:
        """Capture anew, when steps of each kind have run as they are."""
        self._graphs.clear()
        self._seen.clear()
        self._held = None

    def _whole_step(self) -> Tensor:
        logits = self._forward()
        for layer in self.kv_cache.managed:
            layer.catch_up()
        return logits

    def _capture(self, kind: Kind) -> None:
        graph = torch.cuda.CUDAGraph()
        pool = next((known.pool() for known, _ in self._graphs.values()), None)
        with self._branches.capture(graph, pool):
            logits = self._whole_step()
            settled = self._held is not None and self._held.settle()
        assert settled, "a step has changed the shapes of its state"
        self._graphs[kind] = graph, logits
        self.num_captured += 1
