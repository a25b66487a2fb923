"""What is decoded: real text, its keys and values, and longer contexts made from them."""

from collections.abc import Callable
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from louiskv.cache import passing
from louiskv.errors import UnsupportedModelError

# Noise on repeated keys and values, relative to the spread of each channel, so that no two tokens are the same.
NOISE = 0.1


@dataclass(frozen=True)
class Prefilled:
    """A context taken in once, to be loaded into every contestant's cache.

    Attributes:
        keys: [B, Hkv, T, D] of each layer.
        values: [B, Hkv, T, D] of each layer.
        position: Position that the next token gets.
        num_real: Tokens of the context that are real text; the others repeat them with noise.
        continuation: [1, steps] ids of the text that follows.
    """

    keys: list[Tensor]
    values: list[Tensor]
    position: int
    num_real: int
    continuation: Tensor

    @property
    def context(self) -> int:
        """Tokens of the context."""
        return self.keys[0].shape[2]


def text_ids(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> Tensor:
    """Ids [1, num_tokens] of real technical prose: Python's own documentation, repeated if need be."""
    ids = tokenizer("\n\n".join(topics.values()), verbose=False)["input_ids"]
    repeats = -(-num_tokens // len(ids))
    return torch.tensor([(ids * repeats)[:num_tokens]])


def prefill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: list[int],
    steps: int,
    progress: Callable[[int], None],
) -> list[Prefilled]:
    """Take in the longest context that the model has positions for, once, and make all contexts from it.

    Args:
        model: The model, all of whose layers have a cache of plain keys and values.
        tokenizer: Its tokenizer.
        contexts: Lengths wanted.
        steps: Tokens that will be decoded after each.
        progress: Called with the number of tokens taken in.

    Raises:
        UnsupportedModelError: The model has layers that are not plain full attention.
    """
    limit = model.config.get_text_config(decoder=True).max_position_embeddings - steps
    num_real = min(max(contexts), limit)
    ids = text_ids(tokenizer, num_real + steps).to(model.device)
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        for part in ids[:, :num_real].split(1024, dim=1):
            model(part, **passing(model, cache), logits_to_keep=1)
            progress(part.shape[1])
    layers = [layer for layer in cache.layers if type(layer) is DynamicLayer]
    if len(layers) < len(cache.layers):
        raise UnsupportedModelError(f"{model.config.model_type} has layers of other kinds; bench needs full attention.")
    keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
    return [
        Prefilled(
            [_of_length(each, context) for each in keys],
            [_of_length(each, context) for each in values],
            position=min(context, num_real),
            num_real=min(context, num_real),
            continuation=ids[:, min(context, num_real) :][:, :steps],
        )
        for context in contexts
    ]


def _of_length(states: Tensor | None, length: int) -> Tensor:
    """The first `length` tokens, the real ones repeated with noise where there are fewer."""
    assert states is not None
    num_real = states.shape[2]
    if length <= num_real:
        return states[:, :, :length]
    generator = torch.Generator(states.device).manual_seed(0)
    copies = [states]
    for first in range(num_real, length, num_real):
        part = states[:, :, : min(num_real, length - first)]
        noise = torch.randn(part.shape, generator=generator, dtype=torch.float32, device=part.device)
        copies.append(part + (NOISE * noise).to(part.dtype) * states.std(dim=2, keepdim=True))
    return torch.cat(copies, dim=2)
