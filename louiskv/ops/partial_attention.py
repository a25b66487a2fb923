"""Attention of many queries over one part of the keys, and the merge of what parts give.

Layouts: N = batch x KV heads, G = query heads of one query group. Scores are computed as `scaling * q.k`, then capped,
then biased; the softmax runs in float32.
"""

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations

# Scores held at once while a prompt is attended to in slices of queries (float32, so 256 MiB): on a CPU so few that
# they stay in its caches.
MAX_SCORES, MAX_SCORES_CPU = 64 * 1024 * 1024, 1024 * 1024


def partial_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    causal: bool = False,
    softcap: float | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend with many query tokens over one part of the keys, keeping what a merge with other parts needs.

    Args:
        query: [N, G, Tq, D].
        keys: [N, T, D].
        values: [N, T, Dv].
        mask: [N or 1, 1, Tq or 1, T], True where a query may attend, or what to add to each logit; None for everywhere.
        scaling: Factor of the logits.
        causal: Whether, of the last Tq of the keys, a query may attend to none behind its own; only without a mask.
        softcap: As in `louiskv.ops.attention.decode_attention`.
        impl: Implementation; None takes the best that can run.

    Returns:
        Output [N, G, Tq, Dv] in float32 and log-sum-exp [N, G, Tq] in float32; a query that may attend to nothing
        has output 0 and log-sum-exp -inf.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    assert mask is None or not causal
    candidates = PARTIAL_ATTENTION if softcap is None else CAPPED_PARTIAL_ATTENTION
    function = choose("partial_attention", candidates, impl, query)
    out, lse = function(query, keys, values, mask, scaling, causal, softcap)
    return out, lse


def _partial_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float,
    causal: bool,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    num_rows, group_size, num_queries, _ = query.shape
    num_keys = keys.shape[1]
    out = query.new_empty(num_rows, group_size, num_queries, values.shape[-1], dtype=torch.float32)
    lse = query.new_empty(num_rows, group_size, num_queries, dtype=torch.float32)
    most = MAX_SCORES_CPU if query.device.type == "cpu" else MAX_SCORES
    step = max(1, most // max(1, num_rows * group_size * num_keys))
    place = torch.arange(num_keys, device=query.device)
    for first in range(0, num_queries, step):
        part = slice(first, min(first + step, num_queries))
        slice_of_mask = mask if mask is None or mask.shape[2] == 1 else mask[:, :, part]
        if causal:
            own = torch.arange(part.start, part.stop, device=query.device) + num_keys - num_queries
            slice_of_mask = (place <= own[:, None])[None, None]
        scores = scores_of(query[:, :, part], keys, slice_of_mask, scaling, softcap)
        lse[:, :, part] = scores.logsumexp(dim=-1)
        weights = torch.exp(scores - lse[:, :, part].clamp(min=torch.finfo(torch.float32).min)[..., None])
        product = torch.bmm(weights.flatten(1, 2).to(values.dtype), values)
        out[:, :, part] = product.float().unflatten(1, (group_size, -1))
    return out, lse


def scores_of(query: Tensor, keys: Tensor, mask: Tensor | None, scaling: float, softcap: float | None) -> Tensor:
    """Logits [N, G, Tq, T] in float32, -inf where a query may not attend; arguments as in `partial_attention`."""
    scores = torch.bmm(query.flatten(1, 2) * scaling, keys.transpose(1, 2)).float()
    scores = scores.unflatten(1, query.shape[1:3])
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def merge_attention(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merge two partial results over disjoint keys into the result over both.

    Args:
        out: [..., Tq, Dv] float32, with its log-sum-exp.
        lse: [..., Tq] float32.
        other_out: Like `out`.
        other_lse: Like `lse`.

    Returns:
        The merged output and log-sum-exp, shaped as the inputs.
    """
    total = torch.logaddexp(lse, other_lse)
    finite = total.clamp(min=torch.finfo(torch.float32).min)
    share = torch.exp(lse - finite)[..., None]
    other_share = torch.exp(other_lse - finite)[..., None]
    return out * share + other_out * other_share, total


def dim_by_attention_sinks(out: Tensor, lse: Tensor, attention_sinks: Tensor) -> Tensor:
    """Give each head's learned attention sink its share of the softmax, after the fact.

    Args:
        out: [N, G, Tq, Dv] float32.
        lse: [N, G, Tq] float32.
        attention_sinks: [N, G] logits.

    Returns:
        [N, G, Tq, Dv]: `out * sigmoid(lse - sink)`.
    """
    return out * torch.sigmoid(lse - attention_sinks.float()[..., None])[..., None]


PARTIAL_ATTENTION = implementations("partial_attention", _partial_attention, ("triton", "cpu"))
# A cap is not known to torch's kernel for CPUs.
CAPPED_PARTIAL_ATTENTION = tuple(each for each in PARTIAL_ATTENTION if each.name != "cpu")
