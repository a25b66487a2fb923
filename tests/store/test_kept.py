"""The kept set against a list of tokens, and the slot that stands for what was dropped."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.store.kept import KeptSet

CPU = torch.device("cpu")
KEY_DIM, VALUE_DIM, NUM_STATS = 3, 2, 1
NUM_ROWS = 2

Token = tuple[list[float], float, float]  # row, vote, number known of it
Held = list[dict[int, Token]]


def empty(num_slots: int, with_rest: bool = False) -> KeptSet:
    return KeptSet(NUM_ROWS, num_slots, KEY_DIM, VALUE_DIM, NUM_STATS, with_rest, torch.float32, CPU)


def held_by(kept: KeptSet) -> Held:
    """Tokens of each row by position."""
    held: Held = []
    last = kept.positions.shape[1] - kept.with_rest
    for row in range(len(kept.positions)):
        tokens: dict[int, Token] = {}
        for slot, position in enumerate(kept.positions[row, :last].tolist()):
            if position < 0:
                assert kept.votes[row, slot] == -math.inf, "an empty slot takes no part"
                continue
            assert position not in tokens
            stats = float(kept.stats[row, slot])
            tokens[position] = kept.rows[row, slot].tolist(), float(kept.votes[row, slot]), stats
        held.append(tokens)
    assert kept.counts.tolist() == [len(tokens) for tokens in held]
    return held


actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 6)),
        st.tuples(st.just("drop"), st.integers(0, 99)),
        st.tuples(st.just("sort"), st.just(0)),
        st.tuples(st.just("fill"), st.integers(1, 14)),
        st.tuples(st.just("crop"), st.integers(1, 8)),
        st.tuples(st.just("select"), st.integers(0, 3)),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(turns=actions, with_rest=st.booleans(), seed=st.integers(0, 99))
def test_any_turns_leave_the_same_tokens(turns: list[tuple[str, int]], with_rest: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = empty(8, with_rest)
    held: Held = [{} for _ in range(NUM_ROWS)]
    num_slots, end, dropped = 8, [0] * NUM_ROWS, [0] * NUM_ROWS
    for action, number in turns:
        if action == "append":
            for _ in range(min(number, num_slots - max(map(len, held)))):
                rows = torch.randn(NUM_ROWS, KEY_DIM + VALUE_DIM, generator=generator)
                kept.append(rows, torch.tensor(end))
                for row, tokens in enumerate(held):
                    tokens[end[row]] = rows[row].tolist(), 0.0, 0.0
                    end[row] += 1
        elif action == "drop":
            going = torch.rand(kept.positions.shape, generator=generator) * 99 < number
            going &= kept.positions >= 0
            for row, slot in going.nonzero().tolist():
                del held[row][int(kept.positions[row, slot])]
                dropped[row] += 1
            if with_rest:
                kept.compensate(kept.rows, going)
            kept.drop(going)
        elif action == "sort":
            kept.sort()
            assert kept.positions.shape[1] == num_slots + with_rest
            last = kept.positions[:, :num_slots]
            assert torch.equal(last, last.sort(1).values), "in the order of their positions, empty slots first"
        elif action == "fill":
            num_slots = max(num_slots, number)
            kept.reserve(num_slots)
            rows = torch.randn(NUM_ROWS, number, KEY_DIM + VALUE_DIM, generator=generator)
            votes, stats = torch.rand(2, NUM_ROWS, number, generator=generator)
            positions = torch.tensor(dropped)[:, None] + torch.arange(number)
            positions[1, number // 2 :] = -1
            kept.fill(rows, positions, votes.masked_fill(positions < 0, -torch.inf), stats[..., None])
            held = [
                {
                    position: (rows[row, place].tolist(), float(votes[row, place]), float(stats[row, place]))
                    for place, position in enumerate(positions[row].tolist())
                    if position >= 0
                }
                for row in range(NUM_ROWS)
            ]
            end = [dropped[0] + number, dropped[1] + number // 2]
        elif action == "crop":
            end = [max(0, each - number) for each in end]
            kept.crop(torch.tensor(end))
            held = [
                {place: token for place, token in tokens.items() if place < end[row]} for row, tokens in enumerate(held)
            ]
            dropped = [seen - len(tokens) for seen, tokens in zip(end, held, strict=True)]
        else:
            index = [number // 2, number % 2]
            kept.select_rows(torch.tensor(index))
            held, end = [dict(held[row]) for row in index], [end[row] for row in index]
            dropped = [dropped[row] for row in index]
        assert held_by(kept) == held
        assert kept.positions.shape == kept.votes.shape == kept.rows.shape[:2] == kept.stats.shape[:2]
        if with_rest:
            assert kept.num_rest.tolist() == dropped
            torch.testing.assert_close(kept.votes[:, -1].exp(), torch.tensor(dropped).float())
            assert kept.positions[:, -1].eq(-1).all(), "it stands nowhere"


def test_it_begins_empty_and_knows_its_size() -> None:
    kept = empty(4, with_rest=True)
    assert held_by(kept) == [{}, {}]
    assert kept.keys.shape == (2, 5, 3) and kept.values.shape == (2, 5, 2)
    assert kept.votes.eq(-torch.inf).all()
    # Rows, position, vote and one number of each slot; the sum and the number of what was dropped.
    assert kept.num_bytes == 2 * (5 * (5 * 4 + 8 + 4 + 4) + 5 * 4 + 8)


def test_a_token_takes_the_first_empty_slot() -> None:
    kept = empty(4)
    for position in range(4):
        kept.append(torch.full((2, 5), float(position)), torch.tensor([position, position]))
    lost = torch.zeros(2, 4, dtype=torch.bool)
    lost[0, 1], lost[1, 3] = True, True
    kept.stats.fill_(7)
    kept.drop(lost)
    kept.append(torch.full((2, 5), 9.0), torch.tensor([4, 4]))
    assert kept.positions.tolist() == [[0, 4, 2, 3], [0, 1, 2, 4]]
    assert kept.rows[:, :, 0].tolist() == [[0, 9, 2, 3], [0, 1, 2, 9]]
    assert kept.stats[:, :, 0].tolist() == [[7, 0, 7, 7], [7, 7, 7, 0]], "nothing is known of a token that comes"
    assert kept.votes.eq(0).all()


def with_dropped(counts: tuple[int, int]) -> tuple[KeptSet, torch.Tensor, torch.Tensor]:
    """Eight tokens a row, of which the first few were dropped; also their rows and what was dropped."""
    kept, rows = empty(8, with_rest=True), torch.randn(2, 8, 5)
    for position in range(8):
        kept.append(rows[:, position], torch.tensor([position, position]))
    lost = torch.arange(9) < torch.tensor(counts)[:, None]
    kept.compensate(kept.rows, lost)
    kept.drop(lost)
    return kept, rows, lost[:, :8]


def test_the_last_slot_is_the_mean_of_what_was_dropped_and_weighs_as_much() -> None:
    kept, rows, lost = with_dropped((3, 1))
    for row in range(2):
        dropped = rows[row, lost[row]].tolist()
        mean = [sum(channel) / len(dropped) for channel in zip(*dropped, strict=True)]
        torch.testing.assert_close(kept.rows[row, -1], torch.tensor(mean))
        assert float(kept.votes[row, -1]) == pytest.approx(math.log(len(dropped)))
    assert kept.counts.tolist() == [5, 7], "it is no token"
    more = torch.zeros(2, 9, dtype=torch.bool)
    more[:, 5] = True
    kept.compensate(kept.rows, more)
    kept.drop(more)
    torch.testing.assert_close(kept.rows[0, -1], rows[0, [0, 1, 2, 5]].mean(0))
    torch.testing.assert_close(kept.rows[1, -1], rows[1, [0, 5]].mean(0))
    torch.testing.assert_close(kept.votes[:, -1].exp(), torch.tensor([4.0, 2.0]))


def test_it_stays_what_it_was_when_there_is_more_room_or_another_order() -> None:
    kept, _, _ = with_dropped((3, 1))
    row, vote = kept.rows[:, -1].clone(), kept.votes[:, -1].clone()
    kept.sort()
    assert torch.equal(kept.rows[:, -1], row) and torch.equal(kept.votes[:, -1], vote)
    kept.reserve(12)
    assert kept.positions.shape == (2, 13)
    assert torch.equal(kept.rows[:, -1], row) and torch.equal(kept.votes[:, -1], vote)
    kept.select_rows(torch.tensor([1, 1]))
    assert torch.equal(kept.rows[:, -1], row[[1, 1]]) and torch.equal(kept.votes[:, -1], vote[[1, 1]])


def test_of_what_was_dropped_a_crop_forgets_a_part() -> None:
    kept, _, _ = with_dropped((6, 2))
    row = kept.rows[:, -1].clone()
    kept.crop(torch.tensor([3, 8]))
    assert kept.counts.tolist() == [0, 6]
    # Of the six that were dropped three are forgotten, and which is not known: the mean stays.
    assert kept.num_rest.tolist() == [3, 2]
    torch.testing.assert_close(kept.rows[:, -1], row)
    torch.testing.assert_close(kept.votes[:, -1].exp(), torch.tensor([3.0, 2.0]))


def test_nothing_dropped_takes_no_part() -> None:
    kept, _, _ = with_dropped((0, 2))
    assert kept.votes[0, -1] == -torch.inf
    assert kept.rows[0, -1].eq(0).all(), "and is finite"


def test_more_room_is_made_only_where_there_is_too_little() -> None:
    kept = empty(4)
    rows = kept.rows
    kept.reserve(4)
    assert kept.rows is rows
    kept.reserve(6)
    assert kept.rows.shape == (2, 6, 5) and kept.stats.shape == (2, 6, 1)
