"""Tokens: units of one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import SettingsError
from louiskv.units.tokens import Tokens


@settings(deadline=None, max_examples=40, derandomize=True)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=3), group_size=st.integers(1, 12))
def test_each_token_is_a_unit(counts: list[int], group_size: int) -> None:
    keys = torch.full((len(counts), max(counts), 4), torch.nan)
    order, sizes = Tokens(group_size).group(keys, torch.tensor(counts))
    for row, count in enumerate(counts):
        assert order[row, :count].tolist() == list(range(count))
        assert sizes[row].tolist() == [1] * count + [0] * (max(counts) - count)
        assert Tokens(group_size).num_units(count) == count


def test_whole_groups_leave_but_single_tokens_are_taken() -> None:
    tokens = Tokens(8)
    assert tokens.leaves_by == tokens.aligned_by == 8
    assert tokens.taken_by == 1


@pytest.mark.parametrize("window", [8, 9, 100])
def test_boundaries_cut_no_group(window: int) -> None:
    runs = Tokens(8).runs(window)
    assert runs.longest == 8
    assert runs.shortest > runs.longest


@pytest.mark.parametrize("wrong", [0, -1, 2.0, "16", None, True])
def test_a_group_has_at_least_one_token(wrong: object) -> None:
    with pytest.raises(SettingsError, match=f"group_size={wrong!r} .* whole number of at least 1"):
        Tokens(wrong)  # type: ignore[arg-type]
