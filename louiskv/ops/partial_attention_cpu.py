"""Attention of many queries by the kernel that torch has for CPUs."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def partial_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float,
    causal: bool,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """As `louiskv.ops.partial_attention.partial_attention`, for logits without a cap.

    Torch's kernel holds no scores but those of a block, and asks for its threads once.
    """
    assert softcap is None
    num_queries, num_keys = query.shape[2], keys.shape[1]
    if not num_queries or not num_keys:
        # The kernel divides by both.
        shape = query.shape[:3]
        return query.new_zeros(*shape, values.shape[-1], dtype=torch.float32), torch.full(shape, -torch.inf)
    if causal and num_queries != num_keys:
        # The kernel counts both from their first, and not from their last.
        causal, mask = False, torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool).tril_(num_keys - num_queries)
    bias = None
    if mask is not None and mask.dtype == torch.bool:
        # What no query may see can be anything, and a closed slot only takes something off its logit.
        keys = keys.masked_fill(~mask[:, 0].any(1)[..., None], 0)
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    elif mask is not None:
        bias = mask.to(query.dtype) if mask.dtype != torch.float32 else mask
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        *_of_one_size(query, keys[:, None], values[:, None]), is_causal=causal, attn_mask=bias, scale=scaling
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
