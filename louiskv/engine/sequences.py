"""A request on its way: while its prompt is taken in, and while its answer is decoded."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from louiskv.cache import LouisKVCache, chunks, passing
from louiskv.engine.answer import Answer
from louiskv.engine.request import Piece, Usage
from louiskv.engine.text import Text


@dataclass(eq=False)
class Prompt:
    """A prompt that is being taken in with a cache of its own.

    Attributes:
        answer: Who waits for it.
        cache: Holds what was taken in.
        token_ids: The whole prompt.
        known: Tokens that the cache holds.
        cached: Tokens that it held from an earlier turn.
        longest: Tokens of prompt and answer at the most.
        logits: [1, V] of the next token, once all is in.
    """

    answer: Answer
    cache: LouisKVCache
    token_ids: list[int]
    known: int
    cached: int
    longest: int
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        """Let the cache make room for all chunks at once."""
        self.cache.expect(len(self.token_ids))

    def take_in(self, model: PreTrainedModel, chunk_size: int) -> int:
        """Take in the next chunk; returns its tokens."""
        first, end = next(chunks(self.known, len(self.token_ids), chunk_size))
        ids = torch.tensor([self.token_ids[first:end]], device=model.device)
        positions = torch.arange(first, end, device=model.device)[None]
        output = model(
            input_ids=ids, position_ids=positions, use_cache=True, logits_to_keep=1, **passing(model, self.cache)
        )
        if model.device.type == "cuda":
            # What still runs beside this must not meet the capture of a step.
            self.cache.reserve(0)
        self.known = end
        if end == len(self.token_ids):
            self.logits = output.logits[:, -1]
        return end - first


@dataclass(eq=False)
class Running:
    """An answer that is being decoded.

    Attributes:
        answer: Who waits for it.
        number: By which the batch knows it.
        token_ids: Prompt and answer; the last one was not fed yet.
        num_prompt: Tokens of the prompt.
        cached: Tokens of it that were there from an earlier turn.
        longest: Tokens of prompt and answer at the most.
        text: What becomes of the tokens.
        fired: For each step, the share of KV heads that retrieved.
        attended: [L, T] how often each position was attended to, if the request is watched.
    """

    answer: Answer
    number: int
    token_ids: list[int]
    num_prompt: int
    cached: int
    longest: int
    text: Text
    fired: list[float] = field(default_factory=list)
    attended: Tensor | None = None

    @property
    def usage(self) -> Usage:
        """What it has taken so far."""
        return Usage(self.num_prompt, self.cached, len(self.token_ids) - self.num_prompt)

    def watch(self, counts: Tensor) -> None:
        """Add what was attended to at one step, [L, T]."""
        if self.attended is not None:
            counts[:, : self.attended.shape[1]] += self.attended
        self.attended = counts

    def piece(self, text: str, finish_reason: str | None, **more: object) -> Piece:
        """A piece of the answer; the last one with its usage."""
        usage = None if finish_reason is None else self.usage
        fired = self.fired[-1] if self.fired else 0.0
        return Piece(text=text, finish_reason=finish_reason, fired=fired, usage=usage, **more)  # type: ignore[arg-type]
