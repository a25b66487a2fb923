"""What a step asks of the index and what it retrieves, against loops over heads, units, tokens and channels."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv.methods.look import Look
from louiskv.methods.selecting import select_inside, select_whole
from louiskv.store.device import ResidentSet
from louiskv.units.index import UnitIndex
from louiskv.units.summaries import Sketch
from tests.methods.oracle import dot

DIM, SCALING = 9, 0.4
# Sums of floats in two orders.
CLOSE = 1e-4


@dataclass
class Case:
    """Rows of units of these sizes, some of whose tokens lie in slots, and the queries that look at them."""

    sizes: list[list[int]]
    look: Look
    slot_place: Tensor

    @property
    def index(self) -> UnitIndex:
        return self.look.index

    def always(self, row: int) -> list[list[float]]:
        """The keys of sinks and window."""
        keys, bias = self.look.resident.always
        held: list[list[float]] = keys[row, bias[row, 0] == 0].tolist()
        return held

    def resident(self, row: int) -> set[int]:
        return {place for place in self.slot_place[row].tolist() if place >= 0}

    def tokens(self, row: int) -> list[tuple[int, int]]:
        """Unit and place of each token of a row."""
        units = [unit for unit, size in enumerate(self.sizes[row]) for _ in range(size)]
        return list(zip(units, range(len(units)), strict=True))

    def logits(self, row: int) -> list[list[float]]:
        """Of each query head for a token of each unit."""
        codes, _, steps = self.index.summaries
        return [
            [
                SCALING * float(steps[row, unit, 0]) * dot(query, codes[row, unit].tolist())
                for unit in range(len(self.sizes[row]))
            ]
            for query in self.look.query[row].tolist()
        ]

    def unit_scores(self, row: int) -> list[float]:
        shares = []
        for logits in self.logits(row):
            total = sum(math.exp(logit) for logit in logits)
            shares.append([math.exp(logit) / total for logit in logits])
        return [math.log(sum(column) / len(column)) for column in zip(*shares, strict=True)]

    def token_scores(self, row: int) -> list[float]:
        """Of every token, in the order of the places."""
        bits, steps = self.index.details, self.index.summaries[2]
        assert bits is not None
        scores = [0.0] * len(self.tokens(row))
        for logits, query in zip(self.logits(row), self.look.query[row].tolist(), strict=True):
            total = sum(size * math.exp(logit) for logit, size in zip(logits, self.sizes[row], strict=True))
            total += sum(math.exp(SCALING * dot(query, key)) for key in self.always(row))
            for unit, place in self.tokens(row):
                packed = bits[row, place].tolist()
                signs = [1.0 if packed[channel // 8] >> channel % 8 & 1 else -1.0 for channel in range(DIM)]
                off = SCALING * float(steps[row, unit, 2]) * dot(query, signs)
                scores[place] += math.exp(logits[unit] + off) / total / len(self.look.query[row])
        return [math.log(score) for score in scores]

    def first_of_best(self, row: int, room: int, scores: list[float]) -> list[int]:
        """Places of the tokens of the best units, the last of which is cut."""
        taken: list[int] = []
        for best in sorted(range(len(scores)), key=lambda unit: -scores[unit]):
            taken += [place for unit, place in self.tokens(row) if unit == best]
        return taken[:room]


def some_case(sizes: list[list[int]], num_slots: int, group_size: int, seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    num_tokens, num_units = max(sum(row) for row in sizes), max(len(row) for row in sizes) + 2
    keys = torch.randn(len(sizes), num_tokens, DIM, generator=generator) * 2
    held = torch.zeros(len(sizes), num_units, dtype=torch.int64)
    slot_place = torch.full((len(sizes), num_slots), -1, dtype=torch.int32)
    for row, units in enumerate(sizes):
        held[row, : len(units)] = torch.tensor(units, dtype=torch.int64)
        order = torch.randperm(sum(units), generator=generator)[
            : int(torch.randint(0, num_slots + 1, (), generator=generator))
        ]
        slot = torch.randperm(num_slots, generator=generator)[: len(order)]
        slot_place[row, slot] = order.int()
    sketch, index = Sketch(), UnitIndex(len(sizes), (1, 1, 1), torch.device("cpu"))
    index.append(torch.zeros(len(sizes), dtype=torch.int64), held, *sketch.build(keys, keys, held))
    beside = ResidentSet(len(sizes), 2, 3, num_slots, DIM, DIM, torch.float32, torch.device("cpu"))
    beside.rows.copy_(torch.randn(beside.rows.shape, generator=generator))
    lengths = torch.randint(1, 6, (len(sizes),), generator=generator)
    beside.advance(lengths, beside.window_start)
    beside.assign(slot_place)
    query = torch.randn(len(sizes), group_size, DIM, generator=generator)
    return Case(sizes, looking(index, beside, query), slot_place)


def looking(index: UnitIndex, beside: ResidentSet, query: Tensor) -> Look:
    return Look(index, beside, Sketch(), query, scaling=SCALING, reduce="softmax_mean")


def places(selected: Tensor) -> list[int]:
    """The places of a row, each of which is there once."""
    found = [place for place in selected.tolist() if place >= 0]
    assert len(found) == len(set(found))
    return found


ragged = st.lists(st.lists(st.integers(1, 6), max_size=8), min_size=1, max_size=3).filter(any)
a_case = {
    "sizes": ragged,
    "num_slots": st.integers(1, 20),
    "rooms": st.lists(st.integers(0, 20), min_size=3, max_size=3),
    "hold": st.sampled_from([0.0, 0.5, 2.0, 100.0]),
    "group_size": st.sampled_from([1, 3, 4]),
    "seed": st.integers(0, 999),
}


def room_of(rooms: list[int], num_slots: int, num_rows: int) -> Tensor:
    return torch.tensor(rooms[:num_rows]).clamp(max=num_slots)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(oversample=st.integers(1, 5), **a_case)
def test_the_best_tokens_of_the_best_units_and_of_those_resident(
    sizes: list[list[int]],
    num_slots: int,
    rooms: list[int],
    hold: float,
    group_size: int,
    seed: int,
    oversample: int,
) -> None:
    case, room = some_case(sizes, num_slots, group_size, seed), room_of(rooms, num_slots, len(sizes))
    got = select_inside(case.look, room, case.slot_place, hold, oversample)
    assert got.shape == (len(sizes), num_slots)
    for row, units in enumerate(sizes):
        chosen = set(places(got[row]))
        assert len(chosen) == min(int(room[row]), sum(units)), "never less than there are"
        candidates = set(case.first_of_best(row, int(room[row]) * oversample, case.unit_scores(row)))
        candidates |= case.resident(row)
        assert chosen <= candidates
        scores = [score + hold * (place in case.resident(row)) for place, score in enumerate(case.token_scores(row))]
        least = min((scores[place] for place in chosen), default=math.inf)
        assert all(scores[place] <= least + CLOSE for place in candidates - chosen)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(recent_units=st.integers(0, 3), **a_case)
def test_the_best_units_are_taken_whole(
    sizes: list[list[int]],
    num_slots: int,
    rooms: list[int],
    hold: float,
    group_size: int,
    seed: int,
    recent_units: int,
) -> None:
    case, room = some_case(sizes, num_slots, group_size, seed), room_of(rooms, num_slots, len(sizes))
    got = select_whole(case.look, room, case.slot_place, hold, recent_units)
    for row, units in enumerate(sizes):
        held = {unit for unit, place in case.tokens(row) if place in case.resident(row)}
        scores = [score + hold * (unit in held) for unit, score in enumerate(case.unit_scores(row))]
        scores = [math.inf if unit >= len(units) - recent_units else score for unit, score in enumerate(scores)]
        assert set(places(got[row])) == set(case.first_of_best(row, int(room[row]), scores))


@pytest.mark.parametrize("inside", [True, False])
@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=st.integers(0, 9999), hold=st.sampled_from([0.0, 0.3, 1.0, 3.0]))
def test_what_is_resident_stays_unless_it_is_beaten_by_what_it_holds_with(inside: bool, seed: int, hold: float) -> None:
    # Units of one token, so that a token and its unit are the same to both ways.
    case = some_case([[1] * 12, [1] * 7], 5, 3, seed)
    room = torch.tensor([5, 5])
    select = (
        select_inside(case.look, room, case.slot_place, hold, 3)
        if inside
        else select_whole(case.look, room, case.slot_place, hold, 0)
    )
    for row in range(2):
        scores = case.token_scores(row) if inside else case.unit_scores(row)
        chosen, held = set(places(select[row])), case.resident(row)
        for dropped in held - chosen:
            assert all(scores[new] > scores[dropped] + hold - CLOSE for new in chosen - held)


@pytest.mark.parametrize("inside", [True, False])
def test_with_enough_hold_all_stays_and_with_none_what_is_resident_does_not_matter(inside: bool) -> None:
    sizes, room = [[1] * 30, [1] * 20], torch.tensor([6, 6])
    case = some_case(sizes, 6, 2, seed=0)
    nowhere = torch.full_like(case.slot_place, -1)

    def select(slot_place: Tensor, hold: float) -> list[set[int]]:
        case.look.resident.assign(slot_place)
        look = looking(case.index, case.look.resident, case.look.query)
        got = (
            select_inside(look, room, slot_place, hold, 5) if inside else select_whole(look, room, slot_place, hold, 0)
        )
        return [set(places(row)) for row in got]

    worst = torch.tensor(
        [sorted(range(len(row)), key=case.token_scores(each).__getitem__)[:4] for each, row in enumerate(sizes)]
    )
    resident = torch.cat([worst.int(), nowhere[:, :2]], dim=1)
    for row, kept in enumerate(select(resident, 100.0)):
        assert set(worst[row].tolist()) <= kept
    assert select(resident, 0.0) == select(nowhere, 0.0) == select(nowhere, 100.0)


def test_more_oversampling_finds_better_tokens() -> None:
    case = some_case([[4] * 30], 8, 2, seed=5)
    nowhere = torch.full_like(case.slot_place, -1)
    case.look.resident.assign(nowhere)
    scores = case.token_scores(0)
    sums = []
    for oversample in (1, 2, 4, 15):
        chosen = places(select_inside(case.look, torch.tensor([8]), nowhere, 0.0, oversample)[0])
        sums.append(sum(math.exp(scores[place]) for place in chosen))
    assert sums == sorted(sums) and sums[0] < sums[-1]
    assert sums[-1] == pytest.approx(sum(sorted((math.exp(score) for score in scores), reverse=True)[:8]), rel=1e-4)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(sizes=ragged, num_slots=st.integers(1, 20), group_size=st.sampled_from([1, 3, 4]), seed=st.integers(0, 999))
def test_coverage_is_the_share_of_what_the_units_get(
    sizes: list[list[int]], num_slots: int, group_size: int, seed: int
) -> None:
    case = some_case(sizes, num_slots, group_size, seed)
    covered, best = case.look.coverage().tolist(), case.look.best_coverage().tolist()
    for row, units in enumerate(sizes):
        mass = [0.0] * len(units)
        for logits, query in zip(case.logits(row), case.look.query[row].tolist(), strict=True):
            # A head that attends to sinks and window has less to say.
            total = sum(size * math.exp(logit) for logit, size in zip(logits, units, strict=True))
            total += sum(math.exp(SCALING * dot(query, key)) for key in case.always(row))
            mass = [each + math.exp(logit) / total for each, logit in zip(mass, logits, strict=True)]
        of_tokens = [mass[unit] for unit, _ in case.tokens(row)]
        everything = sum(of_tokens) or 1.0
        held = case.resident(row)
        assert covered[row] == pytest.approx(sum(of_tokens[place] for place in held) / everything, abs=CLOSE)
        chosen = case.first_of_best(row, len(held), case.unit_scores(row)) if units else []
        assert best[row] == pytest.approx(sum(of_tokens[place] for place in chosen) / everything, abs=CLOSE)


def test_neither_rows_without_units_nor_low_logits_spoil_the_coverage() -> None:
    case = some_case([[3, 4], [], [1, 1, 1]], 6, 2, seed=0)
    _, _, steps = case.index.summaries
    sketched = case.look.coverage()
    # All that there is lies far below 0, where what stands for no unit is.
    query = -1000 * case.index.summaries[0][:, :1].float() * steps[:, :1, :1].float()
    case.look.resident.bias.fill_(-math.inf)
    low = looking(case.index, case.look.resident, query)
    assert bool((low.logits[0, 0, :2] < -100).all()) and float(low.logits[0, 0, 2]) == 0
    for each in (sketched, low.coverage(), low.best_coverage(), case.look.best_coverage()):
        assert bool(each.isfinite().all()) and float(each[1]) == 0
    assert bool(low.mass.isfinite().all())
    assert low.rest(2).num_tokens[1].eq(0).all()


@pytest.mark.parametrize("oversample", [0, 3])
def test_rows_that_are_not_asked_for_get_nothing_and_change_nothing(oversample: int) -> None:
    case = some_case([[2, 3, 4], [1, 5, 2], [6, 1, 1]], 6, 3, seed=2)
    room, where = torch.tensor([4, 5, 6]), torch.tensor([True, False, True])

    def select(look: Look) -> Tensor:
        if oversample:
            return select_inside(look, room, case.slot_place, 0.5, oversample)
        return select_whole(look, room, case.slot_place, 0.0, 0)

    expected = select(case.look)
    asked = looking(case.index, case.look.resident, case.look.query)
    asked.where = where
    got = select(asked)
    assert torch.equal(got[where], expected[where])
    if not oversample:
        assert bool((got[1] == -1).all())
