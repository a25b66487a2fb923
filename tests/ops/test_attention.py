"""Decode attention against a softmax written out."""

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
