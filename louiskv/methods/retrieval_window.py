"""What moves the window by more than a step: a prompt that is taken in, and tokens that are taken back."""

from typing import NamedTuple

import torch
from torch import Tensor

from louiskv.methods.pace import Standing
from louiskv.ops.moving import fetch_rows
from louiskv.ops.pinned import on_device
from louiskv.ops.ragged import kept_first, take_rows
from louiskv.ops.units import unit_of_place
from louiskv.store.device import ResidentSet
from louiskv.store.pool import Pool
from louiskv.store.transfer import Transfer


class Leaving(NamedTuple):
    """Tokens that no longer fit into the window.

    Attributes:
        rows: [N, T, Dk + Dv], by position.
        first: [N] position of the first token of each row.
        counts: [N] tokens of each row.
        known: The same on the host.
    """

    rows: Tensor
    first: Tensor
    counts: Tensor
    known: list[int]


def admit(
    resident: ResidentSet, rows: Tensor, stood: list[Standing], stands: list[Standing], impl: str | None = None
) -> Leaving:
    """Put the sinks of a prompt and its newest tokens where they belong, and say what leaves for that.

    Args:
        resident: Sinks and window, changed in place.
        rows: [N, T, Dk + Dv] the prompt.
        stood: Where each row stands without it.
        stands: Where it stands with it.
        impl: Implementation of the operations.
    """
    device = rows.device
    known = [row.window_start - before.window_start for row, before in zip(stands, stood, strict=True)]
    leaving, first = _oldest(resident, rows, stood, max(known), impl), resident.window_start
    lengths, starts, _, _ = zip(*stands, strict=True)
    numbers = torch.tensor([lengths, starts, known])
    # Of each slot the position of its token, and which of the prompt that is: one that stays is none of it.
    layout = resident.layout(numbers[0], numbers[1])
    token = layout - torch.tensor([row.length for row in stood])[:, None]
    layout, token = on_device(torch.stack([layout, token]).int(), device)
    # Each is memory of its own, which kernels then find where they find any.
    length, window_start, counts = (on_device(each, device) for each in numbers)
    fetch_rows(rows, token, token >= 0, resident.rows[:, : layout.shape[1]], impl=impl)
    resident.advance(length, window_start, layout)
    return Leaving(leaving, first, counts, known)


def _oldest(resident: ResidentSet, rows: Tensor, stood: list[Standing], width: int, impl: str | None) -> Tensor:
    """[N, width, Dk + Dv] the oldest tokens behind the sinks: those of the window, then those of the prompt `rows`."""
    # Less than none are in the window where tokens of the prompt are sinks.
    in_window = [row.length - row.window_start for row in stood]
    most = max(0, *in_window)
    if most:
        rows = torch.cat([resident.take(most, impl)[0], rows], dim=1)
    if len(set(in_window)) == 1:
        return rows[:, most - in_window[0] :][:, :width]
    token = torch.arange(width, device=rows.device)
    behind = (resident.lengths - resident.window_start)[:, None]
    place = torch.where(token < behind, token, token + most - behind)
    return take_rows(rows, place.clamp(max=rows.shape[1] - 1))


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
    return left.gather(1, kept_first(left > 0))
