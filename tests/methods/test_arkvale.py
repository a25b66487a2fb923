"""ArkVale against a slow oracle of its paper, what it moves, and its settings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import ArkVale, SettingsError
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


class ArkValeOracle(Oracle):
    """Sinks, the newest pages, and the full pages whose bounding volume reaches farthest along the query."""

    def __init__(self, method: ArkVale, sequence: Sequence) -> None:
        super().__init__(sequence)
        self.method = method
        self.num_retrieved = (method.budget - method.sink) // method.page_size - 1
        self.num_recent = method.window // method.page_size - 1
        # A page that just filled waits in a slot of its own for the selection that takes it in any case.
        self.num_slots = (self.num_retrieved + (self.num_recent > 0)) * method.page_size
        self.offloaded = self.pages_before(self.length) * method.page_size * NUM_KV_HEADS

    def page(self, number: int) -> range:
        first = self.method.sink + number * self.method.page_size
        return range(first, first + self.method.page_size)

    def pages_before(self, length: int) -> int:
        """Full pages in front of the one that the newest of so many tokens stands in."""
        return max(0, length - 1 - self.method.sink) // self.method.page_size

    def step(self, position: int, query: list[list[Vector]]) -> list[set[int]]:
        filling = self.pages_before(position + 1)
        attended = []
        for head, group in enumerate(query):
            if self.pages_before(position) < filling:
                self.stay(head, list(self.page(filling - 1)), self.num_slots)
            chosen = self.choose(self.keys[head], filling, group)
            self.retrieve(head, {place for page in chosen for place in self.page(page)})
            always = {*range(min(self.method.sink, position + 1)), *range(self.page(filling)[0], position + 1)}
            attended.append(always | self.retrieved[head])
        return attended

    def choose(self, keys: list[Vector], num_full: int, group: list[Vector]) -> list[int]:
        logits: list[Vector] = [[] for _ in group]
        for page in range(num_full):
            channels = list(zip(*(keys[place] for place in self.page(page)), strict=True))
            centre = [(max(channel) + min(channel)) / 2 for channel in channels]
            radius = [
                sum(abs(k - c) for k in channel) / len(channel) for channel, c in zip(channels, centre, strict=True)
            ]
            high, low = ([c + sign * r for c, r in zip(centre, radius, strict=True)] for sign in (1, -1))
            for row, each in zip(logits, group, strict=True):
                row.append(SCALING * bound(each, high, low))
        recent = list(range(max(0, num_full - self.num_recent), num_full))
        others = [page for page in best(mean_share(logits)) if page not in recent]
        return recent + others[: self.num_retrieved - len(recent)]


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    length=st.integers(1, 90),
    steps=st.integers(24, 48),
    page_size=st.sampled_from([2, 4, 6]),
    num_sinks=st.integers(0, 2),
    num_newest=st.integers(1, 3),
    num_retrieved=st.integers(1, 4),
    group_size=st.sampled_from([2, 3]),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int,
    steps: int,
    page_size: int,
    num_sinks: int,
    num_newest: int,
    num_retrieved: int,
    group_size: int,
    seed: int,
) -> None:
    method = ArkVale(
        budget=(num_sinks + num_newest + num_retrieved) * page_size,
        sink=num_sinks * page_size,
        window=num_newest * page_size,
        page_size=page_size,
        dense_layers=0,
    )
    sequence = drifting(length, steps, group_size, seed)
    agree_step_by_step(method, sequence, ArkValeOracle(method, sequence))


def test_every_filled_page_goes_to_the_host_once() -> None:
    sequence = drifting(1_000, 1_000, 2, seed=0)
    layer = started(ArkVale(budget=64, sink=8, window=16, page_size=8, dense_layers=0), sequence)
    prompt = layer.traffic.offloaded_bytes
    assert prompt == pytest.approx(1_000 * NUM_KV_HEADS * sequence.token_size, rel=0.05)
    for step in range(1_000):
        decode(layer, sequence, step)
    assert layer.traffic.offloaded_bytes - prompt == pytest.approx(prompt, rel=0.05)
    assert layer.tiers().host.tokens == layer.traffic.offloaded_tokens


def test_the_same_query_fetches_nothing_after_its_first_selection() -> None:
    # One query head a group: no page rises in a fixed order, so all that is ever new is the page just filled,
    # and that is on the device already.
    sequence = drifting(136, 40, 1, seed=0, drift=0.0)
    layer = started(ArkVale(budget=64, sink=8, window=16, page_size=8, dense_layers=0), sequence)
    for step in range(40):
        decode(layer, sequence, step)
        # Five pages: the newest of the prompt left the window at this very step.
        assert layer.traffic.fetched_tokens == NUM_KV_HEADS * 5 * 8


def test_the_index_is_two_keys_a_page() -> None:
    sequence = drifting(32_768, 40, 2, seed=0)
    layer = started(ArkVale(budget=128, sink=32, window=64, page_size=16, dense_layers=0), sequence)
    for step in range(40):
        decode(layer, sequence, step)
    num_tokens = sequence.length + 40
    expected = num_tokens * NUM_KV_HEADS * 2 * 8 * ITEM_SIZE / 16
    assert layer.index.summary_bytes == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 1000}, "budget=1000 is not a multiple of page_size=32: give 992 or 1024"),
        ({"budget": 96, "window": 32, "sink": 64}, r"budget=96 leaves no room .* at least 128,"),
        ({"sink": 40}, "sink=40 is not a multiple of page_size=32: give 32 or 64"),
        ({"sink": -32}, "sink=-32 .* at least 0"),
        ({"sink": "few"}, "sink='few' .* whole number"),
        ({"window": 40}, "window=40 is not a multiple of page_size=32: give 32 or 64"),
        ({"window": 0}, "window=0 .* at least 32"),
        ({"page_size": 0}, "page_size=0 .* at least 1"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ArkVale(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [96, 128])
def test_the_budget_must_hold_sinks_and_window_and_a_page_to_retrieve(budget: int) -> None:
    with pytest.raises(SettingsError, match=f"budget={budget}"):
        ArkVale(budget=budget, sink=32, window=96, page_size=32)
    assert ArkVale(budget=160, sink=32, window=96, page_size=32).budget == 160
