"""Attention of one query in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_decode_attention = torch.ops.louiskv.decode_attention.default


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scaling: float,
    softcap: float | None,
    attention_sinks: Tensor | None,
    chosen: tuple[Tensor, Tensor] | None,
    rest: tuple[Tensor, Tensor, Tensor, Tensor] | None,
) -> Tensor:
    """As `louiskv.ops.attention.decode_attention`; closed slots are not read."""
    rows, place = chosen or (None, None)
    logits, num_left, rest_values, steps = rest or (None, None, None, None)
    out: Tensor = _decode_attention(
        query,
        keys,
        values,
        bias,
        scaling,
        softcap,
        attention_sinks,
        rows,
        place,
        logits,
        num_left,
        rest_values,
        steps,
    )
    return out


@native.fake("decode_attention")
def _like_decode_attention(query: Tensor, _keys: Tensor, values: Tensor, *_others: object) -> Tensor:
    return query.new_empty(*query.shape[:2], values.shape[2])
