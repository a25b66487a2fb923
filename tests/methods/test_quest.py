"""Quest against a slow oracle of its paper, what it keeps, and its settings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import Quest, SettingsError
from tests.methods.oracle import (
    ITEM_SIZE,
    NUM_KV_HEADS,
    SCALING,
    Oracle,
    Sequence,
    Vector,
    agree_step_by_step,
    best,
    bound,
    decode,
    drifting,
    mean_share,
    started,
)


class QuestOracle(Oracle):
    """The page that fills, and the full pages that a key could make most of; nothing ever moves."""

    def __init__(self, method: Quest, sequence: Sequence) -> None:
        super().__init__(sequence)
        self.method = method

    def step(self, position: int, query: list[list[Vector]]) -> list[set[int]]:
        return [self.attends(keys, position, group) for keys, group in zip(self.keys, query, strict=True)]

    def attends(self, keys: list[Vector], position: int, group: list[Vector]) -> set[int]:
        size = self.method.page_size
        filling = position // size
        logits: list[Vector] = [[] for _ in group]
        for page in range(filling):
            channels = list(zip(*keys[page * size : (page + 1) * size], strict=True))
            high, low = [max(channel) for channel in channels], [min(channel) for channel in channels]
            for row, each in zip(logits, group, strict=True):
                row.append(SCALING * bound(each, high, low))
        pages = [*best(mean_share(logits))[: self.method.budget // size - 1], filling]
        return {place for page in pages for place in range(page * size, (page + 1) * size) if place <= position}


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    length=st.integers(1, 90),
    steps=st.integers(24, 48),
    page_size=st.sampled_from([1, 3, 4, 8]),
    num_pages=st.integers(2, 6),
    group_size=st.sampled_from([2, 3]),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int, steps: int, page_size: int, num_pages: int, group_size: int, seed: int
) -> None:
    method = Quest(budget=num_pages * page_size, page_size=page_size, dense_layers=0)
    sequence = drifting(length, steps, group_size, seed)
    agree_step_by_step(method, sequence, QuestOracle(method, sequence))


def test_nothing_moves_and_the_index_is_two_keys_a_page() -> None:
    sequence = drifting(32_768, 40, 2, seed=0)
    layer = started(Quest(budget=64, page_size=16, dense_layers=0), sequence)
    per_token = 2 * 8 * ITEM_SIZE / 16
    assert layer.index.summary_bytes == pytest.approx(sequence.length * NUM_KV_HEADS * per_token, rel=0.05)
    for step in range(40):
        decode(layer, sequence, step)
    num_tokens = sequence.length + 40
    assert layer.index.summary_bytes == pytest.approx(num_tokens * NUM_KV_HEADS * per_token, rel=0.05)
    assert layer.traffic.fetched_bytes == layer.traffic.offloaded_bytes == 0
    assert layer.tiers().host.bytes == 0
    assert layer.tiers().resident.tokens == num_tokens * NUM_KV_HEADS


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 1000}, "budget=1000 is not a multiple of page_size=16: give 992 or 1008"),
        ({"budget": 16}, r"budget=16 leaves no room .* at least 32,"),
        ({"budget": 0}, "budget=0 .* at least 1"),
        ({"budget": "many"}, "budget='many' .* whole number"),
        ({"page_size": 0}, "page_size=0 .* at least 1"),
        ({"page_size": 2.5}, "page_size=2.5 .* whole number"),
        ({"dense_layers": -1}, "dense_layers=-1 .* at least 0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Quest(**wrong)  # type: ignore[arg-type]
