"""FIER against a slow oracle of its paper, what it keeps, and its settings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import FIER, SettingsError
from tests.methods.oracle import (
    ITEM_SIZE,
    NUM_KV_HEADS,
    SCALING,
    Oracle,
    Sequence,
    Vector,
    agree_step_by_step,
    best,
    decode,
    dot,
    drifting,
    mean_share,
    started,
)


class FIEROracle(Oracle):
    """The group that fills, and the tokens whose one-bit keys fit the query."""

    def __init__(self, method: FIER, sequence: Sequence) -> None:
        super().__init__(sequence)
        self.method = method
        self.rounded = [self.one_bit(keys) for keys in self.keys]
        self.offloaded = self.filling(self.length - 1) * NUM_KV_HEADS

    def filling(self, position: int) -> int:
        """Where the group of a token begins."""
        return position // self.method.group_size * self.method.group_size

    def one_bit(self, keys: list[Vector]) -> list[Vector]:
        rounded: list[Vector] = []
        for first in range(0, len(keys), self.method.group_size):
            group = keys[first : first + self.method.group_size]
            middle = [(max(channel) + min(channel)) / 2 for channel in zip(*group, strict=True)]
            scale = [(max(channel) - min(channel)) / 2 for channel in zip(*group, strict=True)]
            rounded += [
                [z + s if k >= z else z - s for k, z, s in zip(key, middle, scale, strict=True)] for key in group
            ]
        return rounded

    def step(self, position: int, query: list[list[Vector]]) -> list[set[int]]:
        filling, budget = self.filling(position), self.method.budget
        attended = []
        for head, group in enumerate(query):
            if 0 < filling == position:
                self.stay(head, list(range(self.filling(position - 1), position)), budget - 1)
            scores = mean_share([[SCALING * dot(each, key) for key in self.rounded[head][:filling]] for each in group])
            self.retrieve(head, set(best(scores)[: budget - (position + 1 - filling)]))
            attended.append(self.retrieved[head] | {*range(filling, position + 1)})
        return attended


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    length=st.integers(1, 90),
    steps=st.integers(24, 48),
    group_of_tokens=st.sampled_from([2, 4, 7]),
    retrieved=st.integers(1, 24),
    group_size=st.sampled_from([2, 3]),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int, steps: int, group_of_tokens: int, retrieved: int, group_size: int, seed: int
) -> None:
    method = FIER(budget=group_of_tokens + retrieved, group_size=group_of_tokens, dense_layers=0)
    # 20 channels: two keys of a group whose bits agree would tie; and the last byte is not full.
    sequence = drifting(length, steps, group_size, seed, dim=20)
    agree_step_by_step(method, sequence, FIEROracle(method, sequence))


def test_everything_is_offloaded_once_and_the_index_is_a_bit_a_channel() -> None:
    sequence = drifting(32_768, 40, 2, seed=0)
    layer = started(FIER(budget=64, dense_layers=0), sequence)
    per_token = 8 / 8 + 2 * 8 * ITEM_SIZE / 32
    assert layer.index.summary_bytes == pytest.approx(sequence.length * NUM_KV_HEADS * per_token, rel=0.05)
    for step in range(40):
        decode(layer, sequence, step)
    num_tokens = sequence.length + 40
    assert layer.index.summary_bytes == pytest.approx(num_tokens * NUM_KV_HEADS * per_token, rel=0.05)
    assert layer.traffic.offloaded_bytes == num_tokens // 32 * 32 * NUM_KV_HEADS * sequence.token_size


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 32}, r"budget=32 leaves no room .* at least 33,"),
        ({"budget": "all"}, "budget='all' .* whole number"),
        ({"group_size": 0}, "group_size=0 .* at least 1"),
        ({"group_size": 32.0}, "group_size=32.0 .* whole number"),
        ({"dense_layers": -1}, "dense_layers=-1 .* at least 0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        FIER(**wrong)  # type: ignore[arg-type]
