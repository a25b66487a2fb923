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


def turned(
    query: Tensor,
    previous: Tensor,
    similarity: Tensor,
    *,
    tau: Tensor,
    num_groups: int,
    by_group: bool,
    impl: str | None = None,
) -> Tensor:
    """Compare queries with the ones before, which they take the place of.

    Args:
        query: [B, H, D].
        previous: [B, H, D] in the same dtype, contiguous; NaN where there is none. Changed: the query afterwards.
        similarity: [B] float32, changed: the mean cosine over the heads, NaN where there was no query before.
        tau: [B] float32, of each sequence the least cosine that is no turn.
        num_groups: Groups of H / num_groups consecutive heads.
        by_group: Whether each group turns by the mean over its own heads, and not by the mean over all.
        impl: Implementation; None takes the best that can run.

    Returns:
        [B, num_groups] True where the mean is not at least `tau`, also where it is NaN.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("turned", TURNED, impl, query)
    fired: Tensor = function(query, previous, similarity, tau, num_groups, by_group)
    return fired


def _turned(
    query: Tensor, previous: Tensor, similarity: Tensor, tau: Tensor, num_groups: int, by_group: bool
) -> Tensor:
    cosine = _query_cosines(query, previous).clamp_(-1, 1)
    previous.copy_(query)
    similarity.copy_(cosine.mean(1))
    mean = cosine.unflatten(1, (num_groups, -1)).mean(2) if by_group else similarity[:, None].expand(-1, num_groups)
    return ~(mean >= tau[:, None])


QUERY_COSINES = implementations("turning", _query_cosines, ("triton", "cpu"))
TURNED = implementations("turning", _turned, ("triton", "cpu"))
