"""Answers with a tau of their own, decoded with others: each as alone with that tau."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from louiskv import FreeKV, LouisKV, LouisKVPlus, Method, Quest, SettingsError, StreamingLLM
from louiskv.engine import batch
from louiskv.ops import ragged
from tests.engine.asking import DEVICE, SMALL, alone, ended, engine, greedily, ids
from tests.engine.test_captured import Replayed

PLUS: dict[str, Any] = {"budget": 40, "sink": 3, "window": 12, "unit_size": 4, "dense_layers": 0}
METHODS: dict[str, LouisKV | LouisKVPlus | FreeKV] = {
    "louiskv": SMALL,
    "one for each layer": replace(SMALL, tau=(0.1, 0.3, 0.5)),
    "freekv": FreeKV(budget=40, sink=4, window=12, page_size=4, dense_layers=0),
    **{name: LouisKVPlus(trigger=name, tau=0.7, hold=0.0, **PLUS) for name in ("anchor", "cosine", "coverage")},
    "ahead": LouisKVPlus(trigger="anchor", tau=0.7, ahead=0.5, hold=0.0, **PLUS),
}
TAUS = (None, 0.99, -0.5, 0.6, None, 0.0)


def least(name: str) -> float:
    return 0.0 if name == "coverage" else -1.0


def with_tau(method: Method, tau: float | None) -> Method:
    return method if tau is None else method.for_sequence(tau)


@pytest.mark.parametrize("captured", [False, True], ids=["as it is", "captured"])
@pytest.mark.parametrize("name", METHODS)
def test_each_answer_is_as_alone_with_its_tau(name: str, captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS[name]
    if captured and DEVICE.type != "cuda":
        monkeypatch.setattr(ragged, "READABLE", set())
        monkeypatch.setattr(batch, "CapturedStep", Replayed)
        monkeypatch.setattr(batch, "why_not", lambda model, kv_cache: None)
    lengths, taus = (50, 60, 45, 90, 21, 64), [tau if tau is None else max(tau, least(name)) for tau in TAUS]
    with engine(method, rows=3, graph=captured) as running:
        asked = [greedily(ids(length, length), 40, tau=tau) for length, tau in zip(lengths, taus, strict=True)]
        answers = [running.submit(each) for each in asked]
        got = [ended(answer) for answer in answers]
    for length, tau, (tokens, last) in zip(lengths, taus, got, strict=True):
        assert last.finish_reason == "length", repr(last.error)
        assert tokens == alone(with_tau(method, tau), [ids(length, length)], 40)[0], f"tau {tau}"


def fired(method: Method, tau: float | None, **settings: Any) -> float:
    with engine(method, **settings) as running:
        ended(running.submit(greedily(ids(60), 60, tau=tau)))
        return running.figures().retrieval_rate


@pytest.mark.parametrize("name", ["louiskv", "anchor", "cosine", "coverage", "freekv"])
def test_a_greater_tau_retrieves_more_often(name: str) -> None:
    rates = [fired(METHODS[name], tau) for tau in (least(name), 0.5, 1.0)]
    assert rates[0] < rates[2]
    assert rates == sorted(rates)


def test_a_conversation_goes_on_with_the_tau_of_the_next_turn() -> None:
    first, more, never = ids(50), ids(20, 1), replace(SMALL, tau=-1.0)
    for taus in ((0.99, None), (None, 0.99)):
        with engine(never, kept_memory=2**30) as running:
            answer = ended(running.submit(greedily(first, 30, tau=taus[0])))[0]
            before = running._turns.counters.fired, running._turns.counters.steps
            _, last = ended(running.submit(greedily([*first, *answer, *more], 30, tau=taus[1])))
            assert last.finish_reason == "length", repr(last.error)
            counters = running._turns.counters
            rate = (counters.fired - before[0]) / (counters.steps - before[1])
        assert last.usage is not None
        assert last.usage.cached_tokens == 79
        # The first step of an answer fires in any case.
        assert (rate > 0.9) == (taus[1] == 0.99)
        assert (rate <= 1 / 29 + 1e-6) == (taus[1] is None)


@pytest.mark.parametrize(
    ("method", "tau", "message"),
    [
        (SMALL, 1.5, r"tau=1\.5 is not allowed: give a number from -1 to 1"),
        (Quest(budget=64, page_size=16, dense_layers=0), 0.5, "Quest compares nothing with it"),
        (StreamingLLM(budget=24, sink=2), 0.5, "StreamingLLM compares nothing with it"),
        (LouisKVPlus(**PLUS), 0.5, "LouisKVPlus compares nothing with it"),
        (METHODS["coverage"], -0.5, r"-0\.5 is not allowed: give a number from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused_at_once(method: Method, tau: float, message: str) -> None:
    with engine(method) as running, pytest.raises(SettingsError, match=message):
        running.submit(greedily(ids(20), 5, tau=tau))


def test_a_copy_of_a_row_has_its_tau() -> None:
    with engine(SMALL) as running:
        answer = running.submit(greedily(ids(50), 20, tau=0.99, hand_back=True))
        ended(answer)
    assert answer.conversation is not None
    state: Any = answer.conversation.cache.managed[0].state
    query = torch.randn(1, 4, 8)
    assert state.trigger.taus.of(query).tolist() == pytest.approx([0.99])
    answer.conversation.cache.batch_repeat_interleave(3)
    assert state.trigger.taus.of(query.expand(3, -1, -1)).tolist() == pytest.approx([0.99] * 3)
