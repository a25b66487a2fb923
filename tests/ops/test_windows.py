"""Windows and their runs, in every implementation."""

import pytest
import torch
from torch import Tensor

from louiskv.ops.windows import cut_runs, oldest_runs, release_runs, room_beside, take_runs
from tests.ops.devices import on_each_device
from tests.ops.implementations import DEVICE, each, on, on_each_instruction_set

# Rows, window, least and most tokens of a run.
SHAPES = [(1, 1, 1, 1), (3, 15, 2, 7), (17, 17, 4, 8), (63, 63, 1, 31), (70, 200, 5, 100)]


def windows(shape: tuple[int, int, int, int], seed: int) -> dict[str, Tensor]:
    """Windows of up to W tokens, in whose rings there are starts, of tokens that are gone as well."""
    num_rows, window, *_ = shape
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 3 * window, (num_rows,), generator=generator)
    end = first + torch.randint(0, window + 1, (num_rows,), generator=generator)
    place = torch.arange(window)
    # At each ring place the newest position before the end, or one of a turn before, or none.
    newest = end[:, None] - 1 - (end[:, None] - 1 - place) % window
    turn = torch.randint(0, 2, newest.shape, generator=generator)
    starts = (newest - turn * window).masked_fill(torch.rand(newest.shape, generator=generator) < 0.8, -1)
    opened = (end - torch.randint(-1, window + 3, (num_rows,), generator=generator)).clamp(min=0)
    boundary = torch.rand(num_rows, 2, generator=generator)[:, 0] < 0.7
    return {"starts": starts.int(), "first": first, "end": end, "opened": opened, "boundary": boundary}


def cut(given: dict[str, Tensor], shape: tuple[int, int, int, int], impl: str) -> tuple[Tensor, Tensor]:
    starts, opened = given["starts"].clone(), given["opened"].clone()
    lengths = given["end"].clamp(min=1)
    cut_runs(starts, opened, lengths, given["boundary"], shortest=shape[2], longest=shape[3], impl=impl)
    return starts, opened


def oldest(given: dict[str, Tensor], shape: tuple[int, int, int, int], most: int, impl: str) -> Tensor:
    sizes = {"shortest": shape[2], "longest": shape[3], "most": most}
    return oldest_runs(given["starts"], given["first"], given["end"], **sizes, impl=impl)


@each("cut_runs")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cuts_where_the_reference_does(impl: str, shape: tuple[int, int, int, int]) -> None:
    for seed in range(3):
        given = windows(shape, seed)
        for got, expected in zip(cut(given, shape, impl), cut(given, shape, "torch"), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.usefixtures("poisoned_memory")
@each("oldest_runs")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_finds_the_oldest_run_that_the_reference_finds(impl: str, shape: tuple[int, int, int, int]) -> None:
    for seed in range(3):
        given = windows(shape, seed)
        for most in (-1, 0, shape[1] // 2, shape[1]):
            assert torch.equal(oldest(given, shape, most, impl), oldest(given, shape, most, "torch"))
            fixed = {**given, "starts": given["starts"][:, :0]}
            expected = (given["end"] - given["first"]).clamp(min=1, max=shape[3])
            expected = expected.where(given["end"] - given["first"] > most, 0)
            assert torch.equal(oldest(fixed, shape, most, impl), expected)


def test_a_run_is_cut_where_one_would_look_for_it() -> None:
    for seed in range(20):
        given, shape = windows(SHAPES[2], seed), SHAPES[2]
        starts, opened = cut(given, shape, "torch")
        for row in range(shape[0]):
            position, before = int(given["end"][row].clamp(min=1)) - 1, int(given["opened"][row])
            run = before
            while run + shape[3] <= position:
                run += shape[3]
            begins = bool(given["boundary"][row]) and position >= before and position - run >= shape[2]
            assert int(opened[row]) == (position if begins else before)
            if begins:
                assert int(starts[row, position % shape[1]]) == position


@on_each_device("cut_runs")
def test_on_each_device(impl: str, device: str) -> None:
    for shape in SHAPES:
        given = windows(shape, 7)
        there = {name: tensor.to(device) for name, tensor in given.items()}
        for got, expected in zip(cut(there, shape, impl), cut(given, shape, "torch"), strict=True):
            assert torch.equal(got.cpu(), expected)
        assert torch.equal(oldest(there, shape, 1, impl).cpu(), oldest(given, shape, 1, "torch"))


@on_each_instruction_set
def test_on_each_instruction_set(isa: str) -> None:
    given, shape = windows(SHAPES[1], 0), SHAPES[1]
    with on(isa):
        assert torch.equal(cut(given, shape, "cpu")[0], cut(given, shape, "torch")[0])
        assert torch.equal(oldest(given, shape, 1, "cpu"), oldest(given, shape, 1, "torch"))
    starts, end = given["starts"], given["end"]
    torch.library.opcheck(torch.ops.louiskv.oldest_runs.default, (starts, given["first"], end, 2, 7, 0))
    cutting = (starts, given["opened"], end.clamp(min=1), given["boundary"], 2, 7)
    torch.library.opcheck(torch.ops.louiskv.cut_runs.default, cutting)
    rows, bias, first = ring(torch.float32, 8, 2, 5)
    with on(isa):
        taken, _ = take_runs(rows, first, 4, num_sinks=2, window=5, impl="cpu")
    assert torch.equal(taken, take_runs(rows, first, 4, num_sinks=2, window=5, impl="torch")[0])
    torch.library.opcheck(torch.ops.louiskv.take_runs.default, (rows, first, taken, 2, 5, None))
    order = torch.zeros(5, 4, dtype=torch.int64)
    torch.library.opcheck(torch.ops.louiskv.take_runs.default, (rows, first, taken, 2, 5, order))
    torch.library.opcheck(torch.ops.louiskv.release_runs.default, (bias[:, 0], first, torch.full((5,), 2), 2, 5))
    torch.library.opcheck(torch.ops.louiskv.room_beside.default, (given["first"], end, 9, 4, 1, 2, 5))


@pytest.mark.usefixtures("poisoned_memory")
@each("room_beside")
@pytest.mark.parametrize("num_rows", [1, 15, 17, 63, 65])
def test_room_beside_windows(impl: str, num_rows: int) -> None:
    first = torch.arange(3, 3 + num_rows)
    end = first + torch.arange(num_rows).flip(0) - 4
    for budget, window, coming, taken_by, most in ((40, 30, 0, 1, 20), (50, 60, 7, 4, 33), (9, 70, 3, 16, 100)):
        sizes = {"budget": budget, "window": window, "coming": coming, "taken_by": taken_by, "most": most}
        expected = []
        for oldest, behind in zip(first.tolist(), end.tolist(), strict=True):
            room = budget - min(max(behind - oldest, 0) + coming, window)
            expected.append(min(room // taken_by * taken_by, most))
        assert room_beside(first, end, **sizes, impl=impl).tolist() == expected
        wide = torch.stack([first, end], dim=1)
        assert room_beside(wide[:, 0], wide[:, 1], **sizes, impl=impl).tolist() == expected


def ring(dtype: torch.dtype, size: int, num_sinks: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and bias of slots, sinks first, and the first position of each window."""
    generator = torch.Generator().manual_seed(size)
    rows = torch.randn(5, num_sinks + window + 2, size, generator=generator)
    first = num_sinks + torch.tensor([0, 1, window - 1, window, 5 * window + 3])
    return (10 * rows).to(dtype), torch.zeros(5, 1, num_sinks + window + 2, dtype=dtype), first


@pytest.mark.usefixtures("poisoned_memory")
@each("take_runs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("size", "num_sinks", "window"), [(1, 0, 1), (15, 4, 7), (160, 3, 63), (600, 0, 17)])
def test_takes_the_oldest_tokens(impl: str, dtype: torch.dtype, size: int, num_sinks: int, window: int) -> None:
    rows, _, first = ring(dtype, size, num_sinks, window)
    for width in {1, window // 2 + 1, window}:
        shuffled = torch.rand(5, width, generator=torch.Generator().manual_seed(width)).argsort(dim=1)
        for order in (None, shuffled):
            taken, positions = take_runs(rows, first, width, num_sinks=num_sinks, window=window, order=order, impl=impl)
            assert positions.dtype == torch.int32 and taken.dtype == dtype
            for row, start in enumerate(first.tolist()):
                which = range(width) if order is None else order[row].tolist()
                assert positions[row].tolist() == [start + each for each in which]
                slots = [num_sinks + (start + each - num_sinks) % window for each in which]
                assert torch.equal(taken[row], rows[row, slots])


@each("release_runs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_sinks", "window"), [(0, 1), (4, 7), (3, 63), (0, 200)])
def test_releases_the_oldest_tokens(impl: str, dtype: torch.dtype, num_sinks: int, window: int) -> None:
    for counts in (torch.zeros(5), torch.arange(5).clamp(max=window), torch.full((5,), window)):
        _, bias, first = ring(dtype, 1, num_sinks, window)
        before = first.tolist()
        release_runs(bias[:, 0], first, counts.long(), num_sinks=num_sinks, window=window, impl=impl)
        assert first.tolist() == [start + int(count) for start, count in zip(before, counts, strict=True)]
        for row, start in enumerate(before):
            expected = torch.zeros(bias.shape[2], dtype=dtype)
            for position in range(start, start + int(counts[row])):
                expected[num_sinks + (position - num_sinks) % window] = -torch.inf
            assert torch.equal(bias[row, 0], expected)


@on_each_device("take_runs", torch.float32, torch.bfloat16, torch.float16, torch.int64)
def test_runs_move_on_each_device(impl: str, device: str, dtype: torch.dtype) -> None:
    rows, bias, first = (each.to(device) for each in ring(dtype, 160, 4, 63))
    sizes = {"num_sinks": 4, "window": 63}
    for order in (None, torch.arange(20).flip(0).expand(5, -1)):
        there = None if order is None else order.to(device)
        for got, expected in zip(
            take_runs(rows, first, 20, num_sinks=4, window=63, order=there, impl=impl),
            take_runs(rows.cpu(), first.cpu(), 20, num_sinks=4, window=63, order=order, impl="torch"),
            strict=True,
        ):
            assert torch.equal(got.cpu(), expected)
    if dtype.is_floating_point:
        other, start = bias.cpu(), first.cpu()
        counts = torch.tensor([3, 0, 63, 1, 20])
        release_runs(bias[:, 0], first, counts.to(device), **sizes, impl=impl)
        release_runs(other[:, 0], start, counts, **sizes, impl="torch")
        assert torch.equal(bias.cpu(), other) and torch.equal(first.cpu(), start)


def test_what_does_not_fit_is_refused() -> None:
    assert DEVICE.type == "cpu"
    given = windows(SHAPES[1], 0)
    with pytest.raises(RuntimeError, match="int64"):
        cut({**given, "end": given["end"].int()}, SHAPES[1], "cpu")
    with pytest.raises(RuntimeError, match="bool"):
        cut({**given, "boundary": given["boundary"].int()}, SHAPES[1], "cpu")
    with pytest.raises(RuntimeError, match="int32"):
        oldest({**given, "starts": given["starts"].long()}, SHAPES[1], 0, "cpu")
