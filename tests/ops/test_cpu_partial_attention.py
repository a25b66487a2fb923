"""Attention of many tokens by torch's kernel for the CPU, against its specification."""

import pytest
import torch
from torch import Tensor

from louiskv.errors import ImplementationError
from louiskv.ops.attention import partial_attention
from tests.ops.implementations import here

pytestmark = pytest.mark.skipif("cpu" not in here("partial_attention"), reason="kernels in C++ cannot be built here")

# Tolerance by dtype against the specification in float32 on the same inputs, for entries of order 1.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SHAPES = [(1, 1, 64, 64), (2, 3, 80, 80), (3, 4, 10, 7), (1, 8, 33, 1), (2, 2, 5, 9)]
# Queries and keys: odd ones, and more than one block of the kernel.
LENGTHS = [(1, 1), (7, 63), (17, 15), (3, 700), (130, 1100)]


def masks(num_rows: int, num_queries: int, num_keys: int) -> list[Tensor | None]:
    late = torch.arange(num_keys)[None, None, None] >= num_keys // 2
    some = torch.rand(num_rows, 1, num_queries, num_keys) < 0.4
    some[0, 0, 0] = False
    bias = torch.randn(1, 1, num_queries, num_keys).masked_fill_(~some[:1], -torch.inf)
    causal = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool).tril()
    return [None, causal, late, torch.rand(num_rows, 1, 1, num_keys) < 0.5, some, bias, bias[:, :, :1].clamp(min=-3)]


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, impl: str) -> tuple[Tensor, Tensor]:
    return partial_attention(query, keys, values, mask, scaling=0.3, impl=impl)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("num_queries", "num_keys"), LENGTHS)
def test_like_the_specification(
    dtype: torch.dtype, shape: tuple[int, int, int, int], num_queries: int, num_keys: int
) -> None:
    torch.manual_seed(0)
    num_rows, group_size, key_dim, value_dim = shape
    query = torch.randn(num_rows, 2 * group_size, num_queries, key_dim).to(dtype)[:, ::2]
    # As a pool gives them: a value behind its key, rows of a larger buffer.
    rows = torch.randn(num_rows, num_keys + 3, key_dim + value_dim).to(dtype)[:, 2:-1]
    keys, values = rows[..., :key_dim], rows[..., key_dim:]
    for mask in masks(num_rows, num_queries, num_keys):
        out, lse = attend(query, keys, values, mask, "cpu")
        expected = attend(query.float(), keys.float(), values.float(), mask, "torch")
        assert out.dtype == lse.dtype == torch.float32
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(out, expected[0], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(lse, expected[1], atol=tolerance, rtol=tolerance)


def test_keys_that_nobody_sees_may_be_anything() -> None:
    query, keys, values = torch.randn(2, 3, 5, 16), torch.randn(2, 600, 16), torch.randn(2, 600, 16)
    seen = torch.rand(2, 1, 1, 600) < 0.5
    expected = attend(query, keys, values, seen, "cpu")
    for anything in (torch.nan, torch.inf):
        got = attend(query, keys.masked_fill(~seen[:, 0, 0, :, None], anything), values, seen, "cpu")
        torch.testing.assert_close(got, expected, atol=0, rtol=0)


def test_a_cap_is_refused_by_name_and_computed_otherwise() -> None:
    query, keys, values = torch.randn(1, 2, 3, 8), torch.randn(1, 9, 8), torch.randn(1, 9, 8)
    with pytest.raises(ImplementationError, match="partial_attention cannot run as impl='cpu'.*It has: torch"):
        partial_attention(query, keys, values, None, scaling=1.0, softcap=2.0, impl="cpu")
    capped = (
        partial_attention(query, keys, values, None, scaling=1.0, softcap=2.0, impl=each) for each in (None, "torch")
    )
    torch.testing.assert_close(*capped, atol=0, rtol=0)
