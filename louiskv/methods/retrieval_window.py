"""What moves the window by more than a step: a prompt that is taken in, and tokens that are taken back."""

from typing import NamedTuple

import torch
from torch import Tensor

from louiskv.ops.ragged import left_aligned, take_rows
from louiskv.ops.units import unit_of_place
from louiskv.store.device import ResidentSet
from louiskv.store.pool import Pool
from louiskv.store.transfer import Transfer
from louiskv.units.base import Units


class Leaving(NamedTuple):
    """Tokens that no longer fit into the window.

    Attributes:
        rows: [N, T, Dk + Dv], by position.
        positions: [N, T].
        counts: [N] tokens of each row.
    """

    rows: Tensor
    positions: Tensor
    counts: Tensor


def admit(resident: ResidentSet, rows: Tensor, counts: Tensor, prompt_window: int, units: Units) -> Leaving:
    """Put the sinks of a prompt and its newest tokens where they belong, and say what leaves for that.

    Tokens of the window that the prompt pushes out, an earlier prompt's tail or an earlier answer, leave with its own:
    to what comes next they are prompt.

    Args:
        resident: Sinks and window, changed in place.
        rows: [N, T, Dk + Dv] the prompt.
        counts: [N] its tokens.
        prompt_window: Newest tokens that stay.
        units: What those that leave will be grouped into.
    """
    old, num_sinks, window = resident.lengths, resident.num_sinks, resident.window
    end = old + counts
    token = torch.arange(rows.shape[1], device=rows.device)
    position = old[:, None] + token
    resident.place(rows, position, (position < num_sinks) & (token < counts[:, None]))

    # Behind the sinks the newest tokens by position: those of the window, then those of the prompt.
    rows = torch.cat([resident.rows[:, num_sinks : num_sinks + window], rows], dim=1)

    def place_of(position: Tensor) -> Tensor:
        held = (position - num_sinks) % window
        new = (window + position - old[:, None]).clamp(max=rows.shape[1] - 1)
        return torch.where(position < old[:, None], held, new)

    first = resident.window_start
    num_newest = (end - first).clamp(min=0)
    excess = (num_newest - prompt_window).clamp(min=0)
    num_leaving = -(-excess // units.leaves_by) * units.leaves_by
    num_leaving = num_leaving.minimum(num_newest // units.aligned_by * units.aligned_by)
    leaving = first[:, None] + torch.arange(int(num_leaving.max()), device=rows.device)
    start = first + num_leaving
    staying = start[:, None] + torch.arange(window, device=rows.device)
    resident.place(take_rows(rows, place_of(staying)), staying, staying < end[:, None])
    resident.advance(end, start)
    return Leaving(take_rows(rows, place_of(leaving)), leaving, num_leaving)


def take_back(
    resident: ResidentSet, pool: Pool, transfer: Transfer, sizes: Tensor, start: Tensor, end: Tensor
) -> Tensor:
    """Take the tokens from `start` [N] on out of the pool, those before `end` [N] back into the window.

    Args:
        resident: Takes what comes back, and forgets what was retrieved.
        pool: Holds units side by side, before and after.
        transfer: What moves between them.
        sizes: [N, U] tokens of each unit.
        start: First position that may not be in the pool.
        end: First position that is forgotten.

    Returns:
        [N, U] sizes of the units that are left, zeros last, where the pool is.
    """
    transfer.settle()
    token = torch.arange(pool.rows.shape[1], device=pool.device)
    gone = (token < pool.lengths.to(pool.device)[:, None]) & (pool.positions >= start.to(pool.device)[:, None])
    row, place = (gone & (pool.positions < end.to(pool.device)[:, None])).nonzero(as_tuple=True)
    position = pool.positions[row, place].long().to(end.device)
    resident.put(row.to(end.device), position, transfer.gather(pool, row, place))
    resident.forget_retrieved()

    unit = unit_of_place(sizes.to(pool.device).long(), len(token))
    keep = pool.keep_before(start)
    left = torch.zeros(len(end), sizes.shape[1] + 1, dtype=torch.int64, device=pool.device)
    left = left.scatter_add_(1, unit, keep.long())[:, :-1]
    occupied, _ = left_aligned(left > 0)
    return left.gather(1, occupied)
