"""Pages: runs of a fixed number of tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import SettingsError
from louiskv.units.pages import Pages, consecutive


@settings(deadline=None, max_examples=40, derandomize=True)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=3), size=st.integers(1, 12))
def test_one_page_after_the_other_and_the_last_may_be_shorter(counts: list[int], size: int) -> None:
    keys = torch.full((len(counts), max(counts), 4), torch.nan)
    order, sizes = Pages(size).group(keys, torch.tensor(counts))
    assert torch.equal(order, torch.arange(max(counts)).expand(len(counts), -1))
    for row, count in enumerate(counts):
        expected = [size] * (count // size) + [count % size] * (count % size > 0)
        assert sizes[row].tolist() == expected + [0] * (sizes.shape[1] - len(expected))
        assert Pages(size).num_units(count) == len(expected)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_consecutive_runs_of_any_size(size: int) -> None:
    order, sizes = consecutive(torch.zeros(2, 7, 3), torch.tensor([7, 2]), size)
    expected = {1: [[1] * 7, [1, 1, 0, 0, 0, 0, 0]], 3: [[3, 3, 1], [2, 0, 0]], 16: [[7], [2]]}[size]
    assert sizes.tolist() == expected
    assert order.tolist() == [list(range(7))] * 2


def test_whole_pages_leave_are_taken_and_are_aligned() -> None:
    pages = Pages(6)
    assert pages.leaves_by == pages.taken_by == pages.aligned_by == 6


@pytest.mark.parametrize("window", [6, 7, 100])
def test_boundaries_cut_no_page(window: int) -> None:
    runs = Pages(6).runs(window)
    assert runs.longest == 6
    assert runs.shortest > runs.longest


@pytest.mark.parametrize("wrong", [0, -1, 2.0, "16", None, True])
def test_a_page_has_at_least_one_token(wrong: object) -> None:
    with pytest.raises(SettingsError, match=f"page_size={wrong!r} .* whole number of at least 1"):
        Pages(wrong)  # type: ignore[arg-type]
