"""Windows: rings of the newest tokens of some rows, and the runs into which they are cut.

The token at position p has the place p mod W in a ring of W entries.
"""

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations
from louiskv.ops.ragged import take_rows


def cut_runs(
    starts: Tensor,
    opened: Tensor,
    lengths: Tensor,
    boundary: Tensor,
    *,
    shortest: int,
    longest: int,
    impl: str | None = None,
) -> None:
    """Begin a run at the newest token where a boundary says so and the run that it is in is long enough; in place.

    From where a run was begun, others follow at every `longest` tokens of themselves.

    Args:
        starts: [N, W] int32, position of the token that begins a run at its ring place; changed.
        opened: [N] int64, position where the last run begins that does not follow so; changed.
        lengths: [N] int64, one more than the newest token's position.
        boundary: [N] bool.
        shortest: Tokens before the newest that its run must have.
        longest: Tokens of a run at the most.
        impl: Implementation; None takes the best that can run.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("cut_runs", CUT_RUNS, impl, starts)
    function(starts, opened, lengths, boundary, shortest, longest)


def _cut_runs(starts: Tensor, opened: Tensor, lengths: Tensor, boundary: Tensor, shortest: int, longest: int) -> None:
    position = lengths - 1
    begun = position - opened
    begins = boundary & (begun >= 0) & (begun % longest >= shortest)
    place = (position % starts.shape[1])[:, None]
    starts.scatter_(1, place, torch.where(begins[:, None], position[:, None].int(), starts.gather(1, place)))
    opened.copy_(torch.where(begins, position, opened))


def oldest_runs(
    starts: Tensor,
    first: Tensor,
    end: Tensor,
    *,
    shortest: int,
    longest: int,
    most: int = 0,
    impl: str | None = None,
) -> Tensor:
    """Count the tokens of the oldest run of each window, to the next start that is not too near.

    Args:
        starts: [N, W] int32, as `cut_runs` has it; W is 0 where runs have their longest size.
        first: [N] int64, position of the oldest token.
        end: [N] int64, one more than the position of the newest.
        shortest: Tokens of a run at the least: a start that comes before is left out.
        longest: Tokens at the most.
        most: Nothing is counted of a window that has no more than so many tokens.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N] int64.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("oldest_runs", OLDEST_RUNS, impl, starts)
    counts: Tensor = function(starts, first, end, shortest, longest, most)
    return counts


def _oldest_runs(starts: Tensor, first: Tensor, end: Tensor, shortest: int, longest: int, most: int) -> Tensor:
    step = torch.arange(1, longest + 1, device=first.device)
    position = first[:, None] + step
    closes = (position >= end[:, None]) | (step == longest)
    if starts.shape[1]:
        begins = starts.gather(1, position % starts.shape[1]) == position
        closes |= begins & (step >= shortest)
    return (closes.to(torch.uint8).argmax(dim=1) + 1).masked_fill(end - first <= most, 0)


def room_beside(
    first: Tensor,
    end: Tensor,
    *,
    budget: int,
    window: int,
    coming: int = 0,
    taken_by: int = 1,
    most: int,
    impl: str | None = None,
) -> Tensor:
    """Count what windows leave of a budget when they have taken in some tokens more.

    Args:
        first: [N] int64, position of the oldest token.
        end: [N] int64, one more than the position of the newest; less than `first` where the window is empty.
        budget: Tokens of a window and beside it.
        window: Tokens that a window has at the most.
        coming: Tokens that are to come.
        taken_by: What is left is taken in multiples of this.
        most: Tokens beside a window at the most.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N] int64.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("room_beside", ROOM_BESIDE, impl, first)
    room: Tensor = function(first, end, budget, window, coming, taken_by, most)
    return room


def _room_beside(first: Tensor, end: Tensor, budget: int, window: int, coming: int, taken_by: int, most: int) -> Tensor:
    room = budget - ((end - first).clamp(min=0) + coming).clamp(max=window)
    return (room // taken_by * taken_by).clamp(max=most)


def take_runs(
    rows: Tensor,
    first: Tensor,
    width: int,
    *,
    num_sinks: int,
    window: int,
    order: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Read the oldest tokens of windows.

    Args:
        rows: [N, L, R], of which the slots from `num_sinks` on are a ring of `window`, contiguous.
        first: [N] int64, position of the oldest token.
        width: Tokens to read, `window` at the most.
        num_sinks: Slots before the ring, and position of its first slot.
        window: Slots of the ring.
        order: [N, width] int64, which of them is read in each place, from 0 to `width - 1`; None for all by position.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, width, R] the tokens, anything for those behind the newest; and [N, width] int32 their positions.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("take_runs", TAKE_RUNS, impl, first)
    taken, positions = function(rows, first, width, num_sinks, window, order)
    return taken, positions


def _take_runs(
    rows: Tensor, first: Tensor, width: int, num_sinks: int, window: int, order: Tensor | None
) -> tuple[Tensor, Tensor]:
    positions = first[:, None] + (torch.arange(width, device=first.device) if order is None else order)
    return take_rows(rows, num_sinks + (positions - num_sinks) % window), positions.int()


def release_runs(
    bias: Tensor, first: Tensor, counts: Tensor, *, num_sinks: int, window: int, impl: str | None = None
) -> None:
    """Close the slots of the oldest tokens of windows, which then begin behind them; in place.

    Args:
        bias: [N, L], -inf afterwards where a slot was closed; see `take_runs` for the slots. Changed.
        first: [N] int64, position of the oldest token; changed.
        counts: [N] int64, tokens to release, `window` at the most.
        num_sinks: Slots before the ring.
        window: Slots of the ring.
        impl: Implementation; None takes the best that can run.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("release_runs", RELEASE_RUNS, impl, first)
    function(bias, first, counts, num_sinks, window)


def _release_runs(bias: Tensor, first: Tensor, counts: Tensor, num_sinks: int, window: int) -> None:
    ring = bias[:, num_sinks : num_sinks + window]
    age = (torch.arange(window, device=first.device) - (first[:, None] - num_sinks)) % window
    ring.masked_fill_(age < counts[:, None], -torch.inf)
    first += counts


CUT_RUNS = implementations("windows", _cut_runs, ("triton", "cpu"))
OLDEST_RUNS = implementations("windows", _oldest_runs, ("triton", "cpu"))
ROOM_BESIDE = implementations("windows", _room_beside, ("triton", "cpu"))
TAKE_RUNS = implementations("windows", _take_runs, ("triton", "cpu"))
RELEASE_RUNS = implementations("windows", _release_runs, ("triton", "cpu"))
