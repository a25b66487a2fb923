"""Batches of prompts: padded on the left, taken in once, answered by each method."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv.cache import LouisKVCache, passing
from louiskv.evaluation.replay import Prompt


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor [B, T], padded on the left, and [B, T] False for padding."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for each, row in enumerate(rows):
        ids[each, longest - len(row) :] = torch.tensor(row)
        mask[each, longest - len(row) :] = True
    return ids.to(device), mask.to(device)


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    kv_cache: LouisKVCache,
    prompt: Prompt,
    spoken: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: set[int],
) -> list[list[int]]:
    """Generate greedily behind a prompt that the cache holds.

    Args:
        model: The model, attached to the cache's method.
        kv_cache: The cache.
        prompt: What it holds.
        spoken: Ids that each row is made to say first.
        max_new_tokens: Most tokens of an answer.
        ends: Ids that end an answer.

    Returns:
        The answer of each row, without what was spoken and without the end.
    """
    said: list[list[int]] = [[] for _ in spoken]
    done = [False] * len(spoken)
    steps = Steps(model, kv_cache, prompt)
    logits = prompt.logits
    for step in range(max(map(len, spoken)) + max_new_tokens):
        likeliest = logits.argmax(-1).tolist()
        tokens = []
        for row, first in enumerate(spoken):
            token = first[step] if step < len(first) else likeliest[row]
            if step >= len(first) and not done[row]:
                done[row] = token in ends or len(said[row]) + 1 == max_new_tokens
                if token not in ends:
                    said[row].append(token)
            tokens.append(token)
        if all(done):
            break
        logits = steps.feed(torch.tensor(tokens, device=logits.device))
    return said


class Steps:
    """Decode steps behind a prompt, each given its token."""

    def __init__(self, model: PreTrainedModel, kv_cache: LouisKVCache, prompt: Prompt) -> None:
        self.model, self.kv_cache = model, kv_cache
        self.position = prompt.mask.sum(1)
        self.mask = None if bool(prompt.mask.all()) else prompt.mask

    def feed(self, tokens: Tensor) -> Tensor:
        """Feed one token [B] of each row; returns the logits [B, vocabulary] for the next."""
        if self.mask is not None:
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=True)
        out = self.model(
            tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            **passing(self.model, self.kv_cache),
        )
        self.position = self.position + 1
        logits: Tensor = out.logits[:, -1].float()
        return logits


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids after which the model says nothing more."""
    configured: Any = None if model.generation_config is None else model.generation_config.eos_token_id
    several = configured if isinstance(configured, Iterable) else [configured]
    return {end for end in (*several, tokenizer.eos_token_id) if end is not None}
