"""An order of points in which neighbours are near each other."""

import torch
from torch import Tensor

from louiskv.ops.ragged import kept_first

# Steps of the power iteration that finds along which direction points spread most; it need not be exact.
POWER_STEPS = 4


def bisect(points: Tensor, counts: Tensor, leaf: int) -> Tensor:
    """Order points so that each run of `leaf` holds near ones: halve them along their widest direction, and so on.

    Args:
        points: [N, U, D].
        counts: [N] points of each row, which come first in it.
        leaf: Points of a run.

    Returns:
        [N, U] indices, those of points that are none last.
    """
    num_rows, num_points, dim = points.shape
    levels = (max(1, -(-num_points // leaf)) - 1).bit_length()
    width = leaf << levels
    padded = torch.nn.functional.pad(points.float(), (0, 0, 0, width - num_points))
    # Numbered through all rows, so that they are picked as they are.
    order = torch.arange(num_rows * width, device=points.device).view(num_rows, width)
    first = order[:, :1]
    ends = first + counts[:, None]
    padded = padded.masked_fill((order >= ends)[..., None], 0).flatten(0, 1)
    for level in range(levels):
        groups = padded.index_select(0, order.flatten()).view(num_rows, 1 << level, -1, dim)
        present = (order < ends).view(num_rows, 1 << level, -1)
        along = torch.where(present, _along_widest(groups, present), torch.inf)
        ranked = along.argsort(dim=-1, stable=True)
        order = order.view_as(along).gather(-1, ranked).flatten(1)
    order = order - first
    # Without the indices past the last point.
    return order if width == num_points else order.gather(1, kept_first(order < num_points)[:, :num_points])


def _along_widest(groups: Tensor, present: Tensor) -> Tensor:
    """Where points [N, A, W, D] lie along the direction in which those of their group spread most: [N, A, W].

    What is not `present` [N, A, W] is 0.
    """
    centre = groups.sum(2, keepdim=True) / present.sum(2).clamp(min=1)[..., None, None]
    off = (groups - centre) * present[..., None]
    distance = off.square().sum(-1)
    farthest = distance.argmax(-1, keepdim=True)
    # None longer than 1, so that the steps stay finite; how long the direction becomes does not matter.
    off = off * distance.gather(-1, farthest).clamp(min=torch.finfo(torch.float32).tiny).rsqrt()[..., None]
    direction = off.gather(2, farthest[..., None].expand(-1, -1, 1, off.shape[-1]))
    # Not by products of a library, which takes room for itself on each stream.
    for _ in range(POWER_STEPS):
        direction = (off * (off * direction).sum(-1, keepdim=True)).sum(2, keepdim=True)
    return (off * direction).sum(-1)
