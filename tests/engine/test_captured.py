"""Steps replayed from a graph while rows come and go: on a GPU for real, elsewhere by a stand-in for the graph."""

from typing import Any

import pytest
import torch

from louiskv.cache import LouisKVCache
from louiskv.captured import CapturedStep, EagerStep
from louiskv.engine import batch
from louiskv.ops import ragged
from louiskv.state import tensors_of
from tests.engine.asking import DEVICE, alone, ended, engine, greedily, ids
from tests.methods.test_contract import CASES, NAMES

# These say themselves that the host decides what a step does.
CAPTURED = sorted(set(NAMES) - {"oracle_top_k", "full_offloaded"})
COUNTERS = ("lengths", "seq_length", "steps", "output_tokens")


class Replayed(CapturedStep):
    """Runs a step anew where a graph would be replayed: on the tensors that the graph holds, and on no others."""

    def __init__(self, model: Any, kv_cache: LouisKVCache, positions: torch.Tensor) -> None:
        EagerStep.__init__(self, model, kv_cache, positions)
        self.num_captured = 0
        self._graphs: dict[Any, Any] = {}
        self._seen, self._held = set(), None

    def _capture(self, kind: tuple[bool, ...]) -> None:
        for layer in self.kv_cache.managed:
            layer.count_step()
        self._graphs[kind] = self, torch.empty(len(self.tokens), self.model.config.vocab_size)
        self.num_captured += 1

    def replay(self) -> None:
        held = self._held
        assert held is not None
        for path, _, tensor in tensors_of(held.states):
            assert tensor is held.tensors[path], f"the graph has another {path}"
        # The host counts outside of a graph.
        counted = [{name: getattr(layer, name) for name in COUNTERS} for layer in self.kv_cache.managed]
        logits = self._whole_step()
        for _, into in self._graphs.values():
            into.copy_(logits)
        assert held.settle()
        for layer, values in zip(self.kv_cache.managed, counted, strict=True):
            for name, value in values.items():
                setattr(layer, name, value)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type != "cuda":
        monkeypatch.setattr(ragged, "READABLE", set())
        monkeypatch.setattr(batch, "CapturedStep", Replayed)
        monkeypatch.setattr(batch, "why_not", lambda model, kv_cache: None)


@pytest.mark.parametrize("name", CAPTURED)
def test_rows_come_and_go_and_the_graph_stays(name: str) -> None:
    method = CASES[name][1]
    lengths, wanted = (50, 7, 33, 90, 21, 64), (60, 25, 39, 18, 50, 15)
    with engine(method, rows=4, graph=True) as running:
        answers = [
            running.submit(greedily(ids(length, length), number))
            for length, number in zip(lengths, wanted, strict=True)
        ]
        lasts = [ended(answer) for answer in answers]
        figures = running.figures()
    for length, number, (answer, last) in zip(lengths, wanted, lasts, strict=True):
        assert last.error is None
        assert answer == alone(method, [ids(length, length)], number)[0], f"the prompt of {length}"
    assert 0 < figures.captured < 25, "far fewer than steps"


def test_joining_with_room_captures_nothing_anew() -> None:
    method = CASES["louiskv"][1]
    with engine(method, rows=2, graph=True) as running:
        long = running.submit(greedily(ids(300), 300))
        second = running.submit(greedily(ids(20), 30))
        ended(second)
        step = running._turns.batch._step
        assert isinstance(step, CapturedStep)
        held = step._held
        assert held is not None
        for seed in range(5):
            ended(running.submit(greedily(ids(30, seed), 6)))
        assert running._turns.batch._step is step
        # Another kind of step may have been captured beside those that there were, but none anew.
        assert step._held is held
        long.cancel()
