"""Attention that tells its weights against loops: decode steps and observation windows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv.errors import ImplementationError
from louiskv.ops.attention import attention_with_weights, decode_attention
from louiskv.ops.partial_attention import partial_attention

SCALING = 0.3
# Output by dtype against float64 arithmetic on the same inputs, for entries of order 1; weights and logits are float32.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def written_out(
    query: list[float],
    keys: list[list[float]],
    values: list[list[float]],
    bias: list[float],
    softcap: float | None,
    sink: float | None,
) -> tuple[list[float], list[float], float]:
    """Output, weights and log-sum-exp of one query; a bias of -inf closes a key."""
    logits = [SCALING * sum(a * b for a, b in zip(query, key, strict=True)) for key in keys]
    if softcap is not None:
        logits = [softcap * math.tanh(logit / softcap) for logit in logits]
    mass = [math.exp(logit + added) for logit, added in zip(logits, bias, strict=True)]
    total = sum(mass) + (0 if sink is None else math.exp(sink))
    if total == 0:
        return [0.0] * len(values[0]), [0.0] * len(keys), -math.inf
    weights = [each / total for each in mass]
    out = [
        sum(w * value[channel] for w, value in zip(weights, values, strict=True)) for channel in range(len(values[0]))
    ]
    return out, weights, math.log(total)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    num_queries=st.sampled_from([1, 2, 5]),
    num_keys=st.sampled_from([1, 7, 17]),
    group_size=st.sampled_from([1, 2, 3]),
    kind=st.sampled_from(["none", "closed", "closed for all queries", "added", "added for all rows"]),
    softcap=st.sampled_from([None, 2.0]),
    with_sinks=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 999),
)
def test_against_loops(
    num_queries: int,
    num_keys: int,
    group_size: int,
    kind: str,
    softcap: float | None,
    with_sinks: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, group_size, num_queries, 8, generator=generator).to(dtype)
    rows = torch.randn(2, num_keys, 13, generator=generator).to(dtype)
    keys, values = rows[..., :8], rows[..., 8:]
    sinks = torch.randn(2, group_size, generator=generator) if with_sinks else None
    shape = (1 if "rows" in kind else 2, 1, 1 if "queries" in kind else num_queries, num_keys)
    open_ = torch.rand(shape, generator=generator) < 0.6
    votes = torch.randint(0, 4, shape, generator=generator).float().log()
    mask = {"n": None, "c": open_, "a": votes}[kind[0]]
    bias = torch.zeros(shape) if mask is None else votes if kind[0] == "a" else open_.float().log()
    bias = bias.expand(2, 1, num_queries, num_keys)

    out, weights, lse = attention_with_weights(
        query, keys, values, mask, scaling=SCALING, softcap=softcap, attention_sinks=sinks
    )
    assert out.dtype == weights.dtype == lse.dtype == torch.float32
    assert out.shape == (2, group_size, num_queries, 5)
    assert weights.shape == (2, group_size, num_queries, num_keys)
    for row in range(2):
        for head in range(group_size):
            for token in range(num_queries):
                expected_out, expected_weights, expected_lse = written_out(
                    query[row, head, token].tolist(),
                    keys[row].tolist(),
                    values[row].tolist(),
                    bias[row, 0, token].tolist(),
                    softcap,
                    None if sinks is None else float(sinks[row, head]),
                )
                for got, expected in (
                    (out[row, head, token], expected_out),
                    (weights[row, head, token], expected_weights),
                    (lse[row, head, token], expected_lse),
                ):
                    torch.testing.assert_close(
                        got, torch.tensor(expected), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
                    )


def test_an_observation_window_at_the_end_of_a_prompt() -> None:
    query, keys, values = torch.randn(2, 3, 4, 8), torch.randn(2, 11, 8), torch.randn(2, 11, 6)
    causal = torch.ones(1, 1, 4, 11, dtype=torch.bool).tril(7)
    out, weights, lse = attention_with_weights(query, keys, values, causal, scaling=SCALING)
    expected_out, expected_lse = partial_attention(query, keys, values, causal, scaling=SCALING)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(lse, expected_lse)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 4))
    assert weights.triu(8).eq(0).all()


def test_a_decode_step_is_that_of_decode_attention() -> None:
    query, keys, values = torch.randn(2, 3, 8), torch.randn(2, 11, 8), torch.randn(2, 11, 6)
    votes, sinks = torch.randint(0, 3, (2, 1, 11)).float().log(), torch.randn(2, 3)
    votes[:, :, 0] = 0
    out, weights, _ = attention_with_weights(
        query[:, :, None], keys, values, votes[:, None], scaling=SCALING, attention_sinks=sinks
    )
    expected = decode_attention(query, keys, values, votes, scaling=SCALING, attention_sinks=sinks)
    torch.testing.assert_close(out[:, :, 0], expected)
    assert weights.sum(-1).lt(1).all(), "the attention sinks have their share"


@pytest.mark.parametrize("with_sinks", [False, True])
def test_a_query_that_sees_nothing_gets_nothing(with_sinks: bool) -> None:
    nothing = torch.zeros(1, 1, 2, 5, dtype=torch.bool)
    sinks = torch.randn(1, 2) if with_sinks else None
    out, weights, lse = attention_with_weights(
        torch.randn(1, 2, 2, 4), torch.randn(1, 5, 4), torch.randn(1, 5, 3), nothing, scaling=1.0, attention_sinks=sinks
    )
    assert out.eq(0).all() and weights.eq(0).all()
    torch.testing.assert_close(
        lse, torch.full((1, 2, 2), -torch.inf) if sinks is None else sinks[..., None].expand(1, 2, 2)
    )


def test_an_implementation_that_is_none_is_refused() -> None:
    rows = torch.zeros(1, 1, 1, 4), torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    with pytest.raises(ImplementationError, match=r"attention_with_weights.*magic.*It has: torch"):
        attention_with_weights(*rows, None, scaling=1.0, impl="magic")
