"""How far queries have turned, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_query_cosines = torch.ops.louiskv.query_cosines.default


def query_cosines(query: Tensor, other: Tensor) -> Tensor:
    """As `louiskv.ops.turning.query_cosines`."""
    cosines: Tensor = _query_cosines(query, other)
    return cosines


@native.fake("query_cosines")
def _like_query_cosines(query: Tensor, _other: Tensor) -> Tensor:
    return query.new_empty(query.shape[:2], dtype=torch.float32)
