"""A prompt that comes into windows: what stays, and what leaves, of rows that stand alike and of rows that do not."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv.methods.pace import Standing
from louiskv.methods.retrieval_window import Leaving, admit
from louiskv.store.device import ResidentSet
from louiskv.units.base import Units
from louiskv.units.pages import Pages
from louiskv.units.segments import Segments

SINKS, WINDOW = 2, 8


def resident_set(num_rows: int) -> ResidentSet:
    return ResidentSet(num_rows, SINKS, WINDOW, 3, 1, 1, torch.float32, torch.device("cpu"))


def take_in(
    resident: ResidentSet, stood: list[Standing], prompt: Tensor, counts: list[int], units: Units
) -> tuple[list[Standing], Leaving]:
    stands = [row.after(count, WINDOW // 2, units) for row, count in zip(stood, counts, strict=True)]
    return stands, admit(resident, prompt, stood, stands)


@settings(deadline=None, max_examples=60)
@given(
    turns=st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=1, max_size=4),
    units=st.sampled_from([Pages(4), Segments(2, 3)]),
)
def test_rows_that_stand_apart_take_in_what_each_takes_in_alone(turns: list[list[int]], units: Units) -> None:
    together, alone = resident_set(3), [resident_set(1) for _ in range(3)]
    stood, of_each, seen = [Standing(0, SINKS, 0, 0)] * 3, [[Standing(0, SINKS, 0, 0)] for _ in range(3)], [0, 0, 0]
    for counts in turns:
        # Each token is its position; behind them there may be anything.
        prompt = torch.full((3, max(1, *counts), 2), torch.nan)
        for row, count in enumerate(counts):
            prompt[row, :count] = torch.arange(seen[row], seen[row] + count)[:, None].float()
            seen[row] += count
        stood, leaving = take_in(together, stood, prompt, counts, units)
        for row, resident in enumerate(alone):
            part = prompt[row : row + 1, : max(1, counts[row])]
            of_each[row], left = take_in(resident, of_each[row], part, counts[row : row + 1], units)
            assert of_each[row] == stood[row : row + 1]
            assert (resident.lengths, resident.window_start) == (together.lengths[row], together.window_start[row])
            assert torch.equal(resident.rows[0], together.rows[row])
            assert torch.equal(resident.bias[0], together.bias[row])
            count, first = left.known[0], int(left.first)
            assert (leaving.known[row], int(leaving.counts[row]), int(leaving.first[row])) == (count, count, first)
            expected = torch.arange(first, first + count)[:, None].expand(-1, 2).float()
            assert torch.equal(leaving.rows[row, :count], expected) and torch.equal(left.rows[0, :count], expected)
            assert resident.window_room().tolist() == [stood[row].room(SINKS, WINDOW)]
    position = together.positions()
    slots = together.rows[:, : SINKS + WINDOW, 0]
    assert torch.equal(slots[position >= 0], position[position >= 0].float())
