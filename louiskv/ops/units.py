"""Units of tokens that come into an index: what is kept of their keys, their entries in its table, and their slots."""

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations
from louiskv.ops.ragged import sum_by_label

# What is kept of the keys of a unit.
KINDS = ("mean", "extremes", "volume")


def summarise_units(rows: Tensor, sizes: Tensor, kind: str, *, impl: str | None = None) -> Tensor:
    """Summarise each channel of the tokens of units.

    By `kind` it is
    - "mean": the mean [D];
    - "extremes": the greatest, then the least [2 D];
    - "volume": with the middle c of the extremes, and the mean distance r from it: c + r, then c - r [2 D].

    Args:
        rows: [N, T, D], tokens in the order of their units; the last dimension is dense.
        sizes: [N, U], rows summing to at most T.
        kind: Of KINDS.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, U, D] or [N, U, 2 D] in the dtype of the rows; 0 for a unit without tokens.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("summarise_units", SUMMARISE_UNITS, impl, rows)
    summaries: Tensor = function(rows, sizes, kind)
    return summaries


def unit_of_place(sizes: Tensor, num_places: int) -> Tensor:
    """Unit [N, T] of each place when units of these sizes [N, U] lie side by side; U past the last one."""
    place = torch.arange(num_places, device=sizes.device).expand(len(sizes), -1).contiguous()
    return torch.searchsorted(sizes.cumsum(1), place, right=True)


def _summarise_units(rows: Tensor, sizes: Tensor, kind: str) -> Tensor:
    unit = unit_of_place(sizes, rows.shape[1])
    if kind == "mean":
        return _means(rows.float(), unit, sizes).to(rows.dtype)
    index, exact = unit[..., None].expand_as(rows), rows.float()
    empty = exact.new_zeros(len(rows), sizes.shape[1] + 1, rows.shape[2])
    high, low = (empty.scatter_reduce(1, index, exact, reduce, include_self=False) for reduce in ("amax", "amin"))
    if kind == "volume":
        centre = (high + low) / 2
        centre[:, -1] = 0
        radius = _means((exact - centre.gather(1, index)).abs(), unit, sizes)
        centre = centre[:, :-1]
        return torch.cat([centre + radius, centre - radius], dim=-1).to(rows.dtype)
    return torch.cat([high, low], dim=-1)[:, :-1].to(rows.dtype)


def _means(rows: Tensor, unit: Tensor, sizes: Tensor) -> Tensor:
    sums, _ = sum_by_label(rows, unit, sizes.shape[1] + 1)
    return sums[:, :-1] / sizes.clamp(min=1)[..., None]


def append_units(
    offsets: Tensor,
    sizes: Tensor,
    counts: Tensor,
    num_tokens: Tensor,
    begin: Tensor,
    new_sizes: Tensor,
    *,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write a few units into the table of an index behind those of their row, and count them; in place.

    Args:
        offsets: [N, U] int32, contiguous; changed.
        sizes: [N, U] int32, contiguous; changed.
        counts: [N] int64, units of each row; changed.
        num_tokens: [N] int64, tokens in them; changed.
        begin: [N] where the new ones begin; they lie side by side.
        new_sizes: [N, u] their tokens, zeros last where a row has fewer.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N] int64 each: `counts` before, how many are new, `num_tokens` before, and how many are new.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("append_units", APPEND_UNITS, impl, counts)
    first, new, first_token, tokens = function(offsets, sizes, counts, num_tokens, begin, new_sizes)
    return first, new, first_token, tokens


def _append_units(
    offsets: Tensor, sizes: Tensor, counts: Tensor, num_tokens: Tensor, begin: Tensor, new_sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, new, first_token, tokens = counts.clone(), (new_sizes > 0).sum(1), num_tokens.clone(), new_sizes.sum(1)
    unit, new_offsets = torch.arange(new_sizes.shape[1], device=sizes.device), new_sizes.cumsum(1) - new_sizes
    # What is no unit goes into a column of its own.
    place = torch.where(unit < new[:, None], first[:, None] + unit, sizes.shape[1])
    for held, part in ((offsets, begin[:, None] + new_offsets), (sizes, new_sizes)):
        held.copy_(torch.nn.functional.pad(held, (0, 1)).scatter_(1, place, part.int())[:, :-1])
    counts += new
    num_tokens += tokens
    return first, new, first_token, tokens


def keep_runs(
    slot_place: Tensor,
    begin: Tensor,
    counts: Tensor,
    room: Tensor | int,
    *,
    spare: int = 0,
    bias: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Let the first tokens of runs come into empty slots, as far as there is room; in place.

    Args:
        slot_place: [N, S] int32, place of the token in each slot, -1 where it is empty; contiguous, changed.
        begin: [N] int64, place of a run's first token; the others follow.
        counts: [N] int64, its tokens.
        room: Tokens that the slots of a row may hold, [N] or one number for all.
        spare: So many more.
        bias: [N, S], set to 0 where a token comes.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, S] True where a token comes, and [N, S] int32 which of its run it is; anything where none comes.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("keep_runs", KEEP_RUNS, impl, slot_place)
    comes, token = function(slot_place, begin, counts, room, spare, bias)
    return comes, token


def _keep_runs(
    slot_place: Tensor, begin: Tensor, counts: Tensor, room: Tensor | int, spare: int, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    empty = slot_place < 0
    most = counts.minimum(room + spare - (~empty).sum(1))
    token = empty.cumsum(1) - 1
    comes = empty & (token < most[:, None])
    slot_place.copy_(torch.where(comes, begin[:, None] + token, slot_place))
    if bias is not None:
        bias.masked_fill_(comes, 0)
    return comes, token.int()


SUMMARISE_UNITS = implementations("units", _summarise_units, ("triton", "cpu"))
APPEND_UNITS = implementations("units", _append_units, ("triton", "cpu"))
KEEP_RUNS = implementations("units", _keep_runs, ("triton", "cpu"))
