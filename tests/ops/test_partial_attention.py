"""Attention of many queries over parts of the keys: parts that are merged, and twins against their specification."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv.errors import ImplementationError
from louiskv.ops import partial_attention as ops
from louiskv.ops.partial_attention import partial_attention
from tests.ops.implementations import each, here
from tests.ops.test_attention import written_out

TWINS = [impl for impl in here("partial_attention") if impl != "torch"]
# Tolerance by dtype against the specification in float32 on the same inputs, for entries of order 1.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SHAPES = [(1, 1, 64, 64), (2, 3, 80, 80), (3, 4, 10, 7), (1, 8, 33, 1), (2, 2, 5, 9)]
# Queries and keys: odd ones, and more than one block of the kernels.
LENGTHS = [(1, 1), (7, 63), (17, 15), (3, 700), (130, 1100)]
# What is interpreted takes long; it has tests of its own beside.
SOME_LENGTHS = [(7, 63), (19, 140)]
CASES = [(impl, lengths) for impl in TWINS for lengths in (LENGTHS if impl == "cpu" else SOME_LENGTHS)]


@each("partial_attention")
@settings(deadline=None, max_examples=20)
@given(
    split=st.integers(0, 17),
    num_queries=st.sampled_from([1, 3, 15]),
    softcap=st.sampled_from([None, 2.0]),
    seed=st.integers(0, 99),
)
def test_merging_two_parts_is_attending_to_both(
    impl: str, split: int, num_queries: int, softcap: float | None, seed: int
) -> None:
    assume(softcap is None or impl != "cpu")
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 3, num_queries, 8, generator=generator)
    keys, values = torch.randn(2, 17, 8, generator=generator), torch.randn(2, 17, 6, generator=generator)
    allowed = torch.rand(2, 1, num_queries, 17, generator=generator) < 0.6
    allowed[..., 0] = True
    parts = [
        partial_attention(
            query, keys[:, part], values[:, part], allowed[..., part], scaling=0.3, softcap=softcap, impl=impl
        )
        for part in (slice(0, split), slice(split, 17))
    ]
    merged, lse = ops.merge_attention(*parts[0], *parts[1])
    sinks = torch.randn(2, 3, generator=generator)
    dimmed = ops.dim_by_attention_sinks(merged, lse, sinks)
    for token in range(num_queries):
        arguments = (query[:, :, token], keys, values, allowed[:, 0, token], 0.3, softcap)
        torch.testing.assert_close(merged[:, :, token].double(), written_out(*arguments), atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(dimmed[:, :, token].double(), written_out(*arguments, sinks), atol=2e-5, rtol=2e-5)


@each("partial_attention")
def test_a_query_that_sees_nothing_gets_nothing(impl: str) -> None:
    nothing = torch.zeros(1, 1, 2, 5, dtype=torch.bool)
    out, lse = partial_attention(
        torch.randn(1, 2, 2, 4), torch.randn(1, 5, 4), torch.randn(1, 5, 4), nothing, scaling=1.0, impl=impl
    )
    assert out.eq(0).all() and lse.eq(-torch.inf).all()
    merged, total = ops.merge_attention(out, lse, out, lse)
    assert merged.eq(0).all() and total.eq(-torch.inf).all()


def test_queries_are_sliced_without_changing_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys, values = torch.randn(2, 3, 7, 8), torch.randn(2, 11, 8), torch.randn(2, 11, 8)
    mask = torch.ones(1, 1, 7, 11, dtype=torch.bool).tril(4)
    whole = partial_attention(query, keys, values, mask, scaling=0.3, impl="torch")
    monkeypatch.setattr(ops, "MAX_SCORES", 2 * 3 * 11 * 2)
    sliced = partial_attention(query, keys, values, mask, scaling=0.3, impl="torch")
    torch.testing.assert_close(sliced, whole)


@pytest.mark.parametrize("cut", [None, 5])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (1, 6), (7, 7), (40, 61), (9, 4)])
@each("partial_attention")
def test_causal_is_up_to_the_own_key(
    impl: str, num_queries: int, num_keys: int, cut: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cut is not None:
        monkeypatch.setattr(ops, "MAX_SCORES_CPU", 6 * num_keys * cut)
    query, keys, values = torch.randn(2, 3, num_queries, 8), torch.randn(2, num_keys, 8), torch.randn(2, num_keys, 8)
    mask = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    got = partial_attention(query, keys, values, None, scaling=0.3, causal=True, impl=impl)
    expected = partial_attention(query, keys, values, mask, scaling=0.3, impl="torch")
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


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
@pytest.mark.parametrize(("impl", "lengths"), CASES, ids=str)
def test_like_the_specification(
    impl: str, lengths: tuple[int, int], dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    torch.manual_seed(0)
    num_rows, group_size, key_dim, value_dim = shape
    num_queries, num_keys = lengths
    query = torch.randn(num_rows, 2 * group_size, num_queries, key_dim).to(dtype)[:, ::2]
    # As a pool gives them: a value behind its key, rows of a larger buffer.
    rows = torch.randn(num_rows, num_keys + 3, key_dim + value_dim).to(dtype)[:, 2:-1]
    keys, values = rows[..., :key_dim], rows[..., key_dim:]
    for mask in masks(num_rows, num_queries, num_keys):
        out, lse = attend(query, keys, values, mask, impl)
        expected = attend(query.float(), keys.float(), values.float(), mask, "torch")
        assert out.dtype == lse.dtype == torch.float32
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(out, expected[0], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(lse, expected[1], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("impl", TWINS)
def test_keys_that_nobody_sees_may_be_anything(impl: str) -> None:
    query, keys, values = torch.randn(2, 3, 5, 16), torch.randn(2, 600, 16), torch.randn(2, 600, 16)
    seen = torch.rand(2, 1, 1, 600) < 0.5
    expected = attend(query, keys, values, seen, impl)
    for anything in (torch.nan, torch.inf):
        got = attend(query, keys.masked_fill(~seen[:, 0, 0, :, None], anything), values, seen, impl)
        torch.testing.assert_close(got, expected, atol=0, rtol=0)


def test_a_cap_is_refused_by_name_and_computed_otherwise() -> None:
    query, keys, values = torch.randn(1, 2, 3, 8), torch.randn(1, 9, 8), torch.randn(1, 9, 8)
    with pytest.raises(ImplementationError, match="partial_attention cannot run as impl='cpu'.*It has: triton, torch"):
        partial_attention(query, keys, values, None, scaling=1.0, softcap=2.0, impl="cpu")
    capped = (
        partial_attention(query, keys, values, None, scaling=1.0, softcap=2.0, impl=each) for each in (None, "torch")
    )
    torch.testing.assert_close(*capped, atol=0, rtol=0)
