"""SnapKV against a slow oracle of its paper, and its settings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import SettingsError, SnapKV
from tests.methods.eviction_oracle import EvictionOracle, Token, agree_step_by_step, random_talk
from tests.methods.oracle import NUM_KV_HEADS, Vector


class SnapKVOracle(EvictionOracle):
    """What the last queries of a prompt attended to, and after it the newest tokens."""

    def __init__(self, method: SnapKV) -> None:
        super().__init__(method.budget, window=method.budget // 2)
        self.prompt_window = self.watched = method.observation
        self.reach = method.kernel // 2
        self.pooled: dict[int, float] = {}

    def prompt(self, queries: list[list[Vector]], keys: list[Vector], values: list[Vector]) -> list[list[Vector]]:
        for token in self.tokens:
            token.weights.clear()
        return super().prompt(queries, keys, values)

    def take_in(self, new: list[Token]) -> None:
        """Each takes the greatest weight among its neighbours, head by head."""
        super().take_in(new)
        sums = [[sum(column) for column in zip(*token.weights, strict=True)] for token in self.tokens]
        self.pooled = {}
        for place, token in enumerate(self.tokens):
            near = sums[max(0, place - self.reach) : place + self.reach + 1]
            by_head = [max(column) for column in zip(*near, strict=True)]
            self.pooled[token.position] = sum(by_head) / len(by_head)

    def score(self, token: Token) -> float:
        return self.pooled.get(token.position, 0.0)


@settings(deadline=None, max_examples=14, derandomize=True)
@given(
    length=st.integers(1, 70),
    steps=st.integers(24, 60),
    observation=st.integers(1, 12),
    room=st.integers(1, 30),
    kernel=st.sampled_from([1, 3, 7]),
    second=st.integers(1, 20),
    group_size=st.sampled_from([1, 2, 3]),
    plain=st.booleans(),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int,
    steps: int,
    observation: int,
    room: int,
    kernel: int,
    second: int,
    group_size: int,
    plain: bool,
    seed: int,
) -> None:
    method = SnapKV(budget=max(2, observation + room), observation=observation, kernel=kernel)
    talk = random_talk([(length, steps), (second, 5)], group_size, seed, plain=plain)
    agree_step_by_step(method, talk, [SnapKVOracle(method) for _ in range(NUM_KV_HEADS)])


def test_the_output_pushes_out_half_of_the_budget_and_no_more() -> None:
    method = SnapKV(budget=20, observation=4, kernel=3)
    talk = random_talk([(40, 60)], 2, seed=0)
    layer = agree_step_by_step(method, talk, [SnapKVOracle(method) for _ in range(NUM_KV_HEADS)])
    for held in layer.kept.positions.tolist():
        assert sum(position >= 40 for position in held) == 10
        assert set(range(90, 100)) <= set(held)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 1}, "budget=1 .* at least 2"),
        ({"budget": "many"}, "budget='many' .* whole number"),
        ({"budget": 32}, "budget=32 leaves nothing that may be dropped: .* newest 32 tokens .* at least 33"),
        ({"observation": 0}, "observation=0 .* at least 1"),
        ({"observation": 2.5}, "observation=2.5 .* whole number"),
        ({"kernel": 4}, "kernel=4 .* odd number"),
        ({"kernel": 0}, "kernel=0 .* at least 1"),
        ({"kernel": "wide"}, "kernel='wide' .* whole number"),
        ({"dense_layers": -1}, "dense_layers=-1 .* at least 0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SnapKV(**wrong)  # type: ignore[arg-type]
