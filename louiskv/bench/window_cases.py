"""Operations on windows, and on the runs and units that leave them, as a decode step calls them."""

from functools import partial

import torch
from torch import Tensor

from louiskv.bench.case import Case
from louiskv.bench.shapes import NUM_SINKS, RUN, UNIT_SIZE, WINDOW, Inputs, Sizes
from louiskv.ops.bisection import along_widest
from louiskv.ops.grouping import group_by_label
from louiskv.ops.kmeans import kmeans
from louiskv.ops.recording import record_step
from louiskv.ops.sketches import bundle_sketches, sketch_units
from louiskv.ops.units import append_units, keep_runs, summarise_units
from louiskv.ops.windows import cut_runs, oldest_runs, release_runs, room_beside, take_runs

FLOAT, INT, LONG = torch.float32, torch.int32, torch.int64
# Tokens of a unit, where a run is clustered, and passes; units of a bundle.
OUTPUT_UNIT, ITERATIONS, BUNDLE = 8, 5, 16


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
    return last, sizes, offsets, sizes.sum(1), inputs.whole(1, 100), inputs.filled(RUN, 1, dtype=LONG)


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


def _run(inputs: Inputs) -> tuple[Tensor, ...]:
    """Keys of a run, its tokens, and its clusters."""
    counts = inputs.filled(RUN, dtype=LONG)
    return inputs.grouped_keys(RUN), counts, counts // OUTPUT_UNIT


def _units(inputs: Inputs, num_units: int) -> tuple[Tensor, ...]:
    """Tokens of so many units, keys beside values, and the units' sizes."""
    half = inputs.whole(1, 2 * UNIT_SIZE, num_units // 2)
    keys, values = inputs.numbers(num_units * UNIT_SIZE, 2 * inputs.sizes.shape.dim).chunk(2, dim=-1)
    return keys, values, torch.cat([half, 2 * UNIT_SIZE - half], dim=1)


def _sketched_moved(sizes: Sizes, num_units: int) -> tuple[int, int]:
    token = num_units * UNIT_SIZE
    written = num_units * (2 * sizes.shape.dim + 6) + token * (sizes.shape.dim // 8)
    return sizes.token_bytes(token) + 8 * sizes.num_rows * num_units, sizes.num_rows * written


def _sketches(inputs: Inputs) -> tuple[Tensor, ...]:
    """Where a bundle's worth of units has come, the units' sizes, their sketches, and the bundles."""
    num_units, dim = inputs.sizes.num_units, inputs.sizes.shape.dim
    num_bundles = num_units // BUNDLE
    made = []
    for num in (num_bundles * BUNDLE, num_bundles):
        made += [inputs.whole(-127, 128, num, dim, dtype=torch.int8) for _ in range(2)]
        made.append(inputs.numbers(num, 3, dtype=torch.float16).abs())
    begin = inputs.filled((num_bundles - 1) * BUNDLE, dtype=LONG)
    return begin, inputs.unit_sizes()[:, : num_bundles * BUNDLE].contiguous(), *made


def _bundle(begin: Tensor, sizes: Tensor, *sketches: Tensor, impl: str | None) -> None:
    given = (sketches[:3], sizes, begin, begin + BUNDLE, sketches[3:])
    bundle_sketches(*given, most=BUNDLE, bundle_size=BUNDLE, impl=impl)


def _bundled_moved(sizes: Sizes) -> tuple[int, int]:
    unit = 2 * sizes.shape.dim + 6
    return sizes.num_rows * (BUNDLE * (unit + 4) + 16), sizes.num_rows * unit


def _in_order(inputs: Inputs) -> tuple[Tensor, ...]:
    """Means of a prompt's units, in any order, and how many there are."""
    num_units = inputs.sizes.num_units
    order = inputs.numbers(num_units, dtype=FLOAT).argsort(dim=1)
    return inputs.numbers(num_units, inputs.sizes.shape.dim), order, inputs.filled(num_units, dtype=LONG)


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
        "kmeans",
        _run,
        partial(kmeans, iterations=ITERATIONS, max_clusters=RUN // OUTPUT_UNIT),
        variant="of a run",
    ),
    Case(
        "group_by_label",
        lambda i: (i.whole(0, RUN // OUTPUT_UNIT, RUN),),
        partial(group_by_label, num_labels=RUN // OUTPUT_UNIT),
        variant="of a run",
        dtype=LONG,
    ),
    Case(
        "group_by_label",
        lambda i: (i.whole(0, i.sizes.num_units, i.sizes.num_tokens),),
        lambda labels, *, impl: group_by_label(labels, labels.shape[1] // UNIT_SIZE, impl=impl),
        dtype=LONG,
    ),
    Case(
        "sketch_units",
        lambda i: _units(i, 2),
        sketch_units,
        variant="of a run",
        moved=lambda s: _sketched_moved(s, 2),
    ),
    Case(
        "sketch_units",
        lambda i: _units(i, i.sizes.num_units),
        sketch_units,
        moved=lambda s: _sketched_moved(s, s.num_units),
    ),
    Case("bundle_sketches", _sketches, _bundle, dtype=LONG, moved=_bundled_moved),
    Case("along_widest", _in_order, partial(along_widest, num_groups=1)),
    Case(
        "append_units",
        _table,
        _append,
        dtype=LONG,
        moved=lambda s: (32 * s.num_rows, 56 * s.num_rows),
    ),
    Case("keep_runs", _kept, _keep, dtype=INT, moved=_kept_moved),
)
