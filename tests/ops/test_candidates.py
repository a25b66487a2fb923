"""The tokens that come into question, the best of them, and what is left: as operations of torch say it, or loops."""

from dataclasses import dataclass
from functools import partial
from importlib import import_module

import pytest
import torch
from torch import Tensor

from louiskv.ops.candidates import UnitTable, best_tokens, count_rest, list_candidates
from louiskv.ops.selection import places_of, select_units
from tests.ops import cuda_on_host
from tests.ops.devices import on_each_device, repeated, wait
from tests.ops.implementations import each as each_implementation
from tests.ops.implementations import on, on_each_instruction_set, on_the_best_instruction_set

STRETCH = 4
# Stretches of units, tokens of a unit at the most, slots, the width of the list.
SHAPES = [(1, 1, 1, 1), (4, 3, 15, 17), (5, 6, 63, 15), (16, 9, 63, 300), (40, 4, 17, 64)]
ROWS = 8


@dataclass
class Case:
    """Units side by side, those of some stretches entries; rows without units, slots, or tokens taken among them."""

    sizes: Tensor
    take: Tensor
    offsets: Tensor
    slot_place: Tensor
    units: UnitTable
    width: int

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, UnitTable, int]:
        return self.take, self.offsets, self.slot_place, self.units, self.width

    def on(self, device: str) -> tuple[Tensor, Tensor, Tensor, UnitTable, int]:
        first_entry = None if self.units.first_entry is None else self.units.first_entry.to(device)
        table = UnitTable(self.units.offsets.to(device), self.units.counts.to(device), first_entry, self.units.stretch)
        return self.take.to(device), self.offsets.to(device), self.slot_place.to(device), table, self.width


def case_of(shape: tuple[int, int, int, int], seed: int, *, all_units: bool, dtype: torch.dtype = torch.int32) -> Case:
    num_stretches, most, num_slots, width = shape
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, size, generator=generator)

    num_units = num_stretches * STRETCH
    counts = drawn(0, num_units + 1, ROWS)
    counts[:2] = torch.tensor([0, num_units])
    number = torch.arange(num_units)
    sizes = drawn(1, most + 1, ROWS, num_units).masked_fill(number >= counts[:, None], 0)
    # Behind the last unit there may be anything.
    begin = (sizes.cumsum(1) - sizes).where(number < counts[:, None], drawn(-3, 99, ROWS, num_units))
    first_entry = None
    entry_offsets, entry_sizes = begin, sizes
    if not all_units:
        chosen = torch.rand(ROWS, num_stretches, generator=generator).argsort(1)[:, : (num_stretches + 1) // 2]
        unit = (chosen[..., None] * STRETCH + torch.arange(STRETCH)).flatten(1)
        entry_offsets, entry_sizes = begin.gather(1, unit), sizes.gather(1, unit)
        first = torch.arange(0, unit.shape[1], STRETCH).expand_as(chosen)
        first_entry = torch.full((ROWS, num_stretches), -1).scatter_(1, chosen, first).int()
    scores = torch.rand(entry_sizes.shape, generator=generator)
    take = select_units(scores, entry_sizes, drawn(0, width + 1, ROWS), impl="torch")
    take[2] = 0
    take[3] = entry_sizes[3]
    slot_place = torch.full((ROWS, num_slots), -1)
    for row, total in enumerate(sizes.sum(1).tolist()):
        held = torch.randperm(total, generator=generator)[: int(drawn(0, num_slots + 1))]
        held = torch.arange(min(total, num_slots)) if row == 1 else held
        slot_place[row, torch.randperm(num_slots, generator=generator)[: len(held)]] = held
    slot_place[4] = -1
    table = UnitTable(begin.to(dtype), counts, first_entry, 1 if all_units else STRETCH)
    return Case(sizes, take.to(dtype), entry_offsets.to(dtype), slot_place.to(dtype), table, width)


def composed(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """The list as many operations make it: with the slots by their units, and a flag for every place."""
    best, entry = places_of(case.take, case.offsets, case.width, impl="torch")
    held = case.slot_place.clamp(min=0).long()
    unit = torch.searchsorted(case.sizes.cumsum(1), held, right=True).clamp(max=case.sizes.shape[1] - 1)
    entry_held, stretch = unit, case.units.stretch
    if case.units.first_entry is not None:
        first = case.units.first_entry.long().gather(1, unit // stretch)
        entry_held = torch.where(first >= 0, first + unit % stretch, -1)
    seen = (case.slot_place >= 0) & (entry_held >= 0)
    nowhere = int(case.sizes.sum(1).max()) + 1
    listed = torch.zeros(ROWS, nowhere + 1, dtype=torch.bool)
    among_best = listed.clone().scatter_(1, best.where(best >= 0, nowhere), True).gather(1, held)
    here = listed.scatter_(1, held.where(case.slot_place >= 0, nowhere), True)
    here[:, -1] = False
    others = seen & ~among_best
    place = torch.cat([best, held.where(others, -1)], dim=1)
    entries = torch.cat([entry.where(best >= 0, 0), entry_held.where(others, 0)], dim=1)
    return place, entries, torch.cat([here.gather(1, best.where(best >= 0, nowhere)), others], dim=1)


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    assert [each.dtype for each in got] == [dtype, dtype, torch.bool]
    for mine, other in zip(got, expected, strict=True):
        assert torch.equal(mine.cpu().long(), other.long())


@pytest.mark.parametrize("all_units", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_host_lists_what_the_reference_lists(shape: tuple[int, int, int, int], all_units: bool) -> None:
    for seed, threads in ((0, 1), (1, 1), (2, 4), (3, 8)):
        case = case_of(shape, seed, all_units=all_units)
        got = cuda_on_host.list_candidates(*case.arguments, threads=threads)
        assert_same(got, list_candidates(*case.arguments, impl="torch"), torch.int32)


@on_each_device("list_candidates")
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("all_units", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, (2500, 3, 1200, 5000)], ids=str)
def test_lists_what_the_operations_of_torch_list(
    impl: str, device: str, shape: tuple[int, int, int, int], all_units: bool
) -> None:
    for seed, dtype in ((5, torch.int32), (6, torch.int64), (7, torch.int32)):
        case = case_of(shape, seed, all_units=all_units, dtype=dtype)
        assert_same(list_candidates(*case.on(device), impl=impl), composed(case), dtype)


@on_each_instruction_set
@pytest.mark.parametrize("all_units", [True, False])
def test_each_instruction_set_lists_the_same(isa: str, all_units: bool) -> None:
    case = case_of(SHAPES[3], 8, all_units=all_units)
    padded = UnitTable(torch.cat([case.units.offsets] * 2, dim=1)[:, : case.sizes.shape[1]], *case.units[1:])
    assert not padded.offsets.is_contiguous()
    with on(isa):
        got = list_candidates(*case.arguments[:3], padded, case.width, impl="cpu")
    assert_same(got, composed(case), torch.int32)


def left_by_loops(case: Case) -> Tensor:
    left = case.sizes.clone()
    for row, sizes in enumerate(case.sizes.tolist()):
        units = [unit for unit, size in enumerate(sizes) for _ in range(size)]
        for place in case.slot_place[row].tolist():
            if place >= 0:
                left[row, units[place]] -= 1
    return left


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_host_leaves_what_loops_leave(shape: tuple[int, int, int, int]) -> None:
    for seed, threads in ((0, 1), (1, 4), (2, 8)):
        case = case_of(shape, seed, all_units=seed == 1)
        got = cuda_on_host.count_rest(case.slot_place, case.sizes.int(), case.units, threads=threads)
        assert torch.equal(got.long(), left_by_loops(case))


# Interpreted, the kernel in Triton runs once a shape.
@each_implementation("count_rest")
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_leaves_what_loops_leave(impl: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    case = case_of(shape, 5, all_units=dtype == torch.int32, dtype=dtype)
    place = torch.cat([case.slot_place, case.slot_place], dim=1)[:, : case.slot_place.shape[1]]
    got = count_rest(place, case.sizes.to(dtype), case.units, impl=impl)
    assert got.dtype == dtype and torch.equal(got.long(), left_by_loops(case))


def leave(left: Tensor, slot_place: Tensor, sizes: Tensor, units: UnitTable, impl: str) -> None:
    left.copy_(count_rest(slot_place, sizes, units, impl=impl))


@on_each_device("count_rest")
def test_leaves_the_same_wherever_it_runs(impl: str, device: str) -> None:
    for shape in (*SHAPES, (2500, 3, 1200, 5000)):
        case = case_of(shape, 6, all_units=True)
        _, _, slot_place, units, _ = case.on(device)
        left = torch.empty(case.sizes.shape, dtype=torch.int32, device=device)
        sizes = case.sizes.int().to(device)
        again = repeated(partial(leave, left, slot_place, sizes, units, impl), impl, device)
        for _ in range(2):
            again()
            wait(device)
            assert torch.equal(left.cpu().long(), left_by_loops(case))
            slot_place[:, ::2] = case.slot_place[:, ::2] = -1


@on_each_instruction_set
def test_each_instruction_set_leaves_the_same(isa: str) -> None:
    case = case_of(SHAPES[3], 7, all_units=False)
    with on(isa):
        got = count_rest(case.slot_place.T.contiguous().T, case.sizes.T.contiguous().T, case.units, impl="cpu")
    assert torch.equal(got, left_by_loops(case))


def scored(num_tokens: int, seed: int, dtype: torch.dtype = torch.int32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores of all kinds, places some of which are none, what is resident, and room from less than none to too much.

    Where there is no token, its score is NaN or anything.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (12, num_tokens)
    normal = torch.randn(shape, generator=generator)
    scores = torch.stack([normal, normal.round(), normal * 1e-3 - 20], dim=1).flatten(0, 1)[:12].contiguous()
    scores[9:] = scores[9:].masked_fill(torch.rand(3, num_tokens, generator=generator) < 0.5, -torch.inf)
    place = (
        torch.rand(shape, generator=generator).argsort(1).masked_fill(torch.rand(shape, generator=generator) < 0.3, -1)
    )
    place[10] = -1
    resident = (torch.rand(shape, generator=generator) < torch.linspace(0, 1, 12)[:, None]) & (place >= 0)
    there = (place >= 0).sum(1)
    room = torch.stack([there // 3, there, there - 1, there + 5, there * 0, there * 0 - 2, there // 9])
    room = room.gather(0, torch.randint(0, 7, (1, 12), generator=generator))[0]
    return scores.masked_fill(place < 0, torch.nan), place.to(dtype), resident, room


def best_by_loops(scored: tuple[Tensor, Tensor, Tensor, Tensor], num_wanted: int, hold: float) -> Tensor:
    wanted = torch.full((len(scored[0]), num_wanted), -1)
    for row, (scores, place, resident, room) in enumerate(zip(*scored, strict=True)):
        held = (scores + hold * resident).tolist()
        there = [token for token, at in enumerate(place.tolist()) if at >= 0]
        chosen = sorted(sorted(there, key=lambda token: (-held[token], token))[: max(0, int(room))])
        places = [int(place[token]) for token in chosen[:num_wanted]]
        wanted[row, : len(places)] = torch.tensor(places, dtype=torch.int64)
    return wanted


SIZES = [(1, 1), (15, 4), (17, 17), (63, 20), (500, 100), (4099, 1000)]


@pytest.mark.parametrize("hold", [0.0, 1.0, 4.0])
@pytest.mark.parametrize(("num_tokens", "num_wanted"), SIZES)
def test_the_host_takes_the_tokens_that_the_reference_takes(num_tokens: int, num_wanted: int, hold: float) -> None:
    for seed, threads in ((0, 1), (1, 4), (2, 8)):
        case = scored(num_tokens, seed)
        got = cuda_on_host.best_tokens(*case, num_wanted, hold=hold, threads=threads)
        assert torch.equal(got, best_tokens(*case, num_wanted, hold=hold, impl="torch"))


@on_each_device("best_tokens")
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("hold", [0.0, 1.0, 4.0])
@pytest.mark.parametrize(("num_tokens", "num_wanted"), SIZES)
def test_takes_the_tokens_that_loops_take(
    impl: str, device: str, num_tokens: int, num_wanted: int, hold: float
) -> None:
    for seed, dtype in ((3, torch.int32), (4, torch.int64)):
        case = scored(num_tokens, seed, dtype)
        scores, place, resident, room = (each.to(device) for each in case)
        got = best_tokens(scores, place, resident, room, num_wanted, hold=hold, impl=impl)
        assert got.dtype == dtype and torch.equal(got.cpu().long(), best_by_loops(case, num_wanted, hold))


@on_each_instruction_set
def test_each_instruction_set_takes_the_same(isa: str) -> None:
    scores, place, resident, room = scored(300, 5)
    views = (scores.T.contiguous().T, place.T.contiguous().T, resident.T.contiguous().T, room)
    with on(isa):
        got = best_tokens(*views, 70, hold=0.5, impl="cpu")
    assert torch.equal(got, best_tokens(scores, place, resident, room, 70, hold=0.5, impl="torch"))


@on_each_device("best_tokens")
def test_repeats_with_other_slots_and_scores(impl: str, device: str) -> None:
    case = case_of(SHAPES[3], 0, all_units=False).on(device)
    listed = [each.clone() for each in list_candidates(*case, impl=impl)]
    scores = torch.zeros(listed[0].shape, device=device)
    room = torch.full((ROWS,), 40, device=device)
    wanted = torch.empty_like(case[2])

    def step() -> None:
        place, _, resident = list_candidates(*case, impl=impl)
        wanted.copy_(best_tokens(scores, place, resident, room, wanted.shape[1], hold=1.0, impl=impl))

    again = repeated(step, impl, device)
    for seed in (1, 2):
        other = case_of(SHAPES[3], seed, all_units=False)
        for mine, new in zip((*case[:3], *case[3]), (*other.arguments[:3], *other.units), strict=True):
            if isinstance(mine, Tensor) and isinstance(new, Tensor):
                mine.copy_(new)
        scores.copy_(torch.randn(scores.shape, generator=torch.Generator().manual_seed(seed)))
        again()
        wait(device)
        place, _, resident = list_candidates(*other.arguments, impl="torch")
        expected = best_tokens(scores.cpu(), place, resident, room.cpu(), wanted.shape[1], hold=1.0, impl="torch")
        assert torch.equal(wanted.cpu(), expected)


@on_each_device("list_candidates")
def test_no_rows_no_slots_and_no_width(impl: str, device: str) -> None:
    case = case_of(SHAPES[1], 0, all_units=True).on(device)
    take, offsets, slot_place, units, width = case
    none = UnitTable(units.offsets[:0], units.counts[:0])
    assert list_candidates(take[:0], offsets[:0], slot_place[:0], none, width, impl=impl)[0].shape == (0, 32)
    assert list_candidates(take, offsets, slot_place[:, :0], units, width, impl=impl)[0].shape == (ROWS, 17)
    place, _, resident = list_candidates(take, offsets, slot_place, units, 0, impl=impl)
    assert torch.equal(place, slot_place) and torch.equal(resident, slot_place >= 0)
    scores, place, resident, room = (each.to(device) for each in scored(9, 0))
    assert best_tokens(scores, place, resident, room, 0, hold=1.0, impl=impl).shape == (12, 0)


@on_each_device("best_tokens")
@pytest.mark.parametrize("all_units", [True, False])
def test_compiled_it_is_one_graph(impl: str, device: str, all_units: bool) -> None:
    case, room = case_of(SHAPES[2], 0, all_units=all_units).on(device), torch.full((ROWS,), 9, device=device)

    def chosen(slot_place: Tensor) -> Tensor:
        place, entry, resident = list_candidates(case[0], case[1], slot_place + 0, case[3], case[4], impl=impl)
        return best_tokens(entry.float(), place, resident, room, 20, hold=1.0, impl=impl)

    got = torch.compile(chosen, backend="aot_eager", fullgraph=True)(case[2])
    assert torch.equal(got, chosen(case[2]))


@on_the_best_instruction_set
def test_what_torch_checks_and_what_does_not_fit_is_refused(isa: str) -> None:
    import_module("louiskv.ops.candidates_cpu")
    case = case_of(SHAPES[1], 0, all_units=False)
    listing = [*case.arguments[:3], *case.units, case.width]
    choosing = [*scored(17, 0), 5, 0.5]
    counting = [case.slot_place, case.sizes, *case.units[:2]]
    for op, arguments, number, wrong in (
        (torch.ops.louiskv.list_candidates, listing, 5, torch.zeros(ROWS, 1, dtype=torch.int32)),
        (torch.ops.louiskv.list_candidates, listing, 4, torch.zeros(1, dtype=torch.int64)),
        (torch.ops.louiskv.list_candidates, listing, 1, case.offsets[:, 1:]),
        (torch.ops.louiskv.best_tokens, choosing, 0, torch.zeros(12, 16)),
        (torch.ops.louiskv.best_tokens, choosing, 3, torch.zeros(3, dtype=torch.int64)),
        (torch.ops.louiskv.count_rest, counting, 0, case.slot_place[1:]),
        (torch.ops.louiskv.count_rest, counting, 1, case.sizes[:, 1:]),
    ):
        arguments = [each.nan_to_num() if isinstance(each, Tensor) else each for each in arguments]
        torch.library.opcheck(op.default, tuple(arguments))
        with pytest.raises(RuntimeError, match="louiskv: "):
            op(*(wrong if at == number else each for at, each in enumerate(arguments)))


def test_traced_the_kernels_give_tensors_of_their_shapes() -> None:
    import_module("louiskv.ops.candidates_cuda")
    table = torch.empty(3, 8, device="meta", dtype=torch.int32)
    counts = torch.empty(3, device="meta", dtype=torch.int64)
    listed = torch.ops.louiskv_cuda.list_candidates(table, table, table, table, counts, None, 1, 5)
    assert [each.shape for each in listed] == [(3, 13)] * 3
    assert [each.dtype for each in listed] == [torch.int32, torch.int32, torch.bool]
    assert torch.ops.louiskv_cuda.count_rest(table, counts[:, None].expand(3, 8), table, counts).dtype == torch.int64
    scores = torch.empty(3, 13, device="meta")
    assert torch.ops.louiskv_cuda.best_tokens(scores, *listed[::2], counts, 8, 0.5).shape == (3, 8)
