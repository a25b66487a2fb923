"""Units in an order in which those of a bundle are near each other."""

import torch
from torch import Tensor

from louiskv.ops.bisection import bisect
from louiskv.ops.ragged import take_rows
from louiskv.ops.units import unit_of_place
from louiskv.units.base import Grouping
from louiskv.units.summaries import means


def in_bundles(keys: Tensor, grouping: Grouping, bundle_size: int, impl: str | None = None) -> Grouping:
    """Order the units of keys [N, T, D] so that each run of `bundle_size` has near mean keys; tokens stay in theirs."""
    order, sizes = grouping
    place_of = bisect(means(take_rows(keys, order), sizes, impl), (sizes > 0).sum(1), bundle_size, impl)
    rank = torch.empty_like(place_of).scatter_(
        1, place_of, torch.arange(place_of.shape[1], device=sizes.device).expand_as(place_of)
    )
    unit = unit_of_place(sizes, keys.shape[1])
    behind = torch.nn.functional.pad(rank, (0, 1), value=sizes.shape[1])
    return Grouping(order.gather(1, behind.gather(1, unit).argsort(dim=1, stable=True)), sizes.gather(1, place_of))
