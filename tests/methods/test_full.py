"""Full attention knows how long its rows are without looking at them, whatever they went through."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv.methods.full import FullLayer

HEADS, DIM = 2, 4


class Rows:
    """A layer, and the numbers that each of its sequences must hold."""

    def __init__(self, layer: FullLayer | None = None, batch_size: int = 2) -> None:
        if layer is None:
            layer = FullLayer()
            layer.begin(batch_size, HEADS, HEADS)
        self.layer = layer
        self.held: list[list[float]] = [[] for _ in range(batch_size)]
        self.next = 0.0

    def _states(self, num_tokens: int) -> Tensor:
        numbers = torch.arange(len(self.held) * num_tokens) + self.next
        self.next += len(self.held) * num_tokens
        return numbers.view(-1, 1, num_tokens, 1).expand(-1, HEADS, -1, DIM).float().contiguous()

    def prompt(self, num_tokens: int, padding: int) -> None:
        states, valid = self._states(num_tokens), torch.ones(len(self.held), num_tokens, dtype=torch.bool)
        valid[0, :padding] = False
        self.layer.absorb(states, states, valid if padding else None)
        for row, held in enumerate(self.held):
            held += states[row, 0, padding if row == 0 else 0 :, 0].tolist()

    def step(self) -> None:
        states = self._states(1)
        self.layer.append(states, states)
        for row, held in enumerate(self.held):
            held.append(float(states[row, 0, 0, 0]))

    def crop(self, count: int) -> None:
        self.layer.crop(torch.tensor([min(count, len(held)) for held in self.held]))
        self.held = [held[: len(held) - min(count, len(held))] for held in self.held]

    def select(self, index: list[int]) -> None:
        self.layer.select_batch(torch.tensor(index))
        self.held = [list(self.held[each]) for each in index]

    def check(self) -> None:
        self.layer.check_integrity()
        rows = [self.layer.keys[row, :length, 0].tolist() for row, length in enumerate(self.layer.lengths.tolist())]
        assert rows == [held for held in self.held for _ in range(HEADS)]


EVENTS = st.one_of(
    st.tuples(st.just("prompt"), st.integers(1, 7), st.integers(0, 6)),
    st.tuples(st.just("step"), st.just(0), st.just(0)),
    st.tuples(st.just("crop"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("select"), st.integers(0, 1), st.integers(0, 1)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, max_size=8))
def test_rows_hold_what_they_were_given(events: list[tuple[str, int, int]]) -> None:
    rows = Rows()
    rows.prompt(5, 0)
    for name, first, second in events:
        if name == "prompt":
            rows.prompt(first, min(second, first - 1))
        elif name == "step":
            rows.step()
        elif name == "crop":
            rows.crop(first)
        else:
            rows.select([first, second])
        rows.check()


@pytest.mark.parametrize("padding", [0, 2])
def test_a_step_that_failed_leaves_no_hole(padding: int) -> None:
    rows = Rows()
    rows.prompt(5, padding)
    rows.step()
    rows.layer.begin_step()  # the model has failed behind this
    rows.prompt(4, 0)
    rows.check()
    rows.step()
    rows.check()


def test_rows_that_are_all_idle_stay_empty() -> None:
    rows = Rows()
    rows.prompt(5, 0)
    idle = rows.layer.spread({}, 3)
    for _ in range(2):
        idle.append(torch.zeros(3, HEADS, 1, DIM), torch.zeros(3, HEADS, 1, DIM))
        idle.check_integrity()
    assert idle.lengths.tolist() == [0] * 6
    idle.put(1, rows.layer, 0)
    idle.check_integrity()
    assert idle.lengths.tolist() == [0, 0, 5, 5, 0, 0]
