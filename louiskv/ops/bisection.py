"""An order of points in which neighbours are near each other."""

import torch
from torch import Tensor

from louiskv.ops.ragged import take_rows

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
    order = torch.arange(width, device=points.device).expand(num_rows, -1)
    for level in range(levels):
        groups = take_rows(padded, order).view(num_rows, 1 << level, -1, dim)
        present = (order < counts[:, None]).view(num_rows, 1 << level, -1)
        along = _along_widest(groups, present).masked_fill(~present, torch.inf)
        ranked = along.argsort(dim=-1, stable=True)
        order = order.view_as(along).gather(-1, ranked).flatten(1)
    return order[:, :num_points] if width == num_points else _without(order, num_points)


def _along_widest(groups: Tensor, present: Tensor) -> Tensor:
    """Where points [N, A, W, D] lie along the direction in which those of their group spread most: [N, A, W]."""
    centre = (groups * present[..., None]).sum(2, keepdim=True) / present.sum(2).clamp(min=1)[..., None, None]
    off = (groups - centre) * present[..., None]
    distance = off.square().sum(-1)
    farthest = distance.argmax(-1, keepdim=True)
    # None longer than 1, so that the steps stay finite; how long the direction becomes does not matter.
    off = off * distance.gather(-1, farthest).clamp(min=torch.finfo(torch.float32).tiny).rsqrt()[..., None]
    direction = off.gather(2, farthest[..., None].expand(-1, -1, 1, off.shape[-1]))
    for _ in range(POWER_STEPS):
        direction = (off @ direction.mT).mT @ off
    return (off @ direction.mT)[..., 0]


def _without(order: Tensor, num_points: int) -> Tensor:
    """The order without the indices past the last point."""
    return order[order < num_points].view(len(order), num_points)
