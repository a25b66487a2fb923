"""What a real model asks for in its decode steps, recorded, for layers of other shapes to ask for the same."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv.attach import attach
from louiskv.bench.material import Prefilled, prefill
from louiskv.bench.shapes import Shape
from louiskv.cache import passing
from louiskv.errors import SettingsError
from louiskv.methods.full import Full


@dataclass(frozen=True)
class Recording:
    """A text that a model has read, and its queries, keys and values for the tokens that follow, one at a time.

    A layer of another shape wears it: each of its heads is several recorded heads side by side, each of its KV heads
    another choice of them, so that its logits are sums of real ones. What follows what, and how alike neighbouring
    queries are, is as it was.

    Attributes:
        text: Keys and values of the text, by layer.
        steps: [S, B, Hq + 2 Hkv, D] queries, keys and values of each step, by layer.
        num_kv_heads: Hkv.
    """

    text: Prefilled
    steps: list[Tensor]
    num_kv_heads: int

    def context(self, layer: int, num_layers: int, shape: Shape, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, Hkv, length, D] of one of `num_layers` layers of that shape.

        Raises:
            SettingsError: The shape cannot wear what was recorded.
        """
        chosen = replace(self.text, context=length, ends=self.text.ends[:batch])
        keys, values = chosen.layer(self._layer(layer, num_layers))
        heads = self._kv_heads(shape)
        return _side_by_side(keys, heads, 1).to(shape.dtype), _side_by_side(values, heads, 1).to(shape.dtype)

    def script(self, layer: int, num_layers: int, shape: Shape, batch: int) -> Tensor:
        """[S, B, Hq + 2 Hkv, D] queries, keys and values of each step, worn by one of `num_layers` layers."""
        rows = self.steps[self._layer(layer, num_layers)][:, :batch]
        num_heads = rows.shape[2] - 2 * self.num_kv_heads
        queries, keys, values = rows.split([num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
        group_size, kv_heads = num_heads // self.num_kv_heads, self._kv_heads(shape)
        query_heads = [
            [
                head * group_size + (member + part * (member // group_size)) % group_size
                for part, head in enumerate(parts)
            ]
            for parts in kv_heads
            for member in range(shape.group_size)
        ]
        heads = ((queries, query_heads), (keys, kv_heads), (values, kv_heads))
        return torch.cat([_side_by_side(each, chosen, 2) for each, chosen in heads], dim=2).to(shape.dtype)

    def _layer(self, layer: int, num_layers: int) -> int:
        return layer * len(self.steps) // num_layers

    def _kv_heads(self, shape: Shape) -> list[list[int]]:
        """For each KV head of the shape, the recorded ones that it is made of."""
        dim = self.steps[0].shape[-1]
        if shape.dim % dim:
            raise SettingsError(
                f"Heads of {shape.dim} numbers cannot be made of recorded ones of {dim}. Record another --model, whose "
                f"heads' size divides {shape.dim}."
            )
        base, num_parts = self.num_kv_heads, shape.dim // dim
        return [[head // base**part % base for part in range(num_parts)] for head in range(shape.num_kv_heads)]


def _side_by_side(heads: Tensor, chosen: list[list[int]], dim: int) -> Tensor:
    """Heads [..., D], counted along `dim`, as new heads [..., parts x D], each made of the chosen ones."""
    index = torch.tensor(chosen, device=heads.device)
    parts = [heads.index_select(dim, index[:, part]) for part in range(index.shape[1])]
    return torch.cat(parts, dim=-1)


def record(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int, context: int, steps: int
) -> Recording:
    """Let a model read text, and record what it asks for while it reads on.

    Args:
        model: A real model, attached to nothing.
        tokenizer: Its tokenizer.
        batch: Sequences: stretches of a text that end at different places.
        context: Tokens of each before the first step.
        steps: Tokens read one at a time.
    """
    (text,) = prefill(model, tokenizer, [(context, batch)], steps)
    ears: list[_Ear] = []
    with torch.no_grad(), attach(model, Full()) as kv_cache:
        for layer in kv_cache.managed:
            layer.load(*text.layer(layer.index))
            layer.tap = _Ear()
            ears.append(layer.tap)
        position = torch.tensor(text.ends, device=model.device)[:, None]
        for column in range(steps):
            ids = text.continuation[:, column : column + 1]
            model(ids, position_ids=position + column, **passing(model, kv_cache))
    num_kv_heads = text.real[0][0].shape[1]
    return Recording(text, [ear.heard() for ear in ears], num_kv_heads)


class _Ear:
    """Hears one layer, and changes nothing."""

    def __init__(self) -> None:
        self._states: list[Tensor] = []
        self._queries: list[Tensor] = []

    def states(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Remember and pass on."""
        self._states.append(torch.cat([keys, values], dim=1)[:, :, 0])
        return keys, values

    def query(self, query: Tensor) -> Tensor:
        """Remember and pass on."""
        self._queries.append(query[:, :, 0])
        return query

    def heard(self) -> Tensor:
        """[S, B, Hq + 2 Hkv, D]."""
        return torch.cat([torch.stack(self._queries), torch.stack(self._states)], dim=2)
