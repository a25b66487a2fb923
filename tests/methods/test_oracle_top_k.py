"""OracleTopK against loops: the tokens with the most attention, and what attending to them gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import OracleTopK, SettingsError
from louiskv.methods.base import AttentionOptions
from tests.methods.oracle import NUM_KV_HEADS, SCALING, attention, best, by_group, dot, drifting, mean_share


@settings(deadline=None, max_examples=20)
@given(length=st.integers(2, 60), budget=st.integers(1, 70), seed=st.integers(0, 99))
def test_it_attends_to_the_tokens_with_the_most_attention(length: int, budget: int, seed: int) -> None:
    sequence = drifting(length, steps=4, group_size=3, seed=seed)
    layer = OracleTopK(budget=budget, dense_layers=0).layer(0)
    layer.batch_size, layer.num_kv_heads = 1, NUM_KV_HEADS
    layer.absorb(sequence.keys[None, :, :length], sequence.values[None, :, :length], None)
    for step, query in enumerate(sequence.queries):
        place = slice(length + step, length + step + 1)
        layer.append(sequence.keys[None, :, place], sequence.values[None, :, place])
        got = layer.attend(query[None, :, None], AttentionOptions(scaling=SCALING))[0, :, 0]
        for head, group in enumerate(by_group(query)):
            keys = sequence.keys[head, : place.stop].tolist()
            share = mean_share([[SCALING * dot(each, key) for key in keys] for each in group])
            tokens = best(share)[:budget]
            assert sorted(tokens) == sorted(layer.attended_positions()[head].tolist())
            values = sequence.values[head].tolist()
            chosen = [keys[token] for token in tokens], [values[token] for token in tokens]
            expected = torch.tensor([attention(each, *chosen) for each in group])
            torch.testing.assert_close(got[head * len(group) :][: len(group)], expected, atol=1e-4, rtol=1e-4)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="budget"):
        OracleTopK(budget=0)
