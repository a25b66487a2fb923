"""Attention of one token in C++, and of many by the kernel that torch has for them."""

import torch
from torch import Tensor
from torch.nn.functional import pad

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


def partial_attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """As `louiskv.ops.attention.partial_attention`, for logits without a cap.

    Torch's kernel holds no scores but those of a block, and asks for its threads once.
    """
    assert softcap is None
    if not query.shape[2] or not keys.shape[1]:
        # The kernel divides by both.
        shape = query.shape[:3]
        return query.new_zeros(*shape, values.shape[-1], dtype=torch.float32), torch.full(shape, -torch.inf)
    bias = None
    if mask is not None and mask.dtype == torch.bool:
        # What no query may see can be anything, and a closed slot only takes something off its logit.
        keys = keys.masked_fill(~mask[:, 0].any(1)[..., None], 0)
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    elif mask is not None:
        bias = mask.to(query.dtype) if mask.dtype != torch.float32 else mask
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        *_of_one_size(query, keys[:, None], values[:, None]), attn_mask=bias, scale=scaling
    )
    if bias is not None:
        lse = lse.masked_fill((bias == -torch.inf).all(-1), -torch.inf)
    return out[..., : values.shape[-1]].float(), lse


def _of_one_size(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values as each of their heads sees them; zeros behind what is shorter change nothing."""
    size, group_size = max(query.shape[-1], values.shape[-1]), query.shape[1]
    query, keys, values = (
        each if each.shape[-1] == size else pad(each, (0, size - each.shape[-1])) for each in (query, keys, values)
    )
    return query, keys.expand(-1, group_size, -1, -1), values.expand(-1, group_size, -1, -1)
