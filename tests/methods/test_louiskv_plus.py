"""LouisKV+ against a slow oracle of what its parts say together, written with lists and loops, and its settings."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv import LouisKVPlus, Retrieval, SettingsError
from louiskv.methods.retrieval_layer import RetrievalLayer
from louiskv.triggers import Coverage
from louiskv.units.clusters import Clusters
from tests.methods.oracle import NUM_KV_HEADS, SCALING, Sequence, decode, drifting, started
from tests.methods.test_retrieval import full_attention
from tests.ops.test_kmeans import kmeans_by_loops


def in_8_bits(row: Tensor) -> Tensor:
    step = (row.abs().max() / 127).half().double()
    return (row / step).round().clamp(-127, 127) * step if step else torch.zeros_like(row)


@dataclass
class Unit:
    """Positions of its tokens, and what the index keeps of them, in float64."""

    positions: list[int]
    key: Tensor
    value: Tensor
    guesses: dict[int, Tensor]

    @classmethod
    def of(cls, positions: list[int], keys: Tensor, values: Tensor) -> "Unit":
        key, value = (in_8_bits(states[positions].double().mean(0)) for states in (keys, values))
        off = keys[positions].double() - key
        spread = off.abs().mean().half().double()
        guesses = {
            place: key + torch.where(row >= 0, spread, -spread) for place, row in zip(positions, off, strict=True)
        }
        return cls(positions, key, value, guesses)


@dataclass
class Head:
    """One KV head: its units, where its window starts, what is resident of its units, and what its trigger knows."""

    keys: Tensor
    values: Tensor
    start: int
    units: list[Unit] = field(default_factory=list)
    resident: set[int] = field(default_factory=set)
    anchor: Tensor | None = None
    peak: float = 0.0

    def close(self, count: int, unit_size: int, iterations: int) -> list[int]:
        """Cluster the oldest tokens of the window; returns them in the order of their clusters."""
        leaving = list(range(self.start, self.start + count))
        self.start += count
        num_clusters = max(1, count // unit_size)
        labels = kmeans_by_loops(self.keys[leaving], num_clusters, iterations)
        members = [
            [place for place, label in zip(leaving, labels, strict=True) if label == cluster]
            for cluster in range(num_clusters)
        ]
        self.units += [Unit.of(each, self.keys, self.values) for each in members if each]
        return [place for each in members for place in each]


class PlusOracle:
    """One sequence, one KV head after the other."""

    def __init__(self, method: LouisKVPlus, sequence: Sequence) -> None:
        self.method, self.parts = method, method.parts()
        assert isinstance(self.parts.output, Clusters)
        self.run, self.output_unit = self.parts.output.output_size, self.parts.output.unit_size
        self.heads = [Head(*head, method.sink) for head in zip(sequence.keys, sequence.values, strict=True)]
        behind = max(0, sequence.length - method.sink)
        excess = max(0, behind - method.window)
        leaving = min(behind, math.ceil(excess / method.unit_size) * method.unit_size)
        for head in self.heads if leaving else []:
            head.close(leaving, method.unit_size, method.iterations)

    def room(self, in_window: int) -> int:
        """Tokens that may be retrieved while so many are in the window."""
        method = self.method
        if method.trigger != "every":
            return method.budget - method.sink - method.window
        # What a window that has just given up a run leaves free is retrieved, for the next step selects anew.
        least = min(method.window, method.window - self.run + 1)
        return method.budget - method.sink - max(least, in_window)

    def step(self, position: int, query: Tensor) -> tuple[Tensor, list[bool]]:
        """Output [Hq, Dv], and which KV heads have fired."""
        outs, fired = [], []
        for head, group in zip(self.heads, query.double().unflatten(0, (len(self.heads), -1)), strict=True):
            if position >= self.method.sink and position - head.start == self.method.window:
                gone = head.close(self.run, self.output_unit, self.method.iterations)
                room = self.room(position - head.start)
                head.resident |= set(gone[: max(0, room - len(head.resident))])
            fired.append(self.fires(head, group, position))
            if fired[-1] and head.units:
                head.resident = self.select(head, group, position)
                head.peak = self.covered(head, group, position)
            outs.append(self.attend(head, group, position))
        return torch.cat(outs), fired

    def always(self, head: Head, position: int) -> list[int]:
        return [*range(min(self.method.sink, position + 1)), *range(head.start, position + 1)]

    def shares(self, head: Head, group: Tensor, position: int) -> list[Tensor]:
        """For each unit the logarithm [G] of the share of all attention that one of its tokens gets."""
        logits = [SCALING * group @ unit.key for unit in head.units]
        total = (SCALING * group @ head.keys[self.always(head, position)].double().T).exp().sum(1)
        for unit, logit in zip(head.units, logits, strict=True):
            total = total + len(unit.positions) * logit.exp()
        return [logit - total.log() for logit in logits]

    def fires(self, head: Head, group: Tensor, position: int) -> bool:
        if self.method.trigger == "every":
            return True
        trigger = self.parts.trigger
        assert isinstance(trigger, Coverage) and isinstance(trigger.rho, float)
        direction = group / group.norm(dim=-1, keepdim=True)
        fires = head.anchor is None
        if head.anchor is not None and head.units:
            cosine = float((direction * head.anchor).sum(-1).mean())
            if cosine < trigger.guard:
                covered = self.covered(head, group, position)
                head.peak = max(head.peak, covered)
                fires = covered < trigger.rho * head.peak
        if fires:
            head.anchor, head.peak = direction, 0.0
        return fires

    def covered(self, head: Head, group: Tensor, position: int) -> float:
        mass = [float(share.exp().sum()) for share in self.shares(head, group, position)]
        pairs = list(zip(mass, (set(unit.positions) for unit in head.units), strict=True))
        covered = sum(each * len(places & head.resident) for each, places in pairs)
        return covered / sum(each * len(places) for each, places in pairs)

    def select(self, head: Head, group: Tensor, position: int) -> set[int]:
        shares, room = self.shares(head, group, position), self.room(position + 1 - head.start)
        best = sorted(range(len(shares)), key=lambda unit: -float(shares[unit].exp().mean()))
        looked_at = [place for unit in best for place in head.units[unit].positions][: room * self.method.oversample]
        scores = {}
        for unit, share in zip(head.units, shares, strict=True):
            for place, guess in unit.guesses.items():
                if place in looked_at or place in head.resident:
                    score = math.log(float((share + SCALING * group @ (guess - unit.key)).exp().mean()))
                    scores[place] = score + self.method.hold * (place in head.resident)
        return set(sorted(scores, key=lambda place: -scores[place])[:room])

    def attend(self, head: Head, group: Tensor, position: int) -> Tensor:
        exact = [*self.always(head, position), *sorted(head.resident)]
        logits, values = [SCALING * group @ head.keys[exact].double().T], [head.values[exact].double()]
        for unit in head.units:
            left = len(set(unit.positions) - head.resident)
            logits.append((SCALING * group @ unit.key)[:, None].expand(-1, left))
            values.append(unit.value.expand(left, -1))
        return torch.cat(logits, 1).softmax(1) @ torch.cat(values)


SMALL = LouisKVPlus(budget=60, sink=3, window=36, unit_size=4, dense_layers=0)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    length=st.integers(1, 120),
    steps=st.integers(1, 50),
    sink=st.integers(0, 5),
    window=st.sampled_from([1, 2, 9, 16, 33, 64, 70]),
    retrieved=st.integers(1, 24),
    unit_size=st.sampled_from([2, 4, 5]),
    tau=st.sampled_from([0.0, 0.7, 0.9, 1.0, None]),
    hold=st.sampled_from([0.0, 0.5, 2.0]),
    oversample=st.integers(1, 4),
    group_size=st.sampled_from([1, 3]),
    seed=st.integers(0, 999),
)
def test_agrees_with_the_oracle_step_by_step(
    length: int,
    steps: int,
    sink: int,
    window: int,
    retrieved: int,
    unit_size: int,
    tau: float | None,
    hold: float,
    oversample: int,
    group_size: int,
    seed: int,
) -> None:
    method = LouisKVPlus(
        budget=sink + window + retrieved,
        sink=sink,
        window=window,
        trigger="every" if tau is None else "coverage",
        tau=tau or 0.0,
        hold=hold,
        unit_size=unit_size,
        oversample=oversample,
        dense_layers=0,
        iterations=3,
    )
    sequence = drifting(length, steps, group_size, seed, drift=0.4)
    oracle, layer = PlusOracle(method, sequence), started(method, sequence)
    for step, query in enumerate(sequence.queries):
        got = decode(layer, sequence, step)
        expected, fired = oracle.step(length + step, query)
        assert layer.telemetry.fired.tensor()[-1, 0].tolist() == fired
        torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-4)
        held = layer.attended_positions()[:, sink + window :].tolist()
        assert [{place for place in row if place >= 0} for row in held] == [head.resident for head in oracle.heads]
    layer.check_integrity()


def test_the_estimate_brings_it_nearer_to_full_attention_than_its_budget() -> None:
    sequence = drifting(600, 20, 2, seed=0)
    parts = SMALL.parts()
    assert parts.estimate and parts.oversample
    errors = []
    for method in (SMALL, Retrieval(budget=SMALL.budget, sink=3, window=36, units=parts.units, dense_layers=0)):
        layer = started(method, sequence)
        outs = [decode(layer, sequence, step) - full_attention(sequence, step) for step in range(20)]
        errors.append(float(torch.stack(outs).norm()))
    assert errors[0] < 0.8 * errors[1]


def test_the_index_has_a_byte_a_number_of_each_cluster_and_a_bit_a_number_of_each_key() -> None:
    sequence = drifting(8_192, 40, 2, seed=0)
    layer = started(LouisKVPlus(budget=128, sink=16, window=32, unit_size=16, dense_layers=0), sequence)
    per_token = 8 / 8 + (8 + 8 + 3 * 2) / 16
    for step in range(40):
        decode(layer, sequence, step)
    in_units = int(layer.pool.lengths.sum())
    # Room to grow comes on top.
    assert in_units * per_token * 0.95 <= layer.index.summary_bytes <= in_units * per_token * 1.2
    assert layer.traffic.offloaded_tokens == in_units
    assert layer.attended <= 128


def test_what_is_retrieved_at_once_is_the_budget_and_then_little_moves() -> None:
    sequence = drifting(2_000, 30, 2, seed=0, drift=0.02)
    method = LouisKVPlus(budget=256, sink=16, window=64, dense_layers=0)
    layer = started(method, sequence)
    decode(layer, sequence, 0)
    # The prompt left a full window, of which a run of 32 went.
    room = (256 - 16 - 33) * NUM_KV_HEADS
    # Of the run that has just left the window some is resident already.
    assert layer.telemetry.selected.read() == room >= layer.traffic.fetched_tokens
    for step in range(1, 30):
        decode(layer, sequence, step)
    assert layer.traffic.fetched_tokens < 1.5 * room


@pytest.mark.parametrize("budget", [16, 64, 128, 256])
def test_it_works_in_a_small_budget(budget: int) -> None:
    method = replace(LouisKVPlus().at_budget(budget), dense_layers=0)
    sequence = drifting(300, 40, 2, seed=0)
    layer = started(method, sequence)
    for step in range(40):
        assert decode(layer, sequence, step).isfinite().all()
        assert layer.attended <= budget
    layer.check_integrity()


def test_the_first_layers_keep_everything() -> None:
    method = LouisKVPlus(dense_layers=2)
    kinds = [isinstance(method.layer(index), RetrievalLayer) for index in range(4)]
    assert kinds == [False, False, True, True]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 80, "sink": 16, "window": 64}, "budget=80 .* at least 81, for sink=16, window=64 and 1 "),
        ({"trigger": "coverage", "tau": 1.5}, r"rho=1.5 .* from 0 to 1"),
        ({"trigger": "anchor", "tau": float("nan")}, "tau=nan"),
        ({"trigger": "never"}, "trigger='never' .* every, anchor, cosine, coverage"),
        ({"trigger": "anchor", "cap": 0}, "cap=0 .* at least 1"),
        ({"ahead": 1.1}, "ahead=1.1 .* from 0 to 1"),
        ({"pool_bits": 5}, "pool_bits=5"),
        ({"max_looked": 0}, "max_looked=0 .* at least 1"),
        ({"hold": -0.5}, r"hold=-0.5 .* from 0 to 100"),
        ({"oversample": 1.5}, "oversample=1.5 .* whole number"),
        ({"sink": -1}, "sink=-1 .* at least 0"),
        ({"window": 0}, "window=0 .* at least 1"),
        ({"unit_size": 2.5}, "unit_size=2.5 .* whole number"),
        ({"chunk_size": 8, "unit_size": 16}, "chunk_size=8 .* at least 16"),
        ({"dense_layers": True}, "dense_layers=True"),
        ({"iterations": 0}, "iterations=0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        LouisKVPlus(**wrong)  # type: ignore[arg-type]
