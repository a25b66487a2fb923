"""Operations on windows, and on the runs and units that leave them, as a decode step calls them."""

from functools import partial

import torch
from torch import Tensor

from louiskv.bench.case import Case
from louiskv.bench.shapes import NUM_SINKS, RUN, UNIT_SIZE, WINDOW, Inputs, Sizes
from louiskv.ops.recording import record_step
from louiskv.ops.units import append_units, keep_runs, summarise_units
from louiskv.ops.windows import cut_runs, oldest_runs, release_runs, room_beside, take_runs

FLOAT, INT, LONG = torch.float32, torch.int32, torch.int64


def _window(inputs: Inputs) -> tuple[Tensor, ...]:
    """Starts of runs, about a quarter of a run apart, and the window's first position and end."""
    position = torch.arange(WINDOW, 2 * WINDOW, device=inputs.device, dtype=INT)
    starts = position.where(inputs.whole(0, RUN // 4, WINDOW) == 0, -1)
    return starts, inputs.filled(WINDOW, dtype=LONG), inputs.filled(2 * WINDOW, dtype=LONG)


def _cut(inputs: Inputs) -> tuple[Tensor, ...]:
    starts, opened, lengths = _window(inputs)
    return starts, opened, lengths, inputs.filled(1, dtype=torch.bool)


def _recorded(inputs: Inputs) -> tuple[Tensor, ...]:
    """The step, then three series with room for one step and their values."""
    flags = (inputs.numbers(dtype=FLOAT) > 0, inputs.numbers(dtype=FLOAT) > 0)
    values = (*flags, inputs.numbers(dtype=FLOAT))
    step = torch.zeros(1, dtype=LONG, device=inputs.device)
    return step, *(torch.zeros_like(value)[None] for value in values), *values


def _record(step: Tensor, *tensors: Tensor, impl: str | None) -> None:
    # Always at the same step, so that it can be repeated.
    record_step(step.zero_(), tensors[:3], tensors[3:], impl=impl)


def _slots(inputs: Inputs) -> Tensor:
    """[N, L], some of them to be written."""
    return inputs.numbers(inputs.sizes.budget)


def _table(inputs: Inputs) -> tuple[Tensor, ...]:
    """The units of a prompt without the last, and the one that comes."""
    sizes, last = inputs.unit_sizes(), inputs.filled(inputs.sizes.num_units - 1, dtype=LONG)
    offsets = (sizes.cumsum(1) - sizes).to(INT)
    return last, sizes, offsets, sizes.sum(1), inputs.whole(1, 100, 1), inputs.filled(RUN, 1, dtype=LONG)


def _append(last: Tensor, sizes: Tensor, offsets: Tensor, *others: Tensor, impl: str | None) -> None:
    # Always the last, so that it can be repeated.
    num_tokens, *new = others
    append_units(offsets, sizes, last.fill_(sizes.shape[1] - 1), num_tokens, *new, impl=impl)


def _kept(inputs: Inputs) -> tuple[Tensor, ...]:
    """Slots of which a quarter is empty."""
    place, _ = inputs.chosen(inputs.sizes.num_retrieved)
    place = place.masked_fill(inputs.missing(), -1).to(INT)
    return place, inputs.whole(0, 100), inputs.filled(RUN, dtype=LONG), _slots(inputs)[:, NUM_SINKS + WINDOW :]


def _keep(place: Tensor, begin: Tensor, counts: Tensor, bias: Tensor, *, impl: str | None) -> None:
    keep_runs(place, begin, counts, place.shape[1], bias=bias, impl=impl)


def _kept_moved(sizes: Sizes) -> tuple[int, int]:
    slots = sizes.num_rows * sizes.num_retrieved
    return 4 * slots + 16 * sizes.num_rows, 5 * slots + 4 * sizes.num_rows * RUN


WINDOW_CASES = (
    Case(
        "cut_runs",
        _cut,
        partial(cut_runs, shortest=1, longest=RUN),
        dtype=INT,
        moved=lambda s: (21 * s.num_rows, 12 * s.num_rows),
    ),
    Case(
        "oldest_runs",
        _window,
        partial(oldest_runs, shortest=1, longest=RUN),
        dtype=INT,
        moved=lambda s: ((4 * (RUN // 4) + 16) * s.num_rows, 8 * s.num_rows),
    ),
    Case(
        "room_beside",
        lambda i: (i.whole(0, WINDOW), i.filled(WINDOW, dtype=LONG)),
        partial(room_beside, budget=2 * WINDOW, window=WINDOW, taken_by=UNIT_SIZE, most=2 * WINDOW),
        dtype=LONG,
    ),
    Case(
        "record_step",
        _recorded,
        _record,
        dtype=LONG,
        moved=lambda s: (6 * s.num_rows + 8, 6 * s.num_rows + 8),
    ),
    Case(
        "take_runs",
        lambda i: (i.whole(NUM_SINKS, 9 * WINDOW), i.numbers(i.sizes.budget, 2 * i.sizes.shape.dim)),
        lambda first, rows, *, impl: take_runs(rows, first, RUN, num_sinks=NUM_SINKS, window=WINDOW, impl=impl),
        dtype=LONG,
        moved=lambda s: (s.token_bytes(RUN) + 8 * s.num_rows, s.token_bytes(RUN) + 4 * s.num_rows * RUN),
    ),
    Case(
        "release_runs",
        lambda i: (_slots(i), i.filled(NUM_SINKS, dtype=LONG), i.filled(RUN, dtype=LONG)),
        partial(release_runs, num_sinks=NUM_SINKS, window=WINDOW),
        moved=lambda s: (16 * s.num_rows, s.num_rows * (RUN * s.shape.dtype.itemsize + 8)),
    ),
    Case(
        "summarise_units",
        lambda i: (i.numbers(RUN, i.sizes.shape.dim), i.filled(RUN, 1, dtype=LONG)),
        partial(summarise_units, kind="mean"),
        variant="mean",
    ),
    Case(
        "summarise_units",
        lambda i: (i.numbers(RUN, i.sizes.shape.dim), i.filled(RUN, 1, dtype=LONG)),
        partial(summarise_units, kind="volume"),
        variant="volume",
    ),
    Case(
        "append_units",
        _table,
        _append,
        dtype=LONG,
        moved=lambda s: (32 * s.num_rows, 56 * s.num_rows),
    ),
    Case("keep_runs", _kept, _keep, dtype=INT, moved=_kept_moved),
)
