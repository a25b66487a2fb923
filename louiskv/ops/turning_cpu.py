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


def turned(query: Tensor, previous: Tensor, similarity: Tensor, tau: Tensor, num_groups: int, by_group: bool) -> Tensor:
    """As `louiskv.ops.turning.turned`."""
    fired: Tensor = _turned(query, previous, similarity, tau, num_groups, by_group)
    return fired


@native.fake("turned")
def _like_turned(
    query: Tensor, _previous: Tensor, _similarity: Tensor, _tau: Tensor, num_groups: int, _by_group: bool
) -> Tensor:
    return query.new_empty(len(query), num_groups, dtype=torch.bool)


@native.fake("query_cosines")
def _like_query_cosines(query: Tensor, _other: Tensor) -> Tensor:
    return query.new_empty(query.shape[:2], dtype=torch.float32)
