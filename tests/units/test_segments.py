"""Where the output is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.units.base import Units
from louiskv.units.clusters import Clusters
from louiskv.units.pages import Pages
from louiskv.units.segments import Cuts, Segments
from louiskv.units.tokens import Tokens


@settings(deadline=None, max_examples=60)
@given(
    boundaries=st.lists(st.booleans(), min_size=1, max_size=60),
    min_size=st.integers(1, 5),
    max_size=st.integers(5, 12),
    num_sinks=st.integers(0, 4),
)
def test_segments_end_at_boundaries_and_at_their_largest_size(
    boundaries: list[bool], min_size: int, max_size: int, num_sinks: int
) -> None:
    window = 64
    cuts = Cuts(Segments(min_size, max_size).runs(window), 1, num_sinks, window, torch.device("cpu"))
    expected: list[list[int]] = []
    for position, boundary in enumerate(boundaries):
        cuts.cut(torch.tensor([boundary]), torch.tensor([position + 1]))
        if position < num_sinks:
            continue
        if not expected or len(expected[-1]) == max_size:
            expected.append([])
        if boundary and len(expected[-1]) >= min_size:
            expected.append([])
        expected[-1].append(position)
    first, end, sizes = num_sinks, len(boundaries), []
    while first < end:
        sizes.append(int(cuts.oldest_size(torch.tensor([first]), torch.tensor([end]))))
        first += sizes[-1]
    assert sizes == [len(segment) for segment in expected]


def sizes_of(cuts: Cuts, first: int, end: int) -> list[int]:
    sizes = []
    while first < end:
        sizes.append(int(cuts.oldest_size(torch.tensor([first]), torch.tensor([end]))))
        first += sizes[-1]
    return sizes


def test_after_a_crop_old_boundaries_are_forgotten_and_the_next_token_begins_a_run() -> None:
    cuts = Cuts(Segments(2, 6).runs(16), 1, 1, 16, torch.device("cpu"))

    def take_in(positions: range, *boundaries: int) -> None:
        for position in positions:
            cuts.cut(torch.tensor([position in boundaries]), torch.tensor([position + 1]))

    take_in(range(13), 4, 9)
    assert sizes_of(cuts, 1, 13) == [3, 5, 4]
    cuts.crop(torch.tensor([11]))
    take_in(range(11, 17))
    assert sizes_of(cuts, 1, 17) == [3, 5, 6, 2], "the run that the end is in goes on"
    cuts.crop(torch.tensor([8]))
    take_in(range(8, 15))
    assert sizes_of(cuts, 1, 15) == [3, 4, 6, 1]
    cuts.crop(torch.tensor([3]))
    take_in(range(3, 12), 5)
    assert sizes_of(cuts, 1, 12) == [2, 2, 6, 1], "what began behind the end begins there"
    cuts.cut_tail(torch.tensor([4]), torch.tensor([13]), 4)
    assert sizes_of(cuts, 4, 13) == [4, 4, 1]
    take_in(range(13, 20))
    assert sizes_of(cuts, 4, 20) == [4, 4, 6, 2], "a rest takes of what comes behind it"


@pytest.mark.parametrize("most", [0, 3, 8])
def test_fixed_runs_follow_from_where_the_window_starts(most: int) -> None:
    cuts = Cuts(Pages(4).runs(8), 4, 2, 8, torch.device("cpu"))
    first, end = torch.tensor([2, 6, 10, 2]), torch.tensor([10, 9, 11, 2])
    cuts.cut_tail(first, end, 4)
    cuts.cut(torch.ones(4, dtype=torch.bool), end)
    cuts.crop(end)
    expected = [4 if most < 8 else 0, 3 if most < 3 else 0, 1 if most < 1 else 0, 0]
    assert cuts.oldest_size(first, end, most).tolist() == expected
    assert cuts.starts.numel() == 0


@pytest.mark.parametrize("units", [Pages(4), Segments(2, 6), Tokens(3)], ids=str)
def test_what_is_in_order_has_the_sizes_that_it_is_grouped_by(units: Units) -> None:
    for num_tokens in (0, 1, 3, 4, 6, 17):
        counts = torch.tensor([num_tokens, 0, num_tokens // 2])
        order, sizes = units.group(torch.zeros(3, num_tokens, 2), counts)
        known = units.sizes_in_order(counts, num_tokens)
        assert known is not None and torch.equal(known, sizes)
        assert order.tolist() == [[*range(num_tokens)]] * 3
    assert Clusters().sizes_in_order(torch.tensor([3]), 3) is None


def test_the_largest_segment_is_half_the_window() -> None:
    assert Segments(4, 64).runs(20).longest == 10
    assert Segments(4, 64).runs(1).longest == 1
