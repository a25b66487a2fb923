"""Where the output is cut."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.units.segments import Cuts, Segments


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
        cuts.append(torch.tensor([position]))
        cuts.cut(torch.tensor([boundary]), torch.tensor([position]))
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


def test_the_largest_segment_is_half_the_window() -> None:
    assert Segments(4, 64).runs(20).longest == 10
    assert Segments(4, 64).runs(1).longest == 1
