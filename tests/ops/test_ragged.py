"""Ragged rows: appended, left-aligned, summed by label."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv.ops import ragged


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, max_size=4))
def test_append_writes_behind_each_row_and_nothing_else(rows: list[tuple[int, int]]) -> None:
    lengths, counts = (list(column) for column in zip(*rows, strict=True))
    buffer = torch.zeros(len(rows), 12, 2)
    new = torch.arange(1.0, len(rows) * 7 * 2 + 1).view(len(rows), 7, 2)
    ragged.append_rows(buffer, lengths, new, counts)
    for row, (length, count) in enumerate(rows):
        assert torch.equal(buffer[row, length : length + count], new[row, :count])
        assert buffer[row, :length].eq(0).all() and buffer[row, length + count :].eq(0).all()


@given(keep=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3))
def test_left_aligned_keeps_the_order(keep: list[list[bool]]) -> None:
    order, counts = ragged.left_aligned(torch.tensor(keep))
    for row, flags in enumerate(keep):
        kept = [place for place, flag in enumerate(flags) if flag]
        assert order[row, : int(counts[row])].tolist() == kept


def test_take_rows_picks_within_each_row() -> None:
    rows = torch.arange(12.0).view(2, 3, 2)
    picked = ragged.take_rows(rows, torch.tensor([[2, 0], [1, 1]]))
    assert picked.tolist() == [[[4.0, 5.0], [0.0, 1.0]], [[8.0, 9.0], [8.0, 9.0]]]


def test_sums_and_counts_by_label() -> None:
    points = torch.tensor([[[1.0], [2.0], [4.0]], [[8.0], [16.0], [32.0]]])
    labels = torch.tensor([[0, 1, 0], [2, 2, 0]])
    sums, counts = ragged.sum_by_label(points, labels, 3)
    assert sums[..., 0].tolist() == [[5.0, 2.0, 0.0], [32.0, 0.0, 24.0]]
    assert counts.tolist() == [[2, 1, 0], [1, 0, 2]]


def test_grown_keeps_what_there_was() -> None:
    buffer = torch.ones(2, 3, 1)
    bigger = ragged.grown(buffer, 5)
    assert bigger.shape == (2, 5, 1) and bigger[:, :3].eq(1).all() and bigger[:, 3:].eq(0).all()


def test_dense_ranks_number_what_is_different() -> None:
    numbers = torch.tensor([[7, 3, 7, 90, 3], [0, 0, 0, 0, 0], [4, 3, 2, 1, 0]])
    assert ragged.dense_ranks(numbers).tolist() == [[1, 0, 1, 2, 0], [0] * 5, [4, 3, 2, 1, 0]]


def test_what_is_not_readable_is_never_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere, counts = torch.tensor([False, False]), torch.tensor([3, 5])
    assert not ragged.may_hold(nowhere) and ragged.may_hold(~nowhere)
    assert ragged.width_of(counts, 9) == 5
    monkeypatch.setattr(ragged, "READABLE", set())
    assert ragged.may_hold(nowhere)
    assert ragged.width_of(counts, 9) == 9


def test_who_asks_about_the_same_tensor_gets_the_same_answer_and_nobody_looks_again() -> None:
    looks: list[tuple[int, int]] = []

    @ragged.asked_once
    def total(tensor: Tensor, factor: int = 1) -> list[int]:
        looks.append((int(tensor.sum()), factor))
        return [looks[-1][0] * factor]

    first, alike = torch.tensor([1, 2]), torch.tensor([1, 2])
    assert total(first) is total(first) and len(looks) == 1
    assert total(alike) == [3] and len(looks) == 2, "equal, but another"
    assert total(alike, factor=2) == [6] and total(alike, 3) == [9] and len(looks) == 4
    assert total(first) == [3] and len(looks) == 5, "only the last is known"
    del first
    for number in range(20):  # What is new may lie where another was.
        assert total(torch.tensor([number])) == [number]


def test_what_is_kept_is_counted() -> None:
    assert ragged.counts_of(torch.tensor([[True, False, True], [False] * 3])) == [2, 0]
