"""The order in which neighbours are near: what it must be for any points, and what it is for blobs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv.ops.bisection import POWER_STEPS, along_widest, bisect
from tests.ops.devices import on_each_device
from tests.ops.implementations import each, here, on, on_each_instruction_set, on_the_best_instruction_set

each_impl = each("along_widest")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RUNS = [(impl, dtype) for dtype in DTYPES for impl in here("along_widest", dtype)]


def blobs(num_blobs: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points [1, blobs * size, D] in a random order, each within 1 of a centre 20 away from the others; and whose."""
    generator = torch.Generator().manual_seed(seed)
    centres = 20 * torch.nn.functional.one_hot(torch.arange(num_blobs), 8).float()
    # Apart by different widths, so that no direction is as good as another.
    centres = centres * torch.linspace(1, 3, num_blobs)[:, None]
    label = torch.arange(num_blobs).repeat_interleave(size)[torch.randperm(num_blobs * size, generator=generator)]
    return (centres[label] + 0.2 * torch.randn(len(label), 8, generator=generator).clamp(-2, 2))[None], label


def spread(points: Tensor, order: Tensor, leaf: int) -> float:
    """Mean squared distance of points [U, D] to the mean of their run."""
    return sum(float((run - run.mean(0)).square().sum()) for run in points[order].split(leaf)) / len(points)


def check_permutation(counts: list[int], left_over: int, leaf: int, dtype: torch.dtype, seed: int, impl: str) -> None:
    """Each row is one; what is no point is not looked at, and comes last in its order."""
    num_points = max(counts) + left_over
    points = torch.randn(len(counts), num_points, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    for row, count in enumerate(counts):
        points[row, count:] = torch.tensor([1e4, torch.nan])[seed % 2]
    order = bisect(points, torch.tensor(counts), leaf, impl)
    assert order.shape == (len(counts), num_points)
    for row, count in enumerate(counts):
        assert sorted(order[row, :count].tolist()) == list(range(count))
        assert order[row, count:].tolist() == list(range(count, num_points))


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 70), min_size=1, max_size=4),
    left_over=st.integers(0, 9),
    leaf=st.sampled_from([1, 2, 3, 16]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 99),
)
def test_each_row_is_a_permutation_with_absent_points_last(
    counts: list[int], left_over: int, leaf: int, dtype: torch.dtype, seed: int
) -> None:
    check_permutation(counts, left_over, leaf, dtype, seed, "torch")


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("impl", "dtype"), RUNS, ids=str)
@pytest.mark.parametrize(
    ("counts", "left_over", "leaf"), [([0], 0, 1), ([0, 3], 5, 1), ([17, 9, 33], 0, 3), ([70, 0, 41], 9, 16)], ids=str
)
def test_each_row_is_a_permutation_in_every_implementation(
    impl: str, dtype: torch.dtype, counts: list[int], left_over: int, leaf: int
) -> None:
    for seed in (0, 1):
        check_permutation(counts, left_over, leaf, dtype, seed, impl)


@each_impl
# What interprets kernels warns of them.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_what_is_no_number_leaves_a_permutation(impl: str, bad: float) -> None:
    points = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(0))
    points[:, 7, 2] = bad
    for row, count in zip(bisect(points, torch.tensor([20, 13]), 4, impl), (20, 13), strict=True):
        assert sorted(row[:count].tolist()) == list(range(count))
        assert row[count:].tolist() == list(range(count, 20))


@each_impl
@pytest.mark.parametrize("num_points", [0, 1, 15, 16, 17])
def test_points_that_are_equal_keep_their_order(impl: str, num_points: int) -> None:
    order = bisect(torch.full((2, num_points, 4), 3.0), torch.tensor([num_points, num_points // 2]), 4, impl)
    assert order.tolist() == [list(range(num_points))] * 2


@each_impl
@pytest.mark.parametrize("seed", range(4))
def test_blobs_stay_together(impl: str, seed: int) -> None:
    points, label = blobs(8, 4, seed)
    order = bisect(points, torch.tensor([32]), 4, impl)[0]
    for run in label[order].split(4):
        assert len(set(run.tolist())) == 1


@each_impl
@pytest.mark.parametrize(("num_points", "leaf"), [(200, 16), (37, 4), (64, 8), (1000, 16)])
def test_runs_are_nearer_than_those_of_any_order(impl: str, num_points: int, leaf: int) -> None:
    points = torch.randn(1, num_points, 6, generator=torch.Generator().manual_seed(0))
    order = bisect(points, torch.tensor([num_points]), leaf, impl)[0]
    assert spread(points[0], order, leaf) < 0.8 * spread(points[0], torch.arange(num_points), leaf)


@each_impl
def test_a_line_is_followed(impl: str) -> None:
    """In one dimension runs are runs of what is sorted."""
    line = torch.randperm(48, generator=torch.Generator().manual_seed(1)).float()[None, :, None]
    order = bisect(line, torch.tensor([48]), 4, impl)[0]
    runs = [sorted(run.tolist()) for run in line[0, order, 0].split(4)]
    assert sorted(runs) == torch.arange(48.0).view(12, 4).tolist()


@each_impl
@pytest.mark.parametrize("left_over", [0, 1, 100])
def test_rows_do_not_depend_on_each_other(impl: str, left_over: int) -> None:
    """Each run has the same points, whatever longer rows are beside."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 50 + left_over, 6, generator=generator)
    together = bisect(points, torch.tensor([50 + left_over, 50]), 4, impl)[1, :50]
    alone = bisect(points[1:, :50], torch.tensor([50]), 4, impl)[0]
    assert [set(run.tolist()) for run in together.split(4)] == [set(run.tolist()) for run in alone.split(4)]


# Points of each row, numbers of each, groups, and points of a group.
SHAPES = [
    ([90, 41, 0], 8, 4, 32),
    ([300, 200], 80, 1, 320),
    ([70, 33], 128, 3, 25),
    ([1, 9], 5, 2, 5),
    ([5], 256, 1, 200),
]


def some_points(counts: list[int], dim: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Points, NaN where there are none; an order [N, width] with indices of some of them; and counts."""
    generator = torch.Generator().manual_seed(dim)
    points = (3 + torch.randn(len(counts), max(counts) + 2, dim, generator=generator)).to(dtype)
    for row, count in enumerate(counts):
        points[row, count:] = torch.nan
    order = torch.stack([torch.randperm(max(width, max(counts)), generator=generator)[:width] for _ in counts])
    return points, order, torch.tensor(counts)


def check_alike(got: Tensor, expected: Tensor) -> None:
    """Alike but for the order of sums; of two points each is as far as the other, so that either may be the start."""
    assert got.shape == expected.shape and got.dtype == torch.float32
    assert torch.equal(got.isinf(), expected.isinf())
    two = (expected.isfinite().sum(-1, keepdim=True) == 2).expand_as(got)
    got, expected = (each.masked_fill(each.isinf(), 0) for each in (got, expected))
    got, expected = torch.where(two, got.abs(), got), torch.where(two, expected.abs(), expected)
    most = expected.abs().amax(-1, keepdim=True).clamp(min=1e-3)
    torch.testing.assert_close(got / most, expected / most, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("impl", "dtype"), RUNS, ids=str)
@pytest.mark.parametrize(("counts", "dim", "num_groups", "size"), SHAPES, ids=str)
def test_points_lie_where_the_reference_has_them(
    impl: str, dtype: torch.dtype, counts: list[int], dim: int, num_groups: int, size: int
) -> None:
    points, order, told = some_points(counts, dim, num_groups * size, dtype)
    expected = along_widest(points, order, told, num_groups, impl="torch")
    check_alike(along_widest(points, order, told, num_groups, impl=impl), expected)
    # Of a wider tensor, and with one order for all rows.
    apart = torch.nn.functional.pad(points, (0, 3))[..., :dim]
    check_alike(along_widest(apart, order, told, num_groups, impl=impl), expected)
    alike = order[:1].expand_as(order)
    check_alike(
        along_widest(points, alike, told, num_groups, impl=impl),
        along_widest(points, alike.contiguous(), told, num_groups, impl="torch"),
    )


@each_impl
def test_points_of_a_line_lie_as_far_as_by_hand(impl: str) -> None:
    """In groups of four, one, and none: from the mean, over the longest, times what each step multiplies by."""
    points = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [15.0, 20.0], [7.0, 7.0]]])
    order = torch.tensor([[3, 1, 0, 2, 4, 5, 6, 7, 8, 9, 10, 11]])
    got = along_widest(points, order, torch.tensor([5]), 3, impl=impl)
    off = torch.tensor([15.0, -5.0, -10.0, 0.0]) / 15
    step = float(off.square().sum())
    torch.testing.assert_close(got[0, 0], off * step**4)
    assert got[0, 1].tolist() == [0.0, *3 * [torch.inf]] and got[0, 2].tolist() == 4 * [torch.inf]


@each_impl
def test_equal_points_lie_at_the_centre(impl: str) -> None:
    points, order = torch.full((2, 40, 80), 3.0), torch.arange(48).expand(2, -1)
    got = along_widest(points, order, torch.tensor([40, 5]), 4, impl=impl)
    assert got.flatten(1).tolist() == [[0.0] * count + [torch.inf] * (48 - count) for count in (40, 5)]


@on_each_device("along_widest", *DTYPES)
def test_points_lie_there_on_each_device(impl: str, device: str, dtype: torch.dtype) -> None:
    for counts, dim, num_groups, size in (*SHAPES, ([8000, 2100], 128, 1, 8192), ([8000, 2100], 64, 256, 32)):
        points, order, told = some_points(counts, dim, num_groups * size, dtype)
        got = along_widest(points.to(device), order.to(device), told.to(device), num_groups, impl=impl)
        check_alike(got.cpu(), along_widest(points, order, told, num_groups, impl="torch"))


@on_each_device("along_widest")
def test_runs_are_near_on_each_device(impl: str, device: str) -> None:
    points = torch.randn(1, 1000, 6, generator=torch.Generator().manual_seed(0))
    order = bisect(points.to(device), torch.tensor([1000], device=device), 16, impl)[0].cpu()
    assert sorted(order.tolist()) == list(range(1000))
    assert spread(points[0], order, 16) < 0.8 * spread(points[0], torch.arange(1000), 16)


@on_each_instruction_set
def test_points_lie_there_on_each_instruction_set(isa: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for counts, dim, num_groups, size in (*SHAPES, ([900, 210], 100, 4, 256)):
            points, order, told = some_points(counts, dim, num_groups * size, dtype)
            with on(isa):
                got = along_widest(points, order, told, num_groups, impl="cpu")
                # Numbers of a point that are not dense.
                turned = points.mT.contiguous().mT
                assert torch.equal(along_widest(turned, order, told, num_groups, impl="cpu"), got)
            check_alike(got, along_widest(points, order, told, num_groups, impl="torch"))
    known = (points, order, told, 4, POWER_STEPS)
    torch.library.opcheck(torch.ops.louiskv.along_widest.default, known)


@on_the_best_instruction_set
def test_what_does_not_fit_is_refused_on_the_cpu(isa: str) -> None:
    points, order, told = some_points([7, 9], 8, 12, torch.float32)
    with on(isa):
        for wrong, reason in (
            ((points, order[:1], told, 3), "do not fit"),
            ((points, order, told[:1], 3), "do not fit"),
            ((points, order.float(), told, 3), "order must be int32 or int64"),
            ((points, order, told, 5), "an order of 12 is not of 5 groups"),
        ):
            with pytest.raises(RuntimeError, match=reason):
                along_widest(*wrong, impl="cpu")
