"""StreamingLLM against a slow oracle of its paper, and its settings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import SettingsError, StreamingLLM
from tests.methods.eviction_oracle import EvictionOracle, Token, agree_step_by_step, random_talk
from tests.methods.oracle import NUM_KV_HEADS


class StreamingLLMOracle(EvictionOracle):
    """The first tokens, and the newest ones."""

    def __init__(self, method: StreamingLLM) -> None:
        super().__init__(method.budget, window=method.budget - method.sink)
        self.sink = method.sink

    def score(self, token: Token) -> float:
        return token.position


@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    length=st.integers(1, 60),
    steps=st.integers(24, 60),
    sink=st.integers(0, 4),
    num_newest=st.integers(2, 30),
    group_size=st.sampled_from([1, 2, 3]),
    plain=st.booleans(),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int, steps: int, sink: int, num_newest: int, group_size: int, plain: bool, seed: int
) -> None:
    method = StreamingLLM(budget=sink + num_newest, sink=sink)
    talk = random_talk([(length, steps), (7, 5)], group_size, seed, plain=plain)
    agree_step_by_step(method, talk, [StreamingLLMOracle(method) for _ in range(NUM_KV_HEADS)])


@pytest.mark.parametrize("length", [3, 40])
def test_only_sinks_and_newest_tokens_are_kept(length: int) -> None:
    method = StreamingLLM(budget=12, sink=3)
    talk = random_talk([(length, 30)], 2, seed=0)
    layer = agree_step_by_step(method, talk, [StreamingLLMOracle(method) for _ in range(NUM_KV_HEADS)])
    expected = [0, 1, 2, *range(length + 30 - 9, length + 30)]
    assert layer.kept.positions.sort(1).values.tolist() == [expected] * NUM_KV_HEADS
    assert layer.tiers().resident.tokens == 12 * NUM_KV_HEADS
    assert layer.tiers().host.bytes == layer.traffic.fetched_bytes == layer.traffic.offloaded_bytes == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 0}, "budget=0 .* at least 1"),
        ({"budget": "many"}, "budget='many' .* whole number"),
        ({"budget": 5}, "budget=5 leaves nothing that may be dropped: with sink=4 .* give at least 6"),
        ({"sink": -1}, "sink=-1 .* at least 0"),
        ({"sink": 2.5}, "sink=2.5 .* whole number"),
        ({"sink": 1024}, "budget=1024 leaves nothing .* sink=1024 .* at least 1026"),
        ({"dense_layers": -1}, "dense_layers=-1 .* at least 0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        StreamingLLM(**wrong)  # type: ignore[arg-type]
