"""LouisKV against a slow oracle of the paper, written with lists and loops, and its settings."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv import LouisKV, SettingsError
from louiskv.methods.base import AttentionOptions
from louiskv.methods.retrieval_layer import RetrievalLayer
from tests.ops.test_kmeans import kmeans_by_loops


@dataclass
class Unit:
    positions: list[int]
    resident: int = 0

    def mean_key(self, keys: Tensor) -> Tensor:
        return keys[self.positions].double().mean(0)


@dataclass
class Head:
    """One KV head: all keys and values by position, its units, its window, and where runs begin in it."""

    keys: Tensor
    values: Tensor
    units: list[Unit] = field(default_factory=list)
    window: list[int] = field(default_factory=list)
    starts: set[int] = field(default_factory=set)
    opened: int = 0

    def oldest(self, least: int, longest: int) -> list[int]:
        """The first run: of fewer tokens than `least` only if there are no more."""
        ends = [place for place, position in enumerate(self.window) if place >= least and position in self.starts]
        return self.window[: min([longest, *ends])]


class Oracle:
    """LouisKV on one sequence, as section 1 of the paper's method and our choices say it."""

    def __init__(self, method: LouisKV, keys: Tensor, values: Tensor) -> None:
        self.method = method
        self.previous: Tensor | None = None
        self.heads = [Head(*head) for head in zip(keys, values, strict=True)]
        length = keys.shape[1]
        for head in self.heads:
            later = list(range(min(method.sink, length), length))
            excess = max(0, len(later) - method.window)
            leaving = min(len(later), -(-excess // method.unit_size) * method.unit_size)
            if leaving:
                pushed_out = later[:leaving]
                num_clusters = max(1, leaving // method.unit_size)
                labels = kmeans_by_loops(head.keys[pushed_out], num_clusters, method.iterations)
                for cluster in range(num_clusters):
                    members = [place for place, label in zip(pushed_out, labels, strict=True) if label == cluster]
                    if members:
                        head.units.append(Unit(members))
            head.window, run = later[leaving:], min(method.unit_size, self.longest_segment)
            head.starts = set(head.window[::run])
            head.opened = max(length, method.sink)
        self.steps = 0

    @property
    def longest_segment(self) -> int:
        return min(self.method.max_segment, self.method.window // 2)

    def step(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, bool]:
        method = self.method
        assert isinstance(method.tau, float)
        position, least = self.heads[0].keys.shape[0], min(method.min_segment, self.longest_segment)
        looks = self.steps % least == 0
        self.steps += 1
        for head, key, value in zip(self.heads, keys, values, strict=True):
            head.keys, head.values = torch.cat([head.keys, key[None]]), torch.cat([head.values, value[None]])
            if looks and max(0, method.sink - position) + method.window - len(head.window) < least:
                segment = Unit(head.oldest(least, self.longest_segment))
                head.window = head.window[len(segment.positions) :]
                room = method.budget - method.sink - method.window - sum(unit.resident for unit in head.units)
                segment.resident = min(room, len(segment.positions))
                head.units.append(segment)
            if position < method.sink:
                continue
            if position == head.opened or position - head.opened >= self.longest_segment:
                self.open(head, position)
            head.window.append(position)
        direction = query.double() / query.double().norm(dim=-1, keepdim=True)
        fired = self.previous is None or float((direction * self.previous).sum(-1).mean()) < method.tau
        self.previous = direction
        group_size = len(query) // len(self.heads)
        out = [
            self.attend(head, query[index * group_size : (index + 1) * group_size], fired, scaling)
            for index, head in enumerate(self.heads)
        ]
        return torch.cat(out), fired

    def open(self, head: Head, position: int) -> None:
        head.starts.add(position)
        head.opened = position

    def attend(self, head: Head, query: Tensor, fired: bool, scaling: float) -> Tensor:
        method, newest = self.method, len(head.keys) - 1
        if fired and newest - head.opened >= min(method.min_segment, self.longest_segment):
            self.open(head, newest)
        if fired and head.units:
            shares = []
            for each in query.double():
                mass = [float(torch.exp(scaling * each @ unit.mean_key(head.keys))) for unit in head.units]
                shares.append([one / sum(mass) for one in mass])
            score = [sum(column) / len(query) for column in zip(*shares, strict=True)]
            left = method.budget - method.sink - method.window
            for unit in sorted(range(len(head.units)), key=lambda unit: -score[unit]):
                head.units[unit].resident = min(left, len(head.units[unit].positions))
                left -= head.units[unit].resident
        attended = [*range(min(method.sink, len(head.keys))), *head.window]
        attended += [place for unit in head.units for place in unit.positions[: unit.resident]]
        weights = torch.softmax(scaling * query.double() @ head.keys[attended].double().T, dim=-1)
        return weights @ head.values[attended].double()


@settings(deadline=None, max_examples=40)
@example(length=1, steps=6, sink=2, window=4, retrieved=1, unit_size=2, max_segment=4, tau=-1.0, group_size=1, seed=0)
@given(
    length=st.integers(1, 70),
    steps=st.integers(1, 50),
    sink=st.integers(0, 5),
    window=st.integers(4, 16),
    retrieved=st.integers(1, 24),
    unit_size=st.sampled_from([2, 4, 5]),
    max_segment=st.integers(4, 9),
    tau=st.sampled_from([-1.0, 0.6, 0.8, 1.0]),
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
    max_segment: int,
    tau: float,
    group_size: int,
    seed: int,
) -> None:
    method = LouisKV(
        budget=sink + window + retrieved,
        sink=sink,
        window=window,
        tau=tau,
        unit_size=unit_size,
        min_segment=2,
        max_segment=max_segment,
        dense_layers=0,
        iterations=3,
    )
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(2, length + steps, 6, generator=generator) for _ in range(2))
    drift = torch.randn(steps, 2 * group_size, 6, generator=generator) * 0.5
    queries = torch.randn(2 * group_size, 6, generator=generator) + drift.cumsum(0)
    oracle = Oracle(method, keys[:, :length], values[:, :length])
    layer = method.layer(0)
    assert isinstance(layer, RetrievalLayer)
    layer.batch_size, layer.num_kv_heads = 1, 2
    layer.absorb(keys[None, :, :length], values[None, :, :length], None)
    for step in range(steps):
        place = slice(length + step, length + step + 1)
        layer.append(keys[None, :, place], values[None, :, place])
        got = layer.attend(queries[None, step, :, None], AttentionOptions(scaling=0.4))
        expected, fired = oracle.step(queries[step], keys[:, place.start], values[:, place.start], 0.4)
        assert bool(layer.telemetry.fired.tensor()[-1].all()) == fired
        torch.testing.assert_close(got[0, :, 0].double(), expected, atol=1e-4, rtol=1e-4)
    layer.check_integrity()


def test_presets_are_the_papers() -> None:
    figures = [
        (each.sink, each.window, each.tau, each.budget - each.sink - each.window)
        for each in (LouisKV.long_input(), LouisKV.long_output(), LouisKV.long_both())
    ]
    assert figures == [(32, 512, 0.85, 512), (500, 128, 0.70, 1024), (64, 256, 0.70, 1024)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 100, "sink": 40, "window": 60}, "budget=100 .* at least 101, for sink=40, window=60 and 1 "),
        ({"tau": 1.5}, r"tau=1.5 .* from -1 to 1"),
        ({"tau": float("nan")}, "tau=nan"),
        ({"sink": -1}, "sink=-1 .* at least 0"),
        ({"window": 0}, "window=0 .* at least 1"),
        ({"unit_size": "many"}, "unit_size='many'"),
        ({"unit_size": 2.5}, "unit_size=2.5 .* whole number"),
        ({"max_segment": 3, "min_segment": 4}, "max_segment=3 .* at least 4"),
        ({"chunk_size": 8, "unit_size": 16}, "chunk_size=8 .* at least 16"),
        ({"dense_layers": True}, "dense_layers=True"),
        ({"iterations": 0}, "iterations=0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        LouisKV(**wrong)  # type: ignore[arg-type]
