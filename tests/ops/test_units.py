"""Units that come into an index: summaries, table entries and slots, in every implementation."""

import pytest
import torch
from torch import Tensor

from louiskv.ops.units import KINDS, append_units, keep_runs, summarise_units
from tests.ops.devices import on_each_device
from tests.ops.implementations import each, on, on_each_instruction_set

SIZES = (1, 15, 17, 63)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def units(num_tokens: int, dim: int, dtype: torch.dtype, num_units: int) -> tuple[Tensor, Tensor]:
    """Tokens in the order of their units, NaN behind them, and sizes of the units, zeros last."""
    generator = torch.Generator().manual_seed(num_tokens + dim)
    sizes = torch.zeros(4, num_units, dtype=torch.int64)
    for row in range(4):
        left = num_tokens if row != 2 else 0
        for unit in range(num_units):
            last = unit == num_units - 1 and row == 0
            size = left if last else int(torch.randint(0, left + 1, (), generator=generator))
            sizes[row, unit] = size
            left -= size
        sizes[row] = sizes[row].sort(descending=True).values
    room = torch.full((4, num_tokens + 3, dim + 5), torch.nan, dtype=dtype)
    rows = room[:, : num_tokens + 2, :dim]
    for row, count in enumerate(sizes.sum(1).tolist()):
        rows[row, :count] = 3 + torch.randn(count, dim, generator=generator).to(dtype)
    return rows, sizes


def by_hand(rows: Tensor, sizes: Tensor, kind: str) -> Tensor:
    """Summaries [N, U, ...] in float64."""
    dim = rows.shape[2]
    out = torch.zeros(*sizes.shape, dim if kind == "mean" else 2 * dim, dtype=torch.float64)
    for row, of_row in enumerate(sizes.tolist()):
        begin = 0
        for unit, size in enumerate(of_row):
            keys = rows[row, begin : begin + size].double()
            begin += size
            if not size:
                continue
            high, low = keys.amax(0), keys.amin(0)
            centre, radius = (high + low) / 2, (keys - (high + low) / 2).abs().mean(0)
            both = {"extremes": (high, low), "volume": (centre + radius, centre - radius)}
            out[row, unit] = keys.mean(0) if kind == "mean" else torch.cat(both[kind])
    return out


@pytest.mark.usefixtures("poisoned_memory")
@each("summarise_units")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_tokens", "dim", "num_units"), [(1, 1, 1), (15, 17, 1), (63, 80, 1), (63, 15, 9)])
def test_summaries(impl: str, kind: str, dtype: torch.dtype, num_tokens: int, dim: int, num_units: int) -> None:
    rows, sizes = units(num_tokens, dim, dtype, num_units)
    # The reference and the twins alike read no token that is in no unit.
    rows = rows if impl != "torch" else rows.nan_to_num(0)
    for index in (torch.int64, torch.int32):
        got = summarise_units(rows, sizes.to(index), kind, impl=impl)
        assert got.dtype == dtype
        torch.testing.assert_close(
            got.double(), by_hand(rows, sizes, kind), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )


@on_each_device("summarise_units", torch.float32, torch.bfloat16, torch.float16)
def test_summaries_on_each_device(impl: str, device: str, dtype: torch.dtype) -> None:
    rows, sizes = units(400, 128, dtype, 30)
    for kind in KINDS:
        got = summarise_units(rows.nan_to_num(0).to(device), sizes.to(device), kind, impl=impl)
        expected = by_hand(rows, sizes, kind)
        torch.testing.assert_close(got.cpu().double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def table(num_rows: int) -> list[Tensor]:
    """Offsets, sizes, counts and tokens of an index with room."""
    generator = torch.Generator().manual_seed(num_rows)
    counts = torch.randint(0, 20, (num_rows,), generator=generator)
    sizes = torch.zeros(num_rows, 90, dtype=torch.int32)
    for row, count in enumerate(counts.tolist()):
        sizes[row, :count] = torch.randint(1, 9, (count,), generator=generator, dtype=torch.int32)
    return [(sizes.cumsum(1) - sizes).int(), sizes, counts, sizes.sum(1)]


def append(held: list[Tensor], begin: Tensor, new_sizes: Tensor, impl: str) -> tuple[Tensor, ...]:
    offsets, sizes, counts, num_tokens = held
    return append_units(offsets, sizes, counts, num_tokens, begin, new_sizes, impl=impl)


@pytest.mark.usefixtures("poisoned_memory")
@each("append_units")
@pytest.mark.parametrize("num_rows", SIZES)
@pytest.mark.parametrize("num_new", [1, 15, 70])
def test_units_come_behind_those_of_their_row(impl: str, num_rows: int, num_new: int) -> None:
    offsets, sizes, counts, num_tokens = held = table(num_rows)
    new_sizes = torch.arange(1, num_new + 1).repeat(num_rows, 1)
    for row in range(num_rows):
        new_sizes[row, row % (num_new + 1) :] = 0
    begin = 100 + torch.arange(num_rows)
    new_offsets = begin[:, None] + new_sizes.cumsum(1) - new_sizes
    expected = [each.clone() for each in held]
    told = append(held, begin, new_sizes, impl)
    for row in range(num_rows):
        count, new = int(expected[2][row]), row % (num_new + 1)
        expected[0][row, count : count + new] = new_offsets[row, :new].int()
        expected[1][row, count : count + new] = new_sizes[row, :new].int()
    assert torch.equal(offsets, expected[0]) and torch.equal(sizes, expected[1])
    news = (new_sizes > 0).sum(1), new_sizes.sum(1)
    for got, right in zip(told, (expected[2], news[0], expected[3], news[1]), strict=True):
        assert torch.equal(got, right)
    assert torch.equal(counts, expected[2] + news[0]) and torch.equal(num_tokens, expected[3] + news[1])


def slots_with_room(num_slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slots some of which are empty, and runs that come."""
    generator = torch.Generator().manual_seed(num_slots)
    held = torch.randint(0, 1000, (6, num_slots), generator=generator, dtype=torch.int32)
    held = held.masked_fill(torch.rand(held.shape, generator=generator) < torch.linspace(0, 1, 6)[:, None], -1)
    return held, 2000 + torch.arange(6), torch.tensor([0, 1, 7, num_slots, 40, 3])


def keep(impl: str, given: tuple[Tensor, ...], room: Tensor | int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    held, begin, counts = given
    place, bias = held.clone(), torch.full((6, 1, held.shape[1] + 2), 5.0, dtype=dtype, device=held.device)
    comes, token = keep_runs(place, begin, counts, room, spare=2, bias=bias[:, 0, 2:], impl=impl)
    return place, comes, token.where(comes, 0), bias


@pytest.mark.usefixtures("poisoned_memory")
@each("keep_runs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_slots", [*SIZES, 600])
def test_runs_come_into_empty_slots(impl: str, dtype: torch.dtype, num_slots: int) -> None:
    given = slots_with_room(num_slots)
    held, begin, counts = given
    for room in (torch.arange(6) * num_slots // 5 - 2, num_slots // 2, num_slots - 2):
        place, comes, token, bias = keep(impl, given, room, dtype)
        for row in range(6):
            may_hold = (int(room[row]) if isinstance(room, Tensor) else room) + 2
            left = min(int(counts[row]), may_hold - int((held[row] >= 0).sum()))
            expected, number = held[row].tolist(), 0
            for slot, before in enumerate(expected):
                comes_here = before < 0 and number < left
                assert bool(comes[row, slot]) == comes_here
                assert float(bias[row, 0, slot + 2]) == (0.0 if comes_here else 5.0)
                if comes_here:
                    expected[slot] = int(begin[row]) + number
                    assert int(token[row, slot]) == number
                    number += 1
            assert place[row].tolist() == expected
        assert bool(bias[..., :2].eq(5).all())


@on_each_device("keep_runs")
def test_on_each_device(impl: str, device: str) -> None:
    given, room = slots_with_room(600), torch.full((6,), 400)
    there = tuple(part.to(device) for part in given)
    for got, expected in zip(
        keep(impl, there, room.to(device), torch.float32), keep("torch", given, room, torch.float32), strict=True
    ):
        assert torch.equal(got.cpu(), expected)
    new = torch.tensor([[3, 2, 0]]).repeat(17, 1)
    mine, theirs = [part.to(device) for part in table(17)], table(17)
    told = append(mine, new[:, 0].to(device), new.to(device), impl)
    for got, expected in zip((*mine, *told), (*theirs, *append(theirs, new[:, 0], new, "torch")), strict=True):
        assert torch.equal(got.cpu(), expected)


@on_each_instruction_set
def test_on_each_instruction_set(isa: str) -> None:
    rows, sizes = units(63, 33, torch.float32, 9)
    with on(isa):
        for kind in KINDS:
            got = summarise_units(rows, sizes, kind, impl="cpu")
            torch.testing.assert_close(got.double(), by_hand(rows, sizes, kind), atol=1e-5, rtol=1e-5)
        given = slots_with_room(17)
        kept = keep("cpu", given, 9, torch.float32)
        for one, other in zip(kept, keep("torch", given, 9, torch.float32), strict=True):
            assert torch.equal(one, other)
        known = (rows.nan_to_num(0).contiguous(), sizes, True, True)
        torch.library.opcheck(torch.ops.louiskv.summarise_units.default, known)
        new = (torch.ones(3, dtype=torch.int64), torch.ones(3, 1, dtype=torch.int64))
        torch.library.opcheck(torch.ops.louiskv.append_units.default, (*table(3), *new))
        places = (given[0], given[1], given[2], None, 9, torch.zeros(6, 17))
        torch.library.opcheck(torch.ops.louiskv.keep_runs.default, places)
