"""Fidelity: how far a method's distribution of the next token is from full attention's, over a long output."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from louiskv.attach import attach
from louiskv.cache import LouisKVCache, passing
from louiskv.evaluation.batches import Steps
from louiskv.evaluation.replay import Prompt
from louiskv.methods.full import Full

# Tokens of the reference computed at once.
CHUNK = 256


@dataclass(frozen=True)
class Reference:
    """A text that is fed behind a prompt, and what full attention expects at each place of it.

    Attributes:
        prompt: The prompt.
        output: [B, steps] tokens fed after it.
        log_probs: [B, steps, vocabulary] of the token behind each of them.
        nll: [B, steps - 1] negative log-likelihood of the next of them.
    """

    prompt: Prompt
    output: Tensor
    log_probs: Tensor
    nll: Tensor


@dataclass(frozen=True)
class Curves:
    """How a method differs at each place of the output, means over the batch.

    Attributes:
        kl: [steps] KL divergence from full attention, in nats.
        top1: [steps] share where the likeliest token is full attention's.
        nll: [steps - 1] its negative log-likelihood of the next token less full attention's.
    """

    kl: list[float]
    top1: list[float]
    nll: list[float]


@torch.inference_mode()
def refer(model: PreTrainedModel, prompt: Prompt, output: Tensor, impl: str | None = None) -> Reference:
    """What full attention expects behind each token of an output [B, steps]."""
    with attach(model, Full(), impl=impl) as kv_cache:
        prompt.replay(kv_cache)
        # Made at once: with a large vocabulary, chunks that are joined afterwards would take it twice.
        log_probs, mask = prompt.logits.new_empty(*output.shape, prompt.logits.shape[-1]), prompt.mask
        for part, place in zip(output.split(CHUNK, dim=1), log_probs.split(CHUNK, dim=1), strict=True):
            mask = torch.nn.functional.pad(mask, (0, part.shape[1]), value=True)
            position = (mask.cumsum(1) - 1)[:, -part.shape[1] :]
            out = model(part, attention_mask=mask, position_ids=position, **passing(model, kv_cache))
            place.copy_(torch.log_softmax(out.logits.float(), dim=-1))
    return Reference(prompt, output, log_probs, _nll(log_probs[:, :-1], output[:, 1:]))


@torch.inference_mode()
def compare(
    model: PreTrainedModel,
    kv_cache: LouisKVCache,
    reference: Reference,
    progress: Callable[[int], None] = lambda _: None,
) -> Curves:
    """Feed the same output to a method one token at a time.

    Args:
        model: The model, attached to the cache's method.
        kv_cache: The cache, which holds the prompt.
        reference: The output and what full attention expects.
        progress: Called with the number of tokens fed.
    """
    rows = list(_rows(model, kv_cache, reference, progress))
    kl, top1, nll = (torch.stack(each).tolist() for each in zip(*rows, strict=True))
    return Curves(kl, top1, nll[:-1])


def _rows(
    model: PreTrainedModel, kv_cache: LouisKVCache, reference: Reference, progress: Callable[[int], None]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    steps, num_steps = Steps(model, kv_cache, reference.prompt), reference.output.shape[1]
    for step in range(num_steps):
        log_probs = torch.log_softmax(steps.feed(reference.output[:, step]), dim=-1)
        expected = reference.log_probs[:, step]
        divergence = (expected.exp() * (expected - log_probs)).sum(-1)
        same = (log_probs.argmax(-1) == expected.argmax(-1)).float()
        behind = min(step, num_steps - 2)
        loss = _nll(log_probs, reference.output[:, behind + 1]) - reference.nll[:, behind]
        progress(step + 1)
        yield divergence.mean(), same.mean(), loss.mean()


def _nll(log_probs: Tensor, tokens: Tensor) -> Tensor:
    return -log_probs.gather(-1, tokens[..., None])[..., 0]
