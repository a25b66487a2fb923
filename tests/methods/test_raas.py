"""RaaS against a slow oracle of its paper, what it does with a prompt, and its settings."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import Eviction, RaaS, SettingsError
from louiskv.importance import TimeStamps
from tests.methods.eviction_oracle import EvictionOracle, Token, agree_step_by_step, mean, random_talk, take_prompt
from tests.methods.oracle import NUM_KV_HEADS, Vector


class RaaSOracle(EvictionOracle):
    """One stamp a page: the position of the last query that gave it more than the threshold."""

    watched = 32

    def __init__(self, method: RaaS) -> None:
        super().__init__(method.budget, window=method.page_size)
        self.page_size, self.threshold = method.page_size, method.threshold
        self.stamps: dict[int, int] = {}
        self.for_good: list[Token] = []

    def page(self, token: Token) -> int:
        return token.position // self.page_size

    def note(self, tokens: list[Token], weights: list[Vector], logits: list[Vector], time: int) -> None:
        super().note(tokens, weights, logits, time)
        mass: dict[int, float] = {}
        for token in tokens:
            mass[self.page(token)] = mass.get(self.page(token), 0) + mean(token.weights[-1])
        self.stamps |= {page: time for page, each in mass.items() if each > self.threshold}

    def take_in(self, new: list[Token]) -> None:
        """A prompt that leaves room for two pages stays; a page of nothing else needs no stamp."""
        super().take_in(new)
        if len(self.for_good) + len(new) <= self.budget - 2 * self.page_size:
            self.for_good += new
            stamped = {self.page(token) for token in self.tokens if token not in self.for_good}
            self.stamps = {page: stamp for page, stamp in self.stamps.items() if page in stamped}

    def score(self, token: Token) -> float:
        return math.inf if token in self.for_good else self.stamps.get(self.page(token), 0)

    def make_room(self, num_new: int, window: int) -> None:
        """Page after page, the oldest stamp first, until there is room; the pages of the newest tokens stay."""
        newest = (self.length - window) // self.page_size
        while len(self.tokens) + num_new > self.budget:
            may_go = [token for token in self.tokens if token not in self.for_good and self.page(token) < newest]
            first = min(may_go, key=lambda token: (self.score(token), token.position))
            self.drop([token for token in may_go if self.page(token) == self.page(first)])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    length=st.integers(1, 60),
    steps=st.integers(24, 60),
    page_size=st.sampled_from([1, 2, 4, 5]),
    num_pages=st.integers(3, 12),
    threshold=st.sampled_from([1e-4, 0.02, 0.1, 0.3]),
    second=st.integers(1, 20),
    group_size=st.sampled_from([1, 2, 3]),
    plain=st.booleans(),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int,
    steps: int,
    page_size: int,
    num_pages: int,
    threshold: float,
    second: int,
    group_size: int,
    plain: bool,
    seed: int,
) -> None:
    method = RaaS(budget=num_pages * page_size, page_size=page_size, threshold=threshold)
    talk = random_talk([(length, steps), (second, 5)], group_size, seed, plain=plain)
    agree_step_by_step(method, talk, [RaaSOracle(method) for _ in range(NUM_KV_HEADS)])


@pytest.mark.parametrize("length", [1, 15, 16])
def test_a_prompt_that_leaves_two_pages_stays_for_good(length: int) -> None:
    method = RaaS(budget=24, page_size=4, threshold=0.1)
    talk = random_talk([(length, 60)], 2, seed=0)
    layer = agree_step_by_step(method, talk, [RaaSOracle(method) for _ in range(NUM_KV_HEADS)])
    for held in layer.kept.positions.tolist():
        assert set(range(length)) <= set(held)


def test_a_longer_prompt_must_give_way() -> None:
    method = RaaS(budget=24, page_size=4, threshold=0.1)
    talk = random_talk([(17, 60)], 2, seed=0)
    layer = agree_step_by_step(method, talk, [RaaSOracle(method) for _ in range(NUM_KV_HEADS)])
    for held in layer.kept.positions.tolist():
        assert not set(range(17)) <= set(held)


@pytest.mark.parametrize("length", [40, 62, 90])
def test_stamps_leave_a_wide_window_its_place(length: int) -> None:
    method = Eviction(budget=128, sink=0, window=50, importance=TimeStamps(16))
    talk = random_talk([(length, 0)], 2, seed=0)
    layer = method.layer(0)
    take_prompt(layer, talk, slice(0, length))
    rows = torch.randn(1, NUM_KV_HEADS, 1, talk.keys.shape[2])
    for step in range(100):
        layer.append(rows, rows)
        layer.attend(torch.randn(1, talk.queries.shape[1], 1, talk.keys.shape[2]), talk.options)
        newest = range(max(0, length + step + 1 - 50), length + step + 1)
        for held in layer.kept.positions.tolist():  # type: ignore[attr-defined]
            assert set(newest) <= set(held)
    layer.check_integrity()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 1000}, "budget=1000 is not a multiple of page_size=16: give 992 or 1008"),
        ({"budget": 32}, "budget=32 leaves nothing that may be dropped: .* at least 48"),
        ({"budget": 0}, "budget=0 .* at least 1"),
        ({"budget": "many"}, "budget='many' .* whole number"),
        ({"page_size": 0}, "page_size=0 .* at least 1"),
        ({"page_size": 2.5}, "page_size=2.5 .* whole number"),
        ({"threshold": -0.1}, "threshold=-0.1 .* from 0 to 1"),
        ({"threshold": 2}, "threshold=2 .* from 0 to 1"),
        ({"threshold": "low"}, "threshold='low' .* from 0 to 1"),
        ({"dense_layers": -1}, "dense_layers=-1 .* at least 0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RaaS(**wrong)  # type: ignore[arg-type]
