"""A cache of any shape that lives through a recording: the model computes, and the recording is what is asked for."""

import torch
from torch import Tensor
from transformers import PretrainedConfig

from louiskv.bench.recording import Recording
from louiskv.bench.shapes import Shape
from louiskv.cache import LouisKVCache
from louiskv.methods.base import Method


class Now:
    """The step of the recording that is played; behind the last one comes the first."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        self.num_steps = num_steps
        # In front of the first: it is counted on before anything is read.
        self.step = torch.full((1,), -1, dtype=torch.int64, device=device)

    def count(self) -> None:
        """Go on to the next step; where the step lies stays the same, so that a graph can count."""
        self.step.add_(1).remainder_(self.num_steps)


class Stage:
    """Gives one layer what was recorded in the place of what the model computes for a decode step."""

    def __init__(self, script: Tensor, num_query_heads: int, now: Now, counts: bool) -> None:
        """Play a script [S, B, Hq + 2 Hkv, D]; one layer of all counts the steps."""
        self._script, self._num_query_heads, self._now, self._counts = script, num_query_heads, now, counts
        self._rows: Tensor

    def states(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The recorded keys and values."""
        if keys.shape[2] > 1:
            return keys, values
        if self._counts:
            self._now.count()
        self._rows = self._script.index_select(0, self._now.step)[0]
        recorded, values = self._rows[:, self._num_query_heads :, None].chunk(2, dim=1)
        return recorded, values

    def query(self, query: Tensor) -> Tensor:
        """The recorded queries."""
        return query if query.shape[2] > 1 else self._rows[:, : self._num_query_heads, None]


def shape_of(config: PretrainedConfig, dtype: torch.dtype) -> Shape:
    """The shape of a layer of a model."""
    num_kv_heads = config.num_key_value_heads
    return Shape(num_kv_heads, config.num_attention_heads // num_kv_heads, config.head_dim, dtype)


def on_stage(
    config: PretrainedConfig,
    method: Method,
    recording: Recording,
    batch: int,
    context: int,
    impl: str | None,
) -> LouisKVCache:
    """A cache of a model that holds recorded contexts and will be given the recorded steps."""
    kv_cache = LouisKVCache(config, method, impl)
    num_layers = config.num_hidden_layers
    device = recording.steps[0].device
    now = Now(len(recording.steps[0]), device)
    for number, layer in enumerate(kv_cache.managed):
        shape = shape_of(config, recording.steps[0].dtype)
        layer.load(*recording.context(layer.index, num_layers, shape, batch, context))
        script = recording.script(layer.index, num_layers, shape, batch)
        layer.tap = Stage(script, config.num_attention_heads, now, counts=number == 0)
    return kv_cache
