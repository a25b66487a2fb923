"""How far queries have turned from others."""

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations


def query_cosines(query: Tensor, other: Tensor, *, impl: str | None = None) -> Tensor:
    """Cosine of each query with another one.

    Args:
        query: [B, H, D].
        other: [B, H, D] in the same dtype.
        impl: Implementation; None takes the best that can run.

    Returns:
        [B, H] float32; NaN where the other is NaN, 0 where one of them is 0.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("query_cosines", QUERY_COSINES, impl, query)
    cosines: Tensor = function(query, other)
    # Rounding must not take one past where a trigger never fires.
    return cosines.clamp_(-1, 1)


def _query_cosines(query: Tensor, other: Tensor) -> Tensor:
    query, other = query.float(), other.float()
    least = torch.finfo(torch.float32).tiny
    norms = query.norm(dim=-1).clamp(min=least) * other.norm(dim=-1).clamp(min=least)
    cosines: Tensor = (query * other).sum(-1) / norms.clamp(min=least)
    return cosines


QUERY_COSINES = implementations("turning", _query_cosines, ("triton", "cpu"))
