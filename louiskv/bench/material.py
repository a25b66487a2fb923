"""What is decoded: real text, its keys and values, and longer contexts and batches made from them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from louiskv.cache import passing
from louiskv.errors import SettingsError, UnsupportedModelError

# Noise on repeated keys and values, relative to the spread of each channel, so that no two tokens are the same.
NOISE = 0.1
# First tokens that every sequence of a batch keeps: attention rests on them.
HEAD = 16


@dataclass(frozen=True)
class Prefilled:
    """A context, to be loaded into every contestant's cache; its keys and values are made layer by layer.

    Attributes:
        real: Keys and values [1, Hkv, T, D] of real text in each layer, shared by all contexts.
        context: Tokens of each sequence.
        ends: Where the text of each sequence ends in the real one; the position that its next token gets.
        continuation: [B, steps] ids of what follows.
    """

    real: list[tuple[Tensor, Tensor]]
    context: int
    ends: tuple[int, ...]
    continuation: Tensor

    @property
    def batch(self) -> int:
        """Sequences."""
        return len(self.ends)

    @property
    def num_real(self) -> int:
        """Tokens of the first sequence that are real text; the others repeat them with noise."""
        return min(self.context, *self.ends)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return sum(states[0, :, 0].nbytes for layer in self.real for states in layer)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, Hkv, context, D] of one layer."""
        keys, values = (self._batched(states) for states in self.real[index])
        return keys, values

    def _batched(self, states: Tensor) -> Tensor:
        made = states.new_empty(self.batch, states.shape[1], self.context, states.shape[3])
        for row in range(self.batch):
            self._fill(made[row], states[0], row)
        return made

    def _fill(self, place: Tensor, states: Tensor, row: int) -> None:
        """The text's first tokens and those before its end; repeated with noise if they are too few or known."""
        end = self.ends[row]
        if self.context < end:
            first = min(HEAD, self.context)
            place[:, :first] = states[:, :first]
            place[:, first:] = states[:, end - self.context + first : end]
            return
        generator = torch.Generator(states.device).manual_seed(row)
        spread = NOISE * states[:, :end].std(dim=1, keepdim=True)
        for first in range(0, self.context, end):
            part = place[:, first : first + end]
            part.copy_(states[:, : part.shape[1]])
            if first or end in self.ends[:row]:
                noise = torch.randn(part.shape, generator=generator, dtype=torch.float32, device=part.device)
                part += noise.to(part.dtype) * spread


def text_ids(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> Tensor:
    """Ids [1, num_tokens] of real technical prose: Python's own documentation, repeated if need be."""
    # A token has far fewer than 16 letters, so what lies behind them need not be read.
    ids = tokenizer("\n\n".join(topics.values())[: 16 * num_tokens], verbose=False)["input_ids"]
    repeats = -(-num_tokens // len(ids))
    return torch.tensor([(ids * repeats)[:num_tokens]])


def ends(context: int, batch: int, limit: int) -> tuple[int, ...]:
    """Where the sequences of a batch end in a text of at most `limit` tokens: apart, as far as there is room."""
    real = min(context, limit)
    apart = min(context, (limit - real) // max(1, batch - 1))
    return tuple(real + row * apart for row in range(batch))


def text_limit(model: PreTrainedModel, steps: int) -> int:
    """Most tokens of real text that the model has positions for, with room for the steps.

    Raises:
        SettingsError: The steps need all of them.
    """
    positions: int = model.config.get_text_config(decoder=True).max_position_embeddings
    if steps >= positions:
        raise SettingsError(f"--steps {steps} leaves no position for a context: the model has {positions}. Give fewer.")
    return positions - steps


def prefill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shapes: Iterable[tuple[int, int]],
    steps: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Prefilled]:
    """Take in a text once, as far as the model has positions, and make all contexts from it.

    The sequences of a batch are the text's first tokens and stretches that end at different places of it. Where it is
    too short for that, they are the same text with different noise, and go on with different text.

    Args:
        model: The model, all of whose layers have a cache of plain keys and values.
        tokenizer: Its tokenizer.
        shapes: Context and batch of each.
        steps: Tokens that will be decoded after each.
        progress: Called with the number of tokens taken in, and of all.

    Raises:
        UnsupportedModelError: The model has layers that are not plain full attention.
    """
    limit = text_limit(model, steps)
    wanted = [(context, ends(context, batch, limit)) for context, batch in shapes]
    length = max(max(stops) for _, stops in wanted)
    most = max(len(stops) for _, stops in wanted)
    ids = text_ids(tokenizer, length + steps * most).to(model.device)
    real = _take_in(model, ids[:, :length], progress)
    made = []
    for context, stops in wanted:
        starts = [stop + steps * stops[:row].count(stop) for row, stop in enumerate(stops)]
        following = torch.cat([ids[:, start : start + steps] for start in starts])
        made.append(Prefilled(real, context, stops, following))
    return made


def _take_in(model: PreTrainedModel, ids: Tensor, progress: Callable[[int, int], None]) -> list[tuple[Tensor, Tensor]]:
    cache = DynamicCache(config=model.config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        raise UnsupportedModelError(f"{model.config.model_type} has layers of other kinds; bench needs full attention.")
    done, total = 0, ids.shape[1]
    with torch.inference_mode():
        for part in ids.split(1024, dim=1):
            model(part, **passing(model, cache), logits_to_keep=1)
            done += part.shape[1]
            progress(done, total)
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr, misc]
