"""What slots hold from one selection to the next: exactly the reference's, on the host and wherever it can run."""

from typing import Any

import pytest
import torch
from torch import Tensor

from louiskv.ops.selection import assign_slots
from tests.ops import cuda_on_host
from tests.ops.devices import on_each_device, repeated, wait
from tests.ops.implementations import here

NUM_ROWS = 16
# Slots, places wanted, places that there are.
SHAPES = [(1, 1, 1), (7, 4, 20), (33, 33, 40), (64, 100, 300), (257, 250, 251), (1100, 1200, 5000)]


def cases(shape: tuple[int, int, int], seed: int, *, in_order: bool) -> tuple[Tensor, Tensor]:
    """Slots [N, S] that hold some places, some of them wanted, and wanted places [N, W] with holes."""
    num_slots, num_wanted, num_places = shape
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(NUM_ROWS, num_places, generator=generator).argsort(1)
    held = torch.full((NUM_ROWS, max(num_slots, num_places)), -1)
    held[:, :num_places] = torch.rand(NUM_ROWS, num_places, generator=generator).argsort(1)
    held = held[:, :num_slots]
    held = held.masked_fill(torch.rand(held.shape, generator=generator) < torch.rand(NUM_ROWS, 1), -1)
    # Rows want from nothing to all that fits.
    count = (torch.linspace(0, 1, NUM_ROWS) * min(num_slots, num_wanted, num_places)).long()
    wanted = torch.full((NUM_ROWS, num_wanted), -1)
    for row, number in enumerate(count.tolist()):
        some = order[row, :number]
        if in_order:
            wanted[row, :number] = some.sort().values
        else:
            wanted[row, torch.randperm(num_wanted, generator=generator)[:number]] = some
    return held.int(), wanted.int()


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_host_changes_what_the_reference_changes(shape: tuple[int, int, int], in_order: bool) -> None:
    # A map that reaches all places, one that does not, and none.
    for seed, threads, map_words in ((0, 1, 1024), (1, 1, 64), (2, 1, 0), (3, 4, 1024), (4, 4, 160), (5, 4, 1100)):
        before = cases(shape, seed, in_order=in_order)
        place, missing = cuda_on_host.assign_slots(*before, threads=threads, map_words=map_words)
        expected = assign_slots(*before, impl="torch")
        assert torch.equal(place, expected[0]) and torch.equal(missing, expected[1])


@pytest.mark.parametrize("num_places", [32_000, 40_000, 79_999, 80_001])
def test_the_host_uses_as_much_of_a_large_map_as_it_needs(num_places: int) -> None:
    before = cases((90, 80, num_places), 0, in_order=False)
    place, missing = cuda_on_host.assign_slots(*before, threads=4, map_words=2500)
    expected = assign_slots(*before, impl="torch")
    assert torch.equal(place, expected[0]) and torch.equal(missing, expected[1])


@on_each_device("assign_slots")
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, (300, 290, 70000), (9000, 9500, 30000)])
def test_changes_what_the_reference_changes(
    impl: str, device: str, shape: tuple[int, int, int], in_order: bool
) -> None:
    held, wanted = cases(shape, 5, in_order=in_order)
    expected = assign_slots(held, wanted, impl="torch")
    for dtype in (torch.int32, torch.int64):
        place, missing = assign_slots(held.to(device), wanted.to(device, dtype), impl=impl)
        assert place.dtype == held.dtype and torch.equal(place.cpu(), expected[0])
        assert missing.dtype == torch.bool and torch.equal(missing.cpu(), expected[1])


def in_place(impl: str, held: Tensor, wanted: Tensor, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """What there is after half of the rows changed where they are: places, missing, counts and bias."""
    where = torch.arange(NUM_ROWS) % 3 != 1
    slots = held.to(device, copy=True)
    counts = torch.tensor([100, 10], device=device)
    bias = torch.full((NUM_ROWS, 1, held.shape[1] + 5), 7.0, dtype=dtype, device=device)
    wanted = wanted.masked_fill(~where[:, None], 10**6).to(device)
    given: dict[str, Any] = {"where": where.to(device), "counts": counts, "bias": bias[:, 0, 5:], "out": slots}
    if impl == "host":
        place, missing = cuda_on_host.assign_slots(slots, wanted, threads=2, **given)
    else:
        place, missing = assign_slots(slots, wanted, **given, impl=impl)
    assert place is slots
    return [each.cpu() for each in (place, missing, counts, bias)]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", [*here("assign_slots"), "host"])
def test_some_rows_change_where_they_are(impl: str, dtype: torch.dtype, wide: bool) -> None:
    for shape in SHAPES[:5]:
        held, wanted = cases(shape, 3, in_order=False)
        got = in_place(impl, held, wanted.long() if wide else wanted, dtype)
        expected, lacks = assign_slots(held, wanted, impl="torch")
        asked = (torch.arange(NUM_ROWS) % 3 != 1)[:, None]
        expected, lacks = torch.where(asked, expected, held), lacks & asked
        assert torch.equal(got[0], expected) and torch.equal(got[1], lacks)
        assert got[2].tolist() == [100 + int(((expected >= 0) & asked).sum()), 10 + int(lacks.sum())]
        zone = torch.zeros(held.shape, dtype=dtype).masked_fill(expected < 0, -torch.inf).where(asked, 7.0)
        assert torch.equal(got[3][:, 0, 5:], zone) and bool(got[3][..., :5].eq(7).all())


@on_each_device("assign_slots")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_some_rows_change_on_each_device(impl: str, device: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        held, wanted = cases(shape, 4, in_order=True)
        for got, expected in zip(
            in_place(impl, held, wanted, dtype, device), in_place("torch", held, wanted, dtype), strict=True
        ):
            assert torch.equal(got, expected)


@on_each_device("assign_slots")
def test_repeats_with_other_places(impl: str, device: str) -> None:
    held, wanted = (each.to(device) for each in cases(SHAPES[3], 0, in_order=True))
    missing = torch.empty(held.shape, dtype=torch.bool, device=device)

    def step() -> None:
        place, lacks = assign_slots(held, wanted, impl=impl)
        held.copy_(place)
        missing.copy_(lacks)

    again, now = repeated(step, impl, device), held.cpu().clone()
    for seed in (1, 2, 3):
        other = cases(SHAPES[3], seed, in_order=seed == 2)[1]
        wanted.copy_(other)
        again()
        wait(device)
        now, lacks = assign_slots(now, other, impl="torch")
        assert torch.equal(held.cpu(), now) and torch.equal(missing.cpu(), lacks)
