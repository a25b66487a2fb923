"""What a step reads of an index, against loops over units and bundles."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv.units.entries import AllUnits, BestBundles
from louiskv.units.index import UnitIndex
from tests.units.test_bundles import BUNDLES, bundled_index
from tests.units.test_sketch import appended, ragged_rows

SIZE = BUNDLES.size


def some_index(rows: list[list[int]], seed: int) -> tuple[UnitIndex, Tensor]:
    """An index, and how many tokens of each unit are resident."""
    index = bundled_index(len(rows))
    keys, values, sizes = ragged_rows(rows, 0, seed)
    appended(index, index.num_tokens, keys, values, sizes)
    generator = torch.Generator().manual_seed(seed)
    resident: Tensor = (index.sizes * torch.rand(index.sizes.shape, generator=generator)).round().int()
    return index, resident


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    rows=st.lists(st.lists(st.integers(1, 5), max_size=30), min_size=1, max_size=3).filter(lambda rows: any(rows)),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_units_of_the_best_bundles_and_other_bundles_whole(rows: list[list[int]], share: float, seed: int) -> None:
    index, of_units = some_index(rows, seed)
    num_units = index.sizes.shape[1]
    num_bundles = num_units // SIZE
    num_chosen = max(1, round(share * num_bundles))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(num_bundles, generator=generator)[:num_chosen] for _ in rows])
    entries = BestBundles(index, chosen)
    assert entries.num_units == num_chosen * SIZE
    sizes, resident = entries.counted(index.sizes), entries.counted(of_units)
    assert sizes.shape == (len(rows), entries.num_units + num_bundles)
    entry_of, within = entries.table.find(index.offsets.where(index.sizes > 0, -1))
    for row in range(len(rows)):
        looked = [bundle * SIZE + each for bundle in chosen[row].tolist() for each in range(SIZE)]
        for entry, unit in enumerate(looked):
            assert entries.offsets[row, entry] == index.offsets[row, unit]
            assert sizes[row, entry] == index.sizes[row, unit]
            assert resident[row, entry] == of_units[row, unit]
            for part, held in zip(entries.summaries, index.summaries, strict=True):
                assert torch.equal(part[row, entry], held[row, unit])
        for unit in range(num_units):
            found = looked.index(unit) if unit in looked and index.sizes[row, unit] else -1
            assert entry_of[row, unit] == found and (found < 0 or within[row, unit] == 0)
        for bundle in range(num_bundles):
            entry, inside = entries.num_units + bundle, slice(bundle * SIZE, (bundle + 1) * SIZE)
            left = 0 if bundle in chosen[row].tolist() else 1
            assert sizes[row, entry] == left * index.sizes[row, inside].sum()
            assert resident[row, entry] == left * of_units[row, inside].sum()
            for part, held in zip(entries.summaries, index.bundled, strict=True):
                assert torch.equal(part[row, entry], held[row, bundle])
    assert torch.equal(sizes.sum(1), index.num_tokens), "every token counts once"
    assert torch.equal(resident.sum(1), of_units.sum(1))


def test_without_bundles_each_unit_is_an_entry() -> None:
    index, _ = some_index([[3, 1, 2], [4]], 0)
    entries, place = AllUnits(index), torch.tensor([[5, 2, 3], [3, -1, 0]])
    assert entries.num_units == index.sizes.shape[1]
    assert entries.offsets is index.offsets and entries.summaries is index.summaries
    assert entries.counted(index.sizes) is index.sizes
    entry, within = entries.table.find(place)
    assert entry.tolist() == [[2, 0, 1], [0, -1, 0]]
    assert within[0].tolist() == [1, 2, 0] and within[1, ::2].tolist() == [3, 0]
