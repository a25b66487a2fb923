"""The index over units against plain lists."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.units.index import GROWTH, TABLE_BYTES, UnitIndex

CPU = torch.device("cpu")
Unit = tuple[int, int, float]


def append(index: UnitIndex, units: list[list[Unit]], strides: tuple[int, ...]) -> list[int]:
    """Append ragged rows of (offset, size, what its summary holds); what lies behind a row's units is NaN."""
    longest = max(len(row) for row in units)
    begin = torch.tensor([row[0][0] if row else -7 for row in units])
    sizes = torch.zeros(len(units), longest, dtype=torch.int64)
    summaries = tuple(torch.full((len(units), -(-longest // stride), 2), torch.nan) for stride in strides)
    for row, held in enumerate(units):
        for place, (offset, size, content) in enumerate(held):
            assert offset == begin[row] + sizes[row].sum(), "they lie side by side"
            sizes[row, place] = size
            for part, stride in zip(summaries, strides, strict=True):
                part[row, place // stride] = content // stride
    return index.append(begin, sizes, summaries).tolist()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    turns=st.lists(st.lists(st.integers(0, 90), min_size=3, max_size=3).filter(any), min_size=1, max_size=6),
    picked=st.lists(st.integers(0, 2), min_size=3, max_size=3),
    stride=st.sampled_from([1, 4]),
)
def test_units_come_behind_those_of_their_row(turns: list[list[int]], picked: list[int], stride: int) -> None:
    strides = (1,) if stride == 1 else (1, stride)
    index = UnitIndex(3, strides, CPU)
    expected: list[list[Unit]] = [[], [], []]
    number = 0
    for turn, counts in enumerate(turns):
        new: list[list[Unit]] = []
        for count in counts:
            # Units that share a summary come together.
            whole = count // stride * stride
            sizes = [1 + each % 5 for each in range(whole)]
            new.append([(number + sum(sizes[:each]), sizes[each], float(number + each)) for each in range(whole)])
            number += -(-whole // stride) * stride
        if not any(new):
            continue
        before = [len(row) for row in expected]
        assert append(index, new, strides) == before
        expected = [row + added for row, added in zip(expected, new, strict=True)]
        if turn == 1:
            index.select_rows(torch.tensor(picked))
            expected = [list(expected[row]) for row in picked]
        check(index, expected, strides)


def check(index: UnitIndex, expected: list[list[Unit]], strides: tuple[int, ...]) -> None:
    assert index.counts.tolist() == [len(row) for row in expected]
    assert index.num_tokens.tolist() == [sum(size for _, size, _ in row) for row in expected]
    capacity = index.sizes.shape[1]
    assert index.offsets.shape == index.sizes.shape == (3, capacity)
    for row, units in enumerate(expected):
        assert index.offsets[row, : len(units)].tolist() == [offset for offset, _, _ in units]
        assert index.sizes[row].tolist() == [size for _, size, _ in units] + [0] * (capacity - len(units))
        for part, stride in zip(index.summaries, strides, strict=True):
            assert part.shape[1] == capacity / stride
            contents = [content // stride for _, _, content in units[::stride]]
            assert part[row, : len(contents), 0].tolist() == contents
            assert part[row].isfinite().all(), "room that is not in use is written too"


def test_nothing_is_summarised_before_the_first_unit() -> None:
    index = UnitIndex(2, (1,), CPU)
    assert index.summaries == ()
    assert index.summary_bytes == 0
    assert index.num_bytes == index.counts.nbytes + index.num_tokens.nbytes
    assert append(index, [[(0, 3, 1.0)], []], (1,)) == [0, 0]
    assert index.counts.tolist() == [1, 0]


def test_only_what_comes_after_a_prompt_leaves_room() -> None:
    index = UnitIndex(1, (1,), CPU)
    units: list[Unit] = [(place, 1, 0.0) for place in range(100)]
    append(index, [units], (1,))
    assert index.sizes.shape == (1, 100)
    for count in range(1, GROWTH + 2):
        append(index, [[(100, 1, 0.0)]], (1,))
        assert index.sizes.shape == (1, 100 + GROWTH + 1), f"{count} more"
    append(index, [[(100, 1, 0.0)]], (1,))
    assert index.sizes.shape == (1, 100 + 2 * (GROWTH + 1))


def test_rows_can_be_copied() -> None:
    index = UnitIndex(2, (1,), CPU)
    append(index, [[(0, 3, 1.0)], [(0, 2, 2.0)]], (1,))
    append(index, [[(3, 3, 3.0)], [(2, 2, 4.0)]], (1,))
    index.select_rows(torch.tensor([1, 0, 1]))
    assert index.sizes[:, 0].tolist() == [2, 3, 2]
    assert index.counts.tolist() == [2, 2, 2]


def test_the_table_has_its_bytes_for_each_unit() -> None:
    index = UnitIndex(2, (1,), CPU)
    append(index, [[(place, 1, 0.0) for place in range(50)]] * 2, (1,))
    assert index.summary_bytes == 2 * 50 * 2 * 4
    assert index.num_bytes - index.summary_bytes == 2 * 50 * TABLE_BYTES + 2 * 2 * 8
