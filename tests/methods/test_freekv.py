"""FreeKV against a slow oracle of its paper, the thread it fetches in, what it moves, and its settings."""

import math
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv import FreeKV, SettingsError
from louiskv.methods.retrieval_layer import RetrievalLayer
from louiskv.store.background import Background
from louiskv.store.device import Change
from louiskv.store.pool import Pool
from louiskv.store.transfer import Transfer
from tests.methods.oracle import (
    ITEM_SIZE,
    NUM_KV_HEADS,
    Oracle,
    Sequence,
    Vector,
    agree_step_by_step,
    attended_positions,
    best,
    bound,
    by_group,
    decode,
    dot,
    drifting,
    mean_share,
    started,
)

PATIENCE = 20.0
SMALL = FreeKV(budget=24, sink=4, window=8, page_size=4, tau=-1.0, dense_layers=0)


class FreeKVOracle(Oracle):
    """Sinks, the newest tokens, and the pages that the query before chose, unless the query has turned since."""

    def __init__(self, method: FreeKV, sequence: Sequence) -> None:
        super().__init__(sequence)
        self.method = method
        self.previous: list[list[Vector]] | None = None
        self.corrections: list[int] = []
        self.offloaded = self.num_pages(self.length) * method.page_size * NUM_KV_HEADS

    def page(self, number: int) -> range:
        first = self.method.sink + number * self.method.page_size
        return range(first, first + self.method.page_size)

    def num_pages(self, length: int) -> int:
        """As few as must leave so that the rest of so many tokens fits behind the sinks."""
        return math.ceil(max(0, length - self.method.sink - self.method.window) / self.method.page_size)

    def step(self, position: int, query: list[list[Vector]]) -> list[set[int]]:
        sink, num_pages = self.method.sink, self.num_pages(position + 1)
        newest = range(sink + num_pages * self.method.page_size, position + 1)
        # A selection serves the next step as well, when the window holds one token more if it can.
        beside = self.method.budget - sink - min(self.method.window, len(newest) + 1)
        room = beside // self.method.page_size
        attended = []
        self.corrections.append(0)
        for head, group in enumerate(query):
            if self.num_pages(position) < num_pages:
                self.stay(head, list(self.page(num_pages - 1)), room * self.method.page_size)
            chosen = self.choose(self.keys[head], num_pages, group)[:room]
            wanted = {place for page in chosen for place in self.page(page)}
            if self.turned(head, group):
                self.corrections[-1] += 1
                self.retrieve(head, wanted)
            attended.append(self.retrieved[head] | {*range(min(sink, position + 1)), *newest})
            self.retrieve(head, wanted)
        self.previous = query
        return attended

    def turned(self, head: int, group: list[Vector]) -> bool:
        if self.previous is None:
            return True
        cosines = [
            dot(new, old) / math.sqrt(dot(new, new) * dot(old, old))
            for new, old in zip(group, self.previous[head], strict=True)
        ]
        return sum(cosines) / len(cosines) < self.method.tau

    def choose(self, keys: list[Vector], num_pages: int, group: list[Vector]) -> list[int]:
        logits: list[Vector] = [[] for _ in group]
        for page in range(num_pages):
            channels = list(zip(*(keys[place] for place in self.page(page)), strict=True))
            high, low = [max(channel) for channel in channels], [min(channel) for channel in channels]
            for row, each in zip(logits, group, strict=True):
                row.append(bound(each, high, low))
        return best(mean_share(logits))


# Queries that stay small: scores are not scaled, and a share that float32 takes for 0 would tie.
def gently(length: int, steps: int, group_size: int, seed: int) -> Sequence:
    return drifting(length, steps, group_size, seed, drift=0.25)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    length=st.integers(1, 90),
    steps=st.integers(24, 48),
    sink=st.integers(0, 5),
    page_size=st.sampled_from([1, 3, 4, 6]),
    more_window=st.integers(0, 7),
    num_retrieved=st.integers(1, 4),
    tau=st.sampled_from([-1.0, 0.95, 0.98, 1.0]),
    group_size=st.sampled_from([2, 3]),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int,
    steps: int,
    sink: int,
    page_size: int,
    more_window: int,
    num_retrieved: int,
    tau: float,
    group_size: int,
    seed: int,
) -> None:
    window = page_size + more_window
    method = FreeKV(
        budget=(math.ceil((sink + window) / page_size) + num_retrieved) * page_size,
        sink=sink,
        window=window,
        tau=tau,
        page_size=page_size,
        dense_layers=0,
    )
    sequence = gently(length, steps, group_size, seed)
    oracle = FreeKVOracle(method, sequence)
    layer = agree_step_by_step(method, sequence, oracle)
    assert layer.telemetry.fired.tensor().sum((1, 2)).tolist() == oracle.corrections
    assert oracle.corrections[0] == NUM_KV_HEADS, "nothing was selected before the first step"
    if tau in (-1.0, 1.0):
        assert set(oracle.corrections[1:]) == {NUM_KV_HEADS if tau == 1.0 else 0}


def test_each_head_is_corrected_by_its_own_group() -> None:
    sequence = gently(60, 12, 2, seed=0)
    # Only the group of the last KV head turns, halfway; both of its heads together, one more than the other.
    queries = sequence.queries[:1].repeat(12, 1, 1)
    queries[6:, 2] *= -1
    queries[6:, 3] += sequence.queries[1, 3]
    layer = started(FreeKV(budget=24, sink=4, window=8, page_size=4, tau=0.5, dense_layers=0), sequence)
    for step in range(12):
        decode(layer, Sequence(60, sequence.keys, sequence.values, queries), step)
    fired = layer.telemetry.fired.tensor()[:, 0].int().tolist()
    assert fired == [[1, 1], *[[0, 0]] * 5, [0, 1], *[[0, 0]] * 5]


def test_the_set_of_one_step_serves_the_next() -> None:
    sequence = drifting(120, 20, 2, seed=3, drift=0.0)
    turned = sequence.queries.clone()
    turned[15:] *= -1
    sequence = Sequence(120, sequence.keys, sequence.values, turned)
    oracle, layer = FreeKVOracle(SMALL, sequence), started(SMALL, sequence)
    pages_of_step = []
    for step in range(17):
        decode(layer, sequence, step)
        places = attended_positions(layer, sequence.keys)
        numbers = range(oracle.num_pages(120 + step + 1))
        pages_of_step.append([{page for page in numbers if oracle.page(page)[0] in held} for held in places])
    for head in range(NUM_KV_HEADS):
        for step in (14, 15):
            group = by_group(sequence.queries[step])[head]
            chosen = oracle.choose(oracle.keys[head], oracle.num_pages(120 + step + 1), group)[:3]
            assert pages_of_step[step + 1][head] == set(chosen)
        assert pages_of_step[15][head] != pages_of_step[16][head]


class Watched:
    """`Transfer.fetch` with a gate: who called it, and whether it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # What a test before this one left behind comes first.
        behind = Background[None]()
        behind.start(lambda: None)
        behind.collect()
        self.threads: list[int] = []
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        fetch = Transfer.fetch

        def watched(transfer: Transfer, pool: Pool, change: Change, slots: Tensor, impl: str | None) -> None:
            self.threads.append(threading.get_ident())
            if threading.current_thread() is not threading.main_thread():
                self.entered.set()
                assert self.gate.wait(PATIENCE)
                if self.error is not None:
                    raise self.error
            fetch(transfer, pool, change, slots, impl)

        monkeypatch.setattr(Transfer, "fetch", watched)


def is_fetching(layer: RetrievalLayer) -> bool:
    return layer.ahead.pending


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_only_corrections_fetch_in_the_thread_of_the_caller(watched: Watched) -> None:
    sequence = drifting(100, 10, 2, seed=0)
    layer = started(SMALL, sequence)
    for step in range(10):
        decode(layer, sequence, step)
    layer.check_integrity()
    here = threading.get_ident()
    # It has nothing to attend to but what it fetches itself, and the next step wants the same.
    assert watched.threads[0] == here, "the first step"
    assert here not in watched.threads[1:]
    assert len(set(watched.threads[1:])) == 1, "one worker"
    assert len(watched.threads) == 10


def test_a_step_does_not_wait_for_the_fetch(watched: Watched) -> None:
    sequence = drifting(100, 4, 2, seed=0)
    expected_layer = started(SMALL, sequence)
    expected = [decode(expected_layer, sequence, step) for step in range(4)]
    layer = started(SMALL, sequence)
    decode(layer, sequence, 0)
    watched.gate.clear()
    watched.entered.clear()
    try:
        # The step returns while the gate is shut: what it attends to does not come through there.
        got = decode(layer, sequence, 1)
        assert watched.entered.wait(PATIENCE)
        assert is_fetching(layer)
        resident = attended_positions(layer, sequence.keys)
    finally:
        watched.gate.set()
    torch.testing.assert_close(got, expected[1], atol=0, rtol=0)
    assert attended_positions(layer, sequence.keys) == resident, "nothing lands before the next step"
    for step in (2, 3):
        torch.testing.assert_close(decode(layer, sequence, step), expected[step], atol=0, rtol=0)
    layer.check_integrity()
    assert not is_fetching(layer)


def test_an_error_of_the_fetch_reaches_the_next_step(watched: Watched) -> None:
    sequence = drifting(100, 4, 2, seed=0)
    expected_layer = started(SMALL, sequence)
    for step in range(3):
        decode(expected_layer, sequence, step)
    layer = started(SMALL, sequence)
    decode(layer, sequence, 0)
    watched.error = OSError("the host is gone")
    decode(layer, sequence, 1)
    with pytest.raises(OSError, match="the host is gone"):
        decode(layer, sequence, 2)
    watched.error = None
    assert not is_fetching(layer)
    layer.check_integrity()
    decode(layer, sequence, 2)
    layer.check_integrity()
    assert layer.resident.lengths.tolist() == expected_layer.resident.lengths.tolist(), "the step was not taken twice"


@pytest.mark.parametrize("ask", ["traffic", "tiers", "check", "select", "crop", "prompt"])
def test_whatever_is_asked_between_two_steps_sees_what_was_fetched(ask: str, watched: Watched) -> None:
    sequence = drifting(100, 2, 2, seed=0)
    layer = started(SMALL, sequence)
    decode(layer, sequence, 0)
    assert not is_fetching(layer), "a step that has selected for itself selects nothing ahead"
    decode(layer, sequence, 1)
    assert is_fetching(layer)
    more = sequence.keys[None, :, :1], sequence.values[None, :, :1]
    {
        "traffic": lambda: layer.traffic,
        "tiers": layer.tiers,
        "check": layer.check_integrity,
        "select": lambda: layer.select_batch(torch.tensor([0, 0])),
        "crop": lambda: layer.crop(torch.tensor([1])),
        "prompt": lambda: layer.absorb(*more, None),
    }[ask]()
    assert not is_fetching(layer)
    layer.check_integrity()


def test_the_index_is_two_keys_a_page_and_each_page_goes_to_the_host_once() -> None:
    sequence = drifting(32_768, 40, 2, seed=0)
    layer = started(FreeKV(budget=256, sink=32, window=64, page_size=16, dense_layers=0), sequence)
    for step in range(40):
        decode(layer, sequence, step)
    num_tokens = sequence.length + 40
    per_token = 2 * 8 * ITEM_SIZE / 16
    assert layer.index.summary_bytes == pytest.approx(num_tokens * NUM_KV_HEADS * per_token, rel=0.05)
    assert layer.traffic.offloaded_bytes == pytest.approx(num_tokens * NUM_KV_HEADS * sequence.token_size, rel=0.05)
    assert layer.tiers().host.tokens == layer.traffic.offloaded_tokens


def test_the_first_selection_fills_the_budget_and_the_same_query_hardly_moves_more() -> None:
    sequence = drifting(4_096, 64, 1, seed=0, drift=0.0)
    method = FreeKV(budget=2048, sink=512, window=512, page_size=32, dense_layers=0)
    layer = started(method, sequence)
    decode(layer, sequence, 0)
    retrieved = (2048 - 512 - 512) * NUM_KV_HEADS * sequence.token_size
    assert layer.traffic.fetched_bytes == pytest.approx(retrieved, rel=0.05)
    for step in range(1, 64):
        decode(layer, sequence, step)
    # Two pages of each head leave the window and may be wanted back.
    pages = 2 * 32 * NUM_KV_HEADS * sequence.token_size
    assert layer.traffic.fetched_bytes <= retrieved * 1.05 + pages


def test_the_settings_of_the_paper() -> None:
    method = FreeKV.long_output()
    assert (method.budget, method.sink, method.window, method.tau) == (2048, 512, 512, 0.9)
    assert (method.page_size, method.dense_layers) == (32, 1)
    assert (FreeKV().sink, FreeKV().window, FreeKV().tau) == (128, 128, 0.8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 1000}, "budget=1000 is not a multiple of page_size=32: give 992 or 1024"),
        ({"budget": 256}, r"budget=256 leaves no room .* at least 288,"),
        ({"budget": 0}, "budget=0 .* at least 1"),
        ({"sink": -1}, "sink=-1 .* at least 0"),
        ({"sink": 1.5}, "sink=1.5 .* whole number"),
        ({"window": 0}, "window=0 .* at least 1"),
        ({"window": 31}, "window=31 .* at least 32"),
        ({"tau": 1.1}, "tau=1.1 .* from -1 to 1"),
        ({"tau": math.nan}, "tau=nan .* from -1 to 1"),
        ({"tau": "high"}, "tau='high' .* number"),
        ({"page_size": 0}, "page_size=0 .* at least 1"),
        ({"dense_layers": -1}, "dense_layers=-1 .* at least 0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        FreeKV(**wrong)  # type: ignore[arg-type]
