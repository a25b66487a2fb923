"""The budgeted choice: exactly the reference's, in the kernel's logic on the host and wherever it can run."""

import math

import pytest
import torch
from torch import Tensor

from louiskv.ops import selection_cuda  # noqa: F401
from louiskv.ops.selection import select_units
from tests.ops import cuda_on_host
from tests.ops.devices import on_each_device, repeated, wait

# Rows of each kind of scores, of few units and of many.
PER_KIND, OF_MANY = 24, 4
SPECIAL = [-math.inf, math.inf, math.nan, -math.nan, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0]
LEVELS = (1, 2, 7)
# The specification does not speak of NaN, which no score is.
HAVE_AN_ORDER_FOR_NAN = ("cuda", "torch")


def cases(units: int, dtype: torch.dtype, seed: int, room: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [N, units], sizes and budgets [N] of all kinds; with room, views of wider tensors."""
    generator = torch.Generator().manual_seed(seed)
    shape = (PER_KIND if units < 5000 else OF_MANY, units + room)
    normal = torch.randn(shape, generator=generator)
    kinds = [normal, normal * 1e-3 - 20, -torch.rand(shape, generator=generator).log().square()]
    kinds += [torch.randint(0, levels, shape, generator=generator) - 1.0 for levels in LEVELS]
    kinds.append(normal.masked_fill(torch.rand(shape, generator=generator) < 0.5, -math.inf))
    kinds.append(torch.tensor(SPECIAL)[torch.randint(0, len(SPECIAL), shape, generator=generator)])
    scores = torch.cat(kinds)
    # Tokens alone, units of a few, few of many, and as great ones as places of 32 bits allow.
    highest = torch.tensor([1, 9, 40, 2**30 // units])[torch.arange(len(scores)) % 4, None]
    sizes = (torch.rand(scores.shape, generator=generator) * (highest + 1)).long()
    sizes[torch.rand(scores.shape, generator=generator) < 0.2] = 0
    scores, sizes = scores[:, :units], sizes.to(dtype)[:, :units]
    total = sizes.sum(1)
    share = (total * torch.rand(len(total), generator=generator)).long()
    budgets = torch.stack(
        [share, share // 16, total, total - 1, total + 5, total * 0, total * 0 - 3, total * 0 + 2**40]
    )
    pick = torch.randint(0, 12, (len(total),), generator=generator).remainder(9).clamp(max=7)
    return scores, sizes, budgets.gather(0, pick[None])[0]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("units", "room"), [(1, 0), (3, 2), (16, 0), (63, 0), (64, 4), (257, 1), (1000, 0), (4099, 5)])
def test_one_thread_of_the_host_takes_what_the_reference_takes(units: int, room: int, dtype: torch.dtype) -> None:
    for seed in range(2):
        scores, sizes, budgets = cases(units, dtype, seed, room)
        got = cuda_on_host.select_units(scores, sizes, budgets, threads=1)
        assert torch.equal(got, select_units(scores, sizes, budgets, impl="torch"))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("units", "threads"), [(5, 4), (40, 2), (40, 4), (301, 8)])
def test_threads_share_a_row(units: int, threads: int, dtype: torch.dtype) -> None:
    scores, sizes, budgets = cases(units, dtype, seed=units)
    got = cuda_on_host.select_units(scores, sizes, budgets, threads=threads)
    assert torch.equal(got, select_units(scores, sizes, budgets, impl="torch"))


def test_tokens_of_a_row_beyond_32_bits() -> None:
    sizes = torch.tensor([[2**40, 3, 2**33, 2**62, 5]])
    scores = torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0]])
    for budget in (2**33, 2**33 + 2, 2**40, 2**41, 2**61, 2**62 + 2**41):
        budgets = torch.tensor([budget])
        got = cuda_on_host.select_units(scores, sizes, budgets, threads=1)
        assert torch.equal(got, select_units(scores, sizes, budgets, impl="torch"))


def test_keys_are_in_the_order_of_the_scores() -> None:
    bits = torch.randint(-(2**31), 2**31, (100_000,), dtype=torch.int64, generator=torch.Generator().manual_seed(0))
    scores = torch.cat([bits.to(torch.int32).view(torch.float32), torch.tensor(SPECIAL)])
    keys = cuda_on_host.keys_of(scores)
    assert int(keys.min()) > 0
    ordered, order = scores.sort(stable=True)
    steps = keys[order].diff()
    assert bool((steps >= 0).all())
    ties = (ordered[1:] == ordered[:-1]) | (ordered[1:].isnan() & ordered[:-1].isnan())
    assert torch.equal(steps == 0, ties)


@on_each_device("select_units")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("units", "room"), [(1, 0), (63, 0), (64, 4), (1000, 0), (4099, 5), (9001, 3), (32768, 0)])
def test_takes_what_the_reference_takes(impl: str, device: str, units: int, room: int, dtype: torch.dtype) -> None:
    scores, sizes, budgets = cases(units, dtype, seed=units, room=room)
    if impl not in HAVE_AN_ORDER_FOR_NAN:
        scores = scores.masked_fill(scores.isnan(), -1.0)
    expected = select_units(scores, sizes, budgets, impl="torch")
    at = (scores.to(device), sizes.to(device))
    got = select_units(*at, budgets.to(device), impl=impl)
    assert got.dtype == dtype and torch.equal(got.cpu(), expected)
    budget = int(budgets.max())
    got = select_units(*at, budget // 3, impl=impl)
    assert torch.equal(got.cpu(), select_units(scores, sizes, budget // 3, impl="torch"))
    where = torch.arange(len(scores)) % 3 == 1
    got = select_units(*at, budgets.to(device), where=where.to(device), impl=impl)
    assert torch.equal(got.cpu()[where], expected[where])


@on_each_device("select_units")
def test_no_rows_no_units_and_scores_of_16_bits(impl: str, device: str) -> None:
    for shape in ((0, 5), (3, 0)):
        got = select_units(torch.zeros(shape, device=device), torch.zeros(shape, device=device).int(), 4, impl=impl)
        assert got.shape == shape and got.dtype == torch.int32
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    sizes = torch.arange(200).view(4, 50) % 7
    if impl in ("cuda", "torch"):
        got = select_units(scores.to(device), sizes.to(device), 60, impl=impl)
        assert torch.equal(got.cpu(), select_units(scores, sizes, 60, impl="torch"))


@on_each_device("select_units")
def test_repeats_with_other_scores_in_place(impl: str, device: str) -> None:
    scores, sizes, budgets = (each.to(device) for each in cases(300, torch.int32, seed=0))
    taken = torch.empty_like(sizes)
    again = repeated(lambda: taken.copy_(select_units(scores, sizes, budgets, impl=impl)), impl, device)
    for seed in (1, 2):
        other = cases(300, torch.int32, seed)
        other[0].masked_fill_(other[0].isnan(), -1.0)
        for mine, new in zip((scores, sizes, budgets), other, strict=True):
            mine.copy_(new)
        again()
        wait(device)
        assert torch.equal(taken.cpu(), select_units(*other, impl="torch"))


@on_each_device("select_units")
def test_compiled_it_is_one_graph(impl: str, device: str) -> None:
    scores, sizes, budgets = (each.to(device) for each in cases(64, torch.int32, seed=0))

    def chosen(scores: Tensor) -> Tensor:
        return select_units(scores + 0, sizes, budgets, impl=impl) + select_units(scores, sizes, 50, impl=impl)

    got = torch.compile(chosen, backend="aot_eager", fullgraph=True)(scores)
    assert torch.equal(got, chosen(scores))


def test_traced_the_kernel_gives_a_tensor_like_the_sizes() -> None:
    scores, sizes = torch.empty(3, 5, device="meta"), torch.empty(3, 9, device="meta", dtype=torch.int32)[:, :5]
    take = torch.ops.louiskv_cuda.select_units(scores, sizes, None, 4, None)
    assert take.shape == (3, 5) and take.dtype == torch.int32 and take.is_meta and take.is_contiguous()
