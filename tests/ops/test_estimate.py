"""The rest in `decode_attention`: an entry is as many equal tokens as it says, in one softmax with the slots."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv.ops.attention import Rest, decode_attention
from louiskv.ops.quantize import to_int8
from tests.ops.implementations import each, here
from tests.ops.test_attention import TOLERANCE

DIM, VALUE_DIM, SCALING = 8, 6, 0.3


def repeated(rest: Rest, row: int) -> tuple[Tensor, Tensor]:
    """The tokens that the entries of a row stand for: logits [G, R] and values [R, Dv] in float64."""
    counts = rest.num_tokens[row]
    values = rest.values[row].double() * rest.steps[row, :, None].double()
    return rest.logits[row].double().repeat_interleave(counts, 1), values.repeat_interleave(counts, 0)


def dense(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    occupied: Tensor,
    rest: Rest,
    softcap: float | None = None,
    attention_sinks: Tensor | None = None,
) -> Tensor:
    """One softmax in float64 over the occupied slots and every token that an entry stands for, row by row."""
    outs = []
    for row, held in enumerate(occupied):
        logits, of_entries = repeated(rest, row)
        logits = torch.cat([SCALING * query[row].double() @ keys[row, held].double().T, logits], dim=1)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if attention_sinks is not None:
            logits = torch.cat([logits, attention_sinks[row].double()[:, None]], dim=1)
        every = torch.cat([values[row, held].double(), of_entries])
        outs.append(logits.softmax(1)[:, : len(every)] @ every)
    return torch.stack(outs)


def some_rest(num_rows: int, group_size: int, num_entries: int, most: int, generator: torch.Generator) -> Rest:
    """Entries of 0 to `most` tokens, with values in codes."""
    counts = torch.randint(0, most + 1, (num_rows, num_entries), generator=generator)
    codes, steps = to_int8(torch.randn(num_rows, num_entries, VALUE_DIM, generator=generator))
    logits = torch.randn(num_rows, group_size, num_entries, generator=generator)
    return Rest(logits, counts, codes, steps)


@each("decode_attention")
@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    num_slots=st.sampled_from([1, 15, 17, 63]),
    num_entries=st.sampled_from([1, 15, 17, 63]),
    group_size=st.sampled_from([1, 3, 4, 8]),
    most=st.sampled_from([0, 1, 40]),
    dtype=st.sampled_from(list(TOLERANCE)),
    softcap=st.sampled_from([None, 2.0]),
    with_sinks=st.booleans(),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_an_entry_is_as_many_equal_tokens(
    impl: str,
    num_slots: int,
    num_entries: int,
    group_size: int,
    most: int,
    dtype: torch.dtype,
    softcap: float | None,
    with_sinks: bool,
    with_bias: bool,
    seed: int,
) -> None:
    assume(impl in here("decode_attention", dtype))
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, group_size, DIM, generator=generator).to(dtype)
    rows = torch.randn(2, num_slots, DIM + VALUE_DIM, generator=generator).to(dtype)
    keys, values = rows[..., :DIM], rows[..., DIM:]
    occupied = torch.ones(2, num_slots, dtype=torch.bool)
    if with_bias:
        occupied = torch.rand(2, num_slots, generator=generator) < 0.7
        occupied[:, 0] = True
    bias = torch.zeros(2, 1, num_slots, dtype=dtype).masked_fill(~occupied[:, None], -torch.inf)
    sinks = torch.randn(2, group_size, generator=generator) if with_sinks else None
    rest = some_rest(2, group_size, num_entries, most, generator)
    got = decode_attention(
        query,
        keys,
        values,
        bias if with_bias else None,
        scaling=SCALING,
        softcap=softcap,
        attention_sinks=sinks,
        rest=rest,
        impl=impl,
    )
    assert got.dtype == dtype
    expected = dense(query, keys, values, occupied, rest, softcap, sinks)
    torch.testing.assert_close(got.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@each("decode_attention")
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_where_all_slots_are_closed_the_rest_is_everything(impl: str, softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(2, 3, DIM, generator=generator), torch.randn(2, 5, DIM, generator=generator)
    values, rest = torch.randn(2, 5, VALUE_DIM, generator=generator), some_rest(2, 3, 9, 4, generator)
    closed = torch.full((2, 1, 5), -torch.inf)
    got = decode_attention(query, keys, values, closed, scaling=SCALING, softcap=softcap, rest=rest, impl=impl)
    expected = dense(query, keys, values, closed[:, 0] == 0, rest, softcap)
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=2e-5)


@each("decode_attention")
def test_closed_entries_are_nothing_whatever_they_would_say(impl: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(2, 3, DIM, generator=generator), torch.randn(2, 5, DIM, generator=generator)
    values, rest = torch.randn(2, 5, VALUE_DIM, generator=generator), some_rest(2, 3, 9, 4, generator)
    expected = decode_attention(query, keys, values, None, scaling=SCALING, impl=impl, rest=rest)
    # What stands for a unit without tokens is finite, and may be any number.
    far = Rest(
        torch.cat([rest.logits, torch.full((2, 3, 4), 1e30)], dim=2),
        torch.nn.functional.pad(rest.num_tokens, (0, 4)),
        torch.nn.functional.pad(rest.values, (0, 0, 0, 4), value=127),
        torch.nn.functional.pad(rest.steps, (0, 4), value=6e4),
    )
    got = decode_attention(query, keys, values, None, scaling=SCALING, impl=impl, rest=far)
    torch.testing.assert_close(got, expected)
    closed = far._replace(num_tokens=torch.zeros_like(far.num_tokens))
    alone = decode_attention(query, keys, values, None, scaling=SCALING, impl=impl)
    torch.testing.assert_close(
        decode_attention(query, keys, values, None, scaling=SCALING, impl=impl, rest=closed), alone
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_entries_of_little_weight_are_not_lost(dtype: torch.dtype) -> None:
    for impl in here("decode_attention", dtype):
        many_entries_of_little_weight(dtype, impl)


def many_entries_of_little_weight(dtype: torch.dtype, impl: str) -> None:
    # 4,000 entries that get 10^-5 of the attention each; one of their numbers times its step is under 10^-7.
    num_entries = 4000
    query, keys = torch.zeros(1, 2, DIM, dtype=dtype), torch.zeros(1, 1, DIM, dtype=dtype)
    codes, steps = to_int8(torch.full((1, num_entries, VALUE_DIM), 0.5))
    logits = torch.full((1, 2, num_entries), -11.5)
    rest = Rest(logits, torch.ones(1, num_entries, dtype=torch.int32), codes, steps)
    values = torch.zeros(1, 1, VALUE_DIM, dtype=dtype)
    got = decode_attention(query, keys, values, None, scaling=1.0, rest=rest, impl=impl)
    expected = dense(query, keys, values, torch.ones(1, 1, dtype=torch.bool), rest)
    torch.testing.assert_close(got.double(), expected, atol=0, rtol=4 * torch.finfo(dtype).eps)
