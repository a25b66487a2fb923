"""Cosines of queries, in every implementation."""

import pytest
import torch
from torch import Tensor

from louiskv.ops.turning import query_cosines, turned
from tests.ops.devices import on_each_device
from tests.ops.implementations import each, on, on_each_instruction_set


@each("query_cosines")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 15, 17, 63, 64, 80, 128])
def test_cosines(impl: str, dtype: torch.dtype, dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    query, other = torch.randn(2, 2, 5, dim, generator=generator).to(dtype)
    expected = torch.nn.functional.cosine_similarity(query.double(), other.double(), dim=-1)
    got = query_cosines(query, other, impl=impl)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-5)


@each("query_cosines")
def test_views_and_what_has_no_direction(impl: str) -> None:
    query = torch.randn(2, 3, 5, 20)[:, :, ::2, 3:13].flatten(0, 1)
    other = torch.randn(6, 3, 10)
    other[0, 0], other[1, 1] = 0, torch.nan
    got = query_cosines(query, other, impl=impl)
    expected = query_cosines(query.contiguous(), other, impl="torch")
    assert got[0, 0] == 0 and got[1, 1].isnan() and int(got.isnan().sum()) == 1
    torch.testing.assert_close(got, expected, equal_nan=True)
    # Norms whose product is too small for a float.
    tiny = torch.full((1, 1, 4), 1e-25)
    assert bool(query_cosines(tiny, tiny, impl=impl).isfinite().all())


@on_each_instruction_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_each_instruction_set(isa: str, dtype: torch.dtype) -> None:
    for dim in (1, 15, 17, 63, 64, 80, 96, 128, 256):
        query, other = torch.randn(2, 2, 5, dim).to(dtype)
        with on(isa):
            got = query_cosines(query, other, impl="cpu")
        torch.testing.assert_close(got, query_cosines(query, other, impl="torch"), atol=1e-6, rtol=1e-5)
        torch.library.opcheck(torch.ops.louiskv.query_cosines.default, (query, other))


def queries(num_rows: int, num_heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Queries of which some are near the ones before, in memory that is NaN behind them; one sequence has none."""
    generator = torch.Generator().manual_seed(num_rows + num_heads + dim)
    room = torch.full((num_rows, num_heads + 1, dim + 3), torch.nan, dtype=dtype)
    query = room[:, :num_heads, :dim]
    query.copy_(torch.randn(num_rows, num_heads, dim, generator=generator))
    spread = torch.rand(num_rows, num_heads, 1, generator=generator)
    previous = (query.float() + spread * torch.randn(num_rows, num_heads, dim, generator=generator)).to(dtype)
    previous[-1] = torch.nan
    return query, previous


def turned_by(
    impl: str, query: Tensor, previous: Tensor, groups: int, by_group: bool, tau: float | list[float]
) -> list[Tensor]:
    previous, similarity = previous.clone(), torch.empty(len(query), device=query.device)
    least = torch.empty(len(query), device=query.device).copy_(torch.tensor(tau))
    fired = turned(query, previous, similarity, tau=least, num_groups=groups, by_group=by_group, impl=impl)
    assert torch.equal(previous, query)
    return [similarity.cpu(), fired.cpu()]


@pytest.mark.usefixtures("poisoned_memory")
@each("turned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 15, 17, 63, 128])
@pytest.mark.parametrize(("groups", "size"), [(1, 1), (2, 3), (5, 4), (2, 8), (1, 17), (20, 7)])
def test_turns(impl: str, dtype: torch.dtype, dim: int, groups: int, size: int) -> None:
    query, previous = queries(3, groups * size, dim, dtype)
    cosine = query_cosines(query, previous, impl="torch").double()
    for by_group in (False, True):
        mean = cosine.unflatten(1, (groups, -1)).mean(2) if by_group else cosine.mean(1, keepdim=True).repeat(1, groups)
        # Halfway between two means, so that rounding decides nothing.
        known = mean[:-1].flatten().sort().values
        tau = float((known[0] + known[-1]) / 2 if len(known.unique()) > 1 else known[0] - 0.01)
        similarity, fired = turned_by(impl, query, previous, groups, by_group, tau)
        torch.testing.assert_close(similarity.double(), cosine.mean(1), atol=1e-5, rtol=1e-5, equal_nan=True)
        assert torch.equal(fired, ~(mean >= tau)) and bool(fired[-1].all())
        assert similarity.dtype == torch.float32 and fired.dtype == torch.bool and fired.is_contiguous()


@each("turned")
def test_the_same_queries_are_no_turn(impl: str) -> None:
    query = torch.randn(2, 6, 64)
    query[0, 0] = 0
    similarity, fired = turned_by(impl, query, query, 2, True, 0.6)
    torch.testing.assert_close(similarity, torch.tensor([5 / 6, 1.0]))
    assert not fired.any() and bool((similarity <= 1).all())
    assert turned_by(impl, query, query, 2, True, 0.7)[1].tolist() == [[True, False], [False, False]]


@each("turned")
@pytest.mark.parametrize("by_group", [False, True])
def test_each_sequence_has_a_tau_of_its_own(impl: str, by_group: bool) -> None:
    query, previous = queries(5, 6, 64, torch.float32)
    taus = [-1.0, 0.99, 0.7, 0.8, 0.0]
    similarity, fired = turned_by(impl, query, previous, 2, by_group, taus)
    for row, tau in enumerate(taus):
        alone = turned_by(impl, query[row : row + 1], previous[row : row + 1], 2, by_group, tau)
        assert torch.equal(fired[row : row + 1], alone[1])
        torch.testing.assert_close(similarity[row : row + 1], alone[0], equal_nan=True)
    assert not fired[0].any() and fired[1].all() and fired[4].all()


@on_each_device("turned", torch.float32, torch.bfloat16, torch.float16)
def test_turns_on_each_device(impl: str, device: str, dtype: torch.dtype) -> None:
    for num_heads, groups, dim in ((32, 8, 128), (9, 3, 64), (128, 8, 256)):
        query, previous = queries(2, num_heads, dim, dtype)
        expected = turned_by("torch", query, previous, groups, True, 0.8)
        got = turned_by(impl, query.to(device), previous.to(device), groups, True, 0.8)
        torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=1e-5, equal_nan=True)
        assert torch.equal(got[1], expected[1])


@on_each_instruction_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turns_on_each_instruction_set(isa: str, dtype: torch.dtype) -> None:
    query, previous = queries(2, 6, 80, dtype)
    with on(isa):
        got = turned_by("cpu", query, previous, 2, True, 0.8)
        given, tau = torch.randn(2, 2, 6, 80).to(dtype), torch.full((2,), 0.8)
        torch.library.opcheck(torch.ops.louiskv.turned.default, (*given, torch.zeros(2), tau, 2, True))
    expected = turned_by("torch", query, previous, 2, True, 0.8)
    torch.testing.assert_close(got[0], expected[0], atol=1e-6, rtol=1e-5, equal_nan=True)
    assert torch.equal(got[1], expected[1])
