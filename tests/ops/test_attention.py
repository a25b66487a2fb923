"""Decode, partial and merged attention against a softmax written out."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from louiskv.ops import attention as ops
from tests.ops.implementations import each, here

# Tolerance by dtype against float64 arithmetic on the same inputs, for entries of order 1.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def written_out(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    allowed: torch.Tensor,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of [N, G, D] over [N, L, D], one head at a time; `allowed` [N, L]."""
    out = torch.zeros(*query.shape[:2], values.shape[-1], dtype=torch.float64)
    for row in range(query.shape[0]):
        places = allowed[row].nonzero().flatten().tolist()
        for head in range(query.shape[1]):
            logits = [scaling * float(query[row, head].double() @ keys[row, place].double()) for place in places]
            if softcap is not None:
                logits = [softcap * float(torch.tanh(torch.tensor(logit / softcap))) for logit in logits]
            mass = [torch.tensor(logit).double().exp() for logit in logits]
            total = sum(mass) + (0 if sinks is None else sinks[row, head].double().exp())
            for place, weight in zip(places, mass, strict=True):
                out[row, head] += weight / total * values[row, place].double()
    return out


@each("decode_attention")
@settings(deadline=None, max_examples=20)
@given(
    num_slots=st.sampled_from([1, 15, 17, 63]),
    group_size=st.sampled_from([1, 3, 4, 8]),
    dtype=st.sampled_from(list(TOLERANCE)),
    softcap=st.sampled_from([None, 2.0]),
    with_sinks=st.booleans(),
    seed=st.integers(0, 99),
)
def test_decode_attention(
    impl: str, num_slots: int, group_size: int, dtype: torch.dtype, softcap: float | None, with_sinks: bool, seed: int
) -> None:
    assume(impl in here("decode_attention", dtype))
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, group_size, 8, generator=generator).to(dtype)
    rows = torch.randn(2, num_slots, 14, generator=generator).to(dtype)
    keys, values = rows[..., :8], rows[..., 8:]
    allowed = torch.rand(2, num_slots, generator=generator) < 0.7
    allowed[:, 0] = True
    sinks = torch.randn(2, group_size, generator=generator) if with_sinks else None
    bias = torch.zeros(2, 1, num_slots, dtype=dtype).masked_fill(~allowed[:, None], -torch.inf)
    got = ops.decode_attention(
        query, keys, values, bias, scaling=0.3, softcap=softcap, attention_sinks=sinks, impl=impl
    )
    expected = written_out(query, keys, values, allowed, 0.3, softcap, sinks)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@each("decode_attention")
def test_no_bias_means_every_slot(impl: str) -> None:
    query, keys, values = torch.randn(2, 3, 8), torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    got = ops.decode_attention(query, keys, values, None, scaling=0.3, impl=impl)
    expected = written_out(query, keys, values, torch.ones(2, 9, dtype=torch.bool), 0.3)
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=2e-5)


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
    assume(softcap is None or impl == "torch")
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 3, num_queries, 8, generator=generator)
    keys, values = torch.randn(2, 17, 8, generator=generator), torch.randn(2, 17, 6, generator=generator)
    allowed = torch.rand(2, 1, num_queries, 17, generator=generator) < 0.6
    allowed[..., 0] = True
    parts = [
        ops.partial_attention(
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
    out, lse = ops.partial_attention(
        torch.randn(1, 2, 2, 4), torch.randn(1, 5, 4), torch.randn(1, 5, 4), nothing, scaling=1.0, impl=impl
    )
    assert out.eq(0).all() and lse.eq(-torch.inf).all()
    merged, total = ops.merge_attention(out, lse, out, lse)
    assert merged.eq(0).all() and total.eq(-torch.inf).all()


def test_queries_are_sliced_without_changing_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys, values = torch.randn(2, 3, 7, 8), torch.randn(2, 11, 8), torch.randn(2, 11, 8)
    mask = torch.ones(1, 1, 7, 11, dtype=torch.bool).tril(4)
    whole = ops.partial_attention(query, keys, values, mask, scaling=0.3, impl="torch")
    monkeypatch.setattr(ops, "MAX_SCORES", 2 * 3 * 11 * 2)
    sliced = ops.partial_attention(query, keys, values, mask, scaling=0.3, impl="torch")
    torch.testing.assert_close(sliced, whole)
