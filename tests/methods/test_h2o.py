"""H2O against a slow oracle of its paper, and its settings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import H2O, SettingsError
from louiskv.methods import eviction_layer
from tests.methods.eviction_oracle import EvictionOracle, Token, agree_step_by_step, mean, random_talk, take_prompt
from tests.methods.oracle import NUM_KV_HEADS


class H2OOracle(EvictionOracle):
    """The newest half of the budget, and of the others those that have got the most attention."""

    watched = 10**9

    def __init__(self, method: H2O) -> None:
        super().__init__(method.budget, window=method.budget // 2)

    def score(self, token: Token) -> float:
        return sum(map(mean, token.weights))


@settings(deadline=None, max_examples=14, derandomize=True)
@given(
    length=st.integers(1, 60),
    steps=st.integers(24, 60),
    budget=st.integers(2, 40),
    second=st.integers(1, 20),
    group_size=st.sampled_from([1, 2, 3]),
    plain=st.booleans(),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int, steps: int, budget: int, second: int, group_size: int, plain: bool, seed: int
) -> None:
    method = H2O(budget=budget)
    talk = random_talk([(length, steps), (second, 5)], group_size, seed, plain=plain)
    agree_step_by_step(method, talk, [H2OOracle(method) for _ in range(NUM_KV_HEADS)])


def test_a_long_prompt_is_observed_in_parts_without_changing_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = random_talk([(50, 0)], 2, seed=0)
    whole, in_parts = (H2O(budget=20).layer(0) for _ in range(2))
    assert isinstance(whole, eviction_layer.EvictionLayer)
    assert isinstance(in_parts, eviction_layer.EvictionLayer)
    expected = take_prompt(whole, talk, slice(0, 50))
    monkeypatch.setattr(eviction_layer, "MAX_WEIGHTS_CPU", 4 * 70 * 7)
    torch.testing.assert_close(take_prompt(in_parts, talk, slice(0, 50)), expected)
    assert torch.equal(in_parts.kept.positions, whole.kept.positions)
    torch.testing.assert_close(in_parts.kept.stats, whole.kept.stats)


def test_a_token_that_nobody_attends_to_goes_first_and_a_heavy_hitter_stays() -> None:
    talk = random_talk([(30, 24)], 2, seed=0)
    talk.queries[...] = talk.queries.abs()
    talk.keys[...] = 0
    talk.keys[:, 5], talk.keys[:, 9] = 4, -4
    method = H2O(budget=20)
    layer = agree_step_by_step(method, talk, [H2OOracle(method) for _ in range(NUM_KV_HEADS)])
    for held in layer.kept.positions.tolist():
        assert 5 in held
        assert 9 not in held


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 1}, "budget=1 .* at least 2"),
        ({"budget": 0}, "budget=0 .* at least 2"),
        ({"budget": 24.5}, "budget=24.5 .* whole number"),
        ({"budget": "many"}, "budget='many' .* whole number"),
        ({"dense_layers": -1}, "dense_layers=-1 .* at least 0"),
        ({"dense_layers": "two"}, "dense_layers='two' .* whole number"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        H2O(**wrong)  # type: ignore[arg-type]
