"""Prompts taken in once and handed to the caches of many methods: all attend densely to a first prompt."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from louiskv.attach import attach
from louiskv.cache import LouisKVCache, passing
from louiskv.methods.base import AttentionOptions, DenseAttention
from louiskv.methods.full import Full, FullLayer


@dataclass(frozen=True)
class LayerPrompt:
    """What a managed layer was given with a prompt: the arguments of `KVLayer.prompt`."""

    query: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor | None
    options: AttentionOptions


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts that full attention has taken in.

    Attributes:
        ids: [B, T], padded on the left.
        mask: [B, T] False for padding.
        logits: [B, vocabulary] for the token behind the prompt.
        layers: What each managed layer was given.
        others: The layers of the cache that no method manages, by index.
    """

    ids: Tensor
    mask: Tensor
    logits: Tensor
    layers: list[LayerPrompt]
    others: dict[int, Any]

    def replay(self, kv_cache: LouisKVCache) -> None:
        """Give an empty cache what the model would give it with this prompt.

        The method does with it what it always does; only the dense attention, whose output is known, is left out.
        """
        for layer, given in zip(kv_cache.managed, self.layers, strict=True):
            layer.update(given.keys, given.values)
            layer.attend(given.query, given.mask, given.options, _unneeded)
        for index, other in self.others.items():
            kv_cache.layers[index] = deepcopy(other)


@torch.inference_mode()
def take_in(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Prompt:
    """Let the model read a batch of prompts by full attention, and keep what each layer was given.

    Args:
        model: The model, attached to nothing.
        ids: [B, T], padded on the left.
        mask: [B, T] False for padding.
    """
    position = (mask.cumsum(1) - 1).clamp(min=0)
    with attach(model, _Recorded()) as kv_cache:
        out = model(ids, attention_mask=mask, position_ids=position, **passing(model, kv_cache), logits_to_keep=1)
    states = [layer.state for layer in kv_cache.managed]
    layers = [state.given for state in states if isinstance(state, _RecordedLayer)]
    others = {index: layer for index, layer in enumerate(kv_cache.layers) if layer not in kv_cache.managed}
    return Prompt(ids, mask, out.logits[:, -1].float(), layers, others)


class _Recorded(Full):
    paper: ClassVar[str] = Full.paper

    def layer(self, layer_index: int, impl: str | None = None) -> "_RecordedLayer":
        return _RecordedLayer(impl)


class _RecordedLayer(FullLayer):
    given: LayerPrompt

    def prompt(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        valid: Tensor | None,
        options: AttentionOptions,
        dense: DenseAttention,
    ) -> Tensor:
        self.given = LayerPrompt(query, keys, values, mask, options)
        return super().prompt(query, keys, values, mask, valid, options, dense)


def _unneeded(query: Tensor, _keys: Tensor, values: Tensor, _mask: Tensor | None) -> Tensor:
    return query[..., : values.shape[-1]]
