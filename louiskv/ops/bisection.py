"""An order of points in which neighbours are near each other."""

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations
from louiskv.ops.ragged import may_hold, take_rows

# Steps of the power iteration that finds along which direction points spread most; it need not be exact.
POWER_STEPS = 4


def bisect(points: Tensor, counts: Tensor, leaf: int, impl: str | None = None) -> Tensor:
    """Order points so that each run of `leaf` holds near ones: halve them along their widest direction, and so on.

    Args:
        points: [N, U, D].
        counts: [N] points of each row, which come first in it.
        leaf: Points of a run.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, U] indices, those of points that are none last.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    num_rows, num_points, _ = points.shape
    levels = (max(1, -(-num_points // leaf)) - 1).bit_length()
    order = torch.arange(leaf << levels, device=points.device).expand(num_rows, -1)
    for level in range(levels):
        along = along_widest(points, order, counts, 1 << level, impl=impl)
        ranked = along.argsort(dim=-1, stable=True)
        order = order.view_as(along).gather(-1, ranked).flatten(1)
    # What is no point has stayed behind all points, in its order.
    return order[:, :num_points]


def along_widest(points: Tensor, order: Tensor, counts: Tensor, num_groups: int, *, impl: str | None = None) -> Tensor:
    """Where points lie along the direction in which those of their group spread most.

    Args:
        points: [N, U, D].
        order: [N, W] int64 indices of points; runs of W / num_groups of them are groups.
        counts: [N] points of each row, which come first in it: an index that is not below is none of a point.
        num_groups: Groups of each row; W is a multiple.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, num_groups, W / num_groups] float32 in the order given, inf for what is no point. By which number lengths
        are multiplied differs between groups. All are at 0 in a group with a point that is not finite.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("along_widest", ALONG_WIDEST, impl, points)
    along: Tensor = function(points, order, counts, num_groups, POWER_STEPS)
    return along


def _along_widest(points: Tensor, order: Tensor, counts: Tensor, num_groups: int, steps: int) -> Tensor:
    picked = take_rows(points, order.clamp(max=points.shape[1] - 1)).float().unflatten(1, (num_groups, -1))
    present = (order < counts[:, None]).unflatten(1, (num_groups, -1))
    absent = present.logical_not()
    if may_hold(absent):
        picked.masked_fill_(absent[..., None], 0)
    centre = picked.sum(2, keepdim=True) / present.sum(2).clamp(min=1)[..., None, None]
    off = picked.sub_(centre).mul_(present[..., None])
    distance = off.square().sum(-1)
    farthest = distance.argmax(-1, keepdim=True)
    # None longer than 1, so that the steps stay finite; how long the direction becomes does not matter.
    off *= distance.gather(-1, farthest).clamp(min=torch.finfo(torch.float32).tiny).rsqrt()[..., None]
    direction = off.gather(2, farthest[..., None].expand(-1, -1, 1, off.shape[-1]))
    # Not by products of a library, which takes room for itself on each stream.
    for _ in range(steps):
        direction = (off * (off * direction).sum(-1, keepdim=True)).sum(2, keepdim=True)
    along: Tensor = (off * direction).sum(-1).nan_to_num_()
    return along.masked_fill_(absent, torch.inf)


ALONG_WIDEST = implementations("bisection", _along_widest, ("triton", "cpu"))
