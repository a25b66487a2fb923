"""Cosines of queries, in every implementation."""

import pytest
import torch

from louiskv.ops.turning import query_cosines
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
