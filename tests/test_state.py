"""Tensors of a state, found and brought back to where they were."""

from typing import Any

import torch
from torch import Tensor

from louiskv import LouisKV
from louiskv.state import Held, tensors_of


class Part:
    def __init__(self) -> None:
        self.numbers = torch.arange(3)


# What is followed is louiskv's own.
Part.__module__ = "louiskv.part"


class State:
    def __init__(self) -> None:
        self.rows: Tensor = torch.zeros(2, 3)
        self.parts: tuple[Any, ...] = (torch.ones(2), Part())
        self.part = Part()
        self.telemetry = Part()
        self.name = "no tensor"


def test_every_tensor_is_found_with_its_owner() -> None:
    state = State()
    found = {path: (owner, tensor) for path, owner, tensor in tensors_of([state])}
    assert set(found) == {
        (0, "rows"),
        (0, "parts", 0),
        (0, "parts", 1, "numbers"),
        (0, "part", 0, "numbers"),
        (0, "telemetry", 0, "numbers"),
    }
    assert found[0, "rows"][0] is state
    assert found[0, "parts", 0][0] is None, "a tuple cannot be told otherwise"


def test_what_was_set_anew_comes_back_to_where_it_was() -> None:
    state = State()
    rows, held = state.rows, Held([state])
    state.rows = state.rows + 1
    state.part.numbers.add_(5)
    assert held.settle()
    assert state.rows is rows
    assert rows.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert state.part.numbers.tolist() == [5, 6, 7], "what was changed in place stays"


def test_other_shapes_and_other_tensors_do_not_settle() -> None:
    state = State()
    held = Held([state])
    state.rows = torch.zeros(2, 4)
    assert not held.settle()
    assert state.rows.shape == (2, 4), "and nothing was done"
    state = State()
    held = Held([state])
    state.parts = (torch.ones(2), state.parts[1])
    assert not held.settle()
    state = State()
    held = Held([state])
    state.part.more = torch.zeros(1)  # type: ignore[attr-defined]
    assert not held.settle()


def test_figures_may_come_to_be() -> None:
    state = State()
    held = Held([state])
    state.telemetry.more = first = torch.zeros(1)  # type: ignore[attr-defined]
    assert held.settle()
    state.telemetry.more = first + 1  # type: ignore[attr-defined]
    assert held.settle()
    assert state.telemetry.more is first  # type: ignore[attr-defined]
    assert first.item() == 1


def test_a_layer_has_all_that_a_step_changes() -> None:
    layer = LouisKV(budget=48, sink=4, window=16, unit_size=4, dense_layers=0).layer(0)
    layer.begin(1, 2, 4)
    layer.absorb(torch.randn(1, 2, 90, 8), torch.randn(1, 2, 90, 8), None)
    names = {".".join(str(each) for each in path if isinstance(each, str)) for path, _, _ in tensors_of([layer])}
    assert {"resident.rows", "resident.slot_place", "pool.rows", "index.summaries", "cuts.starts"} <= names
