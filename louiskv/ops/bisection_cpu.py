"""Where points lie along the widest direction of their group, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_along_widest = torch.ops.louiskv.along_widest.default


def along_widest(points: Tensor, order: Tensor, counts: Tensor, num_groups: int, steps: int) -> Tensor:
    """Twin of the reference."""
    dense = points if points.stride(-1) == 1 else points.contiguous()
    along: Tensor = _along_widest(dense, order, counts, num_groups, steps)
    return along


@native.fake("along_widest")
def _like_along(points: Tensor, order: Tensor, _counts: Tensor, num_groups: int, _steps: int) -> Tensor:
    return points.new_empty(order.shape[0], num_groups, order.shape[1] // num_groups, dtype=torch.float32)
