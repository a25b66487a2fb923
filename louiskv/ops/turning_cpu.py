"""How far queries have turned, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_query_cosines = torch.ops.louiskv.query_cosines.default
_turned = torch.ops.louiskv.turned.default


def query_cosines(query: Tensor, other: Tensor) -> Tensor:
    """As `louiskv.ops.turning.query_cosines`."""
    cosines: Tensor = _query_cosines(query, other)
    return cosines


def turned(query: Tensor, previous: Tensor, tau: float, num_groups: int, by_group: bool) -> tuple[Tensor, Tensor]:
    """As `louiskv.ops.turning.turned`."""
    similarity, fired = _turned(query, previous, tau, num_groups, by_group)
    return similarity, fired


@native.fake("turned")
def _like_turned(
    query: Tensor, _previous: Tensor, _tau: float, num_groups: int, _by_group: bool
) -> tuple[Tensor, Tensor]:
    fired = query.new_empty(len(query), num_groups, dtype=torch.bool)
    return query.new_empty(len(query), dtype=torch.float32), fired


@native.fake("query_cosines")
def _like_query_cosines(query: Tensor, _other: Tensor) -> Tensor:
    return query.new_empty(query.shape[:2], dtype=torch.float32)
