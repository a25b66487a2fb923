"""Attention over keys and values that lie on the device: of one query, and of many together with their weights.

Layouts: N = batch x KV heads, G = query heads of one query group. Scores are computed as `scaling * q.k`, then capped,
then biased; the softmax runs in float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations
from louiskv.ops.partial_attention import scores_of
from louiskv.ops.ragged import take_rows


class Rest(NamedTuple):
    """Entries that stand for many tokens each: units of which only summaries are at hand.

    Attributes:
        logits: [N, G, E] float32 of the mean key, scaled and not capped.
        num_tokens: [N, E] how many tokens it stands for; 0 closes an entry.
        values: [N, E, Dv] mean values, or codes of them.
        steps: [N, E] by which the values are multiplied.
    """

    logits: Tensor
    num_tokens: Tensor
    values: Tensor
    steps: Tensor


class Chosen(NamedTuple):
    """Tokens that are attended to where they lie, in memory that is the device's own.

    Attributes:
        rows: [N, C, D + Dv], the value of a token behind its key.
        place: [N, S] int32, which of them take part; -1 for none.
    """

    rows: Tensor
    place: Tensor


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    attention_sinks: Tensor | None = None,
    chosen: Chosen | None = None,
    rest: Rest | None = None,
    impl: str | None = None,
) -> Tensor:
    """Attend with one query token over slots and chosen tokens, and to the rest by estimate, in one softmax.

    Args:
        query: [N, G, D].
        keys: [N, L, D]; any strides with a dense last dimension.
        values: [N, L, Dv]; finite also in slots that the bias closes.
        bias: [N or 1, 1, L], 0 where a slot is occupied and -inf where not; None when all are.
        scaling: Factor of the logits.
        softcap: Logits become `softcap * tanh(logit / softcap)` if given (Gemma 2).
        attention_sinks: [N, G], a learned logit of each query head that takes mass and gives no value (GPT-OSS).
        chosen: Tokens attended to beside the slots, None for none.
        rest: What is attended to by estimate, None for nothing.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, G, Dv] in the dtype of the query. Each row must have something to attend to.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("decode_attention", DECODE_ATTENTION, impl, query)
    out: Tensor = function(query, keys, values, bias, scaling, softcap, attention_sinks, chosen, rest)
    return out


def _decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scaling: float,
    softcap: float | None,
    attention_sinks: Tensor | None,
    chosen: Chosen | None,
    rest: Rest | None,
) -> Tensor:
    if chosen is not None:
        keys, values, bias = _beside(keys, values, bias, chosen)
    num_slots = keys.shape[1]
    if bias is None or softcap is not None:
        scores = torch.bmm(query * scaling, keys.transpose(1, 2))
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if bias is not None:
            scores = scores + bias
    else:
        scores = torch.baddbmm(bias, query, keys.transpose(1, 2), alpha=scaling)
    if rest is not None:
        logits = rest.logits if softcap is None else softcap * torch.tanh(rest.logits / softcap)
        scores = torch.cat([scores.float(), logits + rest.num_tokens[:, None].log()], dim=-1)
    if attention_sinks is not None:
        scores = torch.cat([scores, attention_sinks.to(scores.dtype)[..., None]], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
    out = torch.bmm(weights[..., :num_slots].to(query.dtype), values)
    if rest is None:
        return out
    # In float32: a small weight times a small step leaves the range of float16.
    estimated = weights[..., num_slots : num_slots + rest.values.shape[1]] * rest.steps[:, None]
    return (out + torch.bmm(estimated, rest.values.float())).to(query.dtype)


def _beside(keys: Tensor, values: Tensor, bias: Tensor | None, chosen: Chosen) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and bias of the slots and, behind them, of the chosen tokens."""
    rows = take_rows(chosen.rows, chosen.place.clamp(min=0))
    num_rows, num_slots, key_dim = keys.shape
    if bias is None:
        bias = keys.new_zeros(num_rows, 1, num_slots)
    beside = torch.zeros_like(chosen.place, dtype=bias.dtype).masked_fill(chosen.place < 0, -torch.inf)
    return (
        torch.cat([keys, rows[..., :key_dim]], dim=1),
        torch.cat([values, rows[..., key_dim:]], dim=1),
        torch.cat([bias.expand(num_rows, 1, -1), beside[:, None]], dim=-1),
    )


def attention_with_weights(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    attention_sinks: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend, and tell how much of each query's attention every key got: for methods that keep what is attended to.

    Args:
        query: [N, G, Tq, D]; Tq is 1 in decoding.
        keys: [N, T, D].
        values: [N, T, Dv]; finite also where the mask is closed.
        mask: As in `partial_attention`.
        scaling: Factor of the logits.
        softcap: As in `decode_attention`.
        attention_sinks: As in `decode_attention`.
        impl: Implementation; None takes the best that can run.

    Returns:
        Output [N, G, Tq, Dv], weights [N, G, Tq, T] and log-sum-exp [N, G, Tq] with the attention sinks in it, all in
        float32: a weight is `exp(logit + bias - log-sum-exp)`. A query that may attend to nothing has output and
        weights 0.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("attention_with_weights", ATTENTION_WITH_WEIGHTS, impl, query)
    out, weights, lse = function(query, keys, values, mask, scaling, softcap, attention_sinks)
    return out, weights, lse


def _attention_with_weights(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    attention_sinks: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    scores = scores_of(query, keys, mask, scaling, softcap)
    lse = scores.logsumexp(dim=-1)
    if attention_sinks is not None:
        lse = torch.logaddexp(lse, attention_sinks.float()[..., None])
    weights = torch.exp(scores - lse.clamp(min=torch.finfo(torch.float32).min)[..., None])
    out = torch.bmm(weights.flatten(1, 2).to(values.dtype), values).float()
    return out.unflatten(1, query.shape[1:3]), weights, lse


DECODE_ATTENTION = implementations("attention", _decode_attention, ("triton", "cpu"))
ATTENTION_WITH_WEIGHTS = implementations("attention", _attention_with_weights, ())
