"""The reuse of a selection for several steps against a slow oracle, what it keeps, and its settings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import LServeReuse, Quest, SettingsError
from tests.methods.oracle import (
    ITEM_SIZE,
    NUM_KV_HEADS,
    SCALING,
    Oracle,
    Sequence,
    Vector,
    agree_step_by_step,
    attended_positions,
    best,
    bound,
    decode,
    drifting,
    mean_share,
    started,
)


class ReuseOracle(Oracle):
    """The page that fills, and the pages that were best when last looked at; nothing ever moves."""

    def __init__(self, method: LServeReuse, sequence: Sequence) -> None:
        super().__init__(sequence)
        self.method = method
        self.num_steps = 0
        self.pages: list[list[int]] = [[] for _ in self.keys]

    def step(self, position: int, query: list[list[Vector]]) -> list[set[int]]:
        size = self.method.page_size
        num_pages, filling = self.method.budget // size - 1, position // size
        attended = []
        for head, (keys, group) in enumerate(zip(self.keys, query, strict=True)):
            if self.num_steps % self.method.stride == 0:
                self.pages[head] = self.ranked(keys, filling, group)[:num_pages]
            elif 0 < filling * size == position and len(self.pages[head]) < num_pages:
                # A page that fills between two selections stays while there is room for it.
                self.pages[head] = [*self.pages[head], filling - 1]
            places = {place for page in [*self.pages[head], filling] for place in range(page * size, (page + 1) * size)}
            attended.append({place for place in places if place <= position})
        self.num_steps += 1
        return attended

    def ranked(self, keys: list[Vector], num_full: int, group: list[Vector]) -> list[int]:
        size = self.method.page_size
        logits: list[Vector] = [[] for _ in group]
        for page in range(num_full):
            channels = list(zip(*keys[page * size : (page + 1) * size], strict=True))
            high, low = [max(channel) for channel in channels], [min(channel) for channel in channels]
            for row, each in zip(logits, group, strict=True):
                row.append(SCALING * bound(each, high, low))
        return best(mean_share(logits))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    length=st.integers(1, 90),
    steps=st.integers(24, 48),
    page_size=st.sampled_from([1, 3, 4, 8]),
    num_pages=st.integers(2, 6),
    stride=st.sampled_from([1, 2, 3, 4, 7]),
    group_size=st.sampled_from([2, 3]),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int, steps: int, page_size: int, num_pages: int, stride: int, group_size: int, seed: int
) -> None:
    method = LServeReuse(budget=num_pages * page_size, page_size=page_size, stride=stride, dense_layers=0)
    sequence = drifting(length, steps, group_size, seed)
    agree_step_by_step(method, sequence, ReuseOracle(method, sequence))


def test_a_stride_of_one_is_quest() -> None:
    sequence = drifting(75, 40, 3, seed=1)
    reuse = started(LServeReuse(budget=24, page_size=4, stride=1, dense_layers=0), sequence)
    quest = started(Quest(budget=24, page_size=4, dense_layers=0), sequence)
    for step in range(40):
        assert torch.equal(decode(reuse, sequence, step), decode(quest, sequence, step))


def test_between_selections_the_same_pages_serve() -> None:
    sequence = drifting(160, 12, 2, seed=0, drift=2.0)
    layer, sets = started(LServeReuse(budget=64, page_size=16, dense_layers=0), sequence), []
    for step in range(12):
        decode(layer, sequence, step)
        sets.append(attended_positions(layer, sequence.keys))
    assert layer.telemetry.fired.tensor().all(-1)[:, 0].tolist() == [step % 4 == 0 for step in range(12)]
    for head in range(NUM_KV_HEADS):
        pages = [frozenset(place for place in positions[head] if place < 160) for positions in sets]
        assert [pages[step] for step in range(12)] == [pages[step // 4 * 4] for step in range(12)]
        assert len(set(pages)) > 1, "and the next selection is another one"


def test_nothing_moves_and_the_index_is_two_keys_a_page() -> None:
    sequence = drifting(32_768, 40, 2, seed=0)
    layer = started(LServeReuse(budget=64, page_size=16, dense_layers=0), sequence)
    for step in range(40):
        decode(layer, sequence, step)
    num_tokens = sequence.length + 40
    expected = num_tokens * NUM_KV_HEADS * 2 * 8 * ITEM_SIZE / 16
    assert layer.index.summary_bytes == pytest.approx(expected, rel=0.05)
    assert layer.traffic.fetched_bytes == layer.traffic.offloaded_bytes == 0
    assert layer.tiers().host.bytes == 0
    assert layer.tiers().resident.tokens == num_tokens * NUM_KV_HEADS
    # A selection takes three pages of each KV head, at every fourth of 40 steps.
    assert layer.telemetry.selected.read() == 10 * 3 * 16 * NUM_KV_HEADS


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 1000}, "budget=1000 is not a multiple of page_size=16: give 992 or 1008"),
        ({"budget": 16}, r"budget=16 leaves no room .* at least 32,"),
        ({"budget": "many"}, "budget='many' .* whole number"),
        ({"page_size": 0}, "page_size=0 .* at least 1"),
        ({"stride": 0}, "stride=0 .* at least 1"),
        ({"stride": 2.5}, "stride=2.5 .* whole number"),
        ({"dense_layers": -1}, "dense_layers=-1 .* at least 0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        LServeReuse(**wrong)  # type: ignore[arg-type]
