"""On a GPU no step waits for the device: there it is measured, and here what would wait is refused."""

import traceback
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from louiskv import H2O, Full, FullOffloaded, KeepKV, LouisKVPlus, Method, RaaS, RazorAttention, SnapKV, StreamingLLM
from louiskv.methods.base import AttentionOptions, KVLayer
from louiskv.methods.pace import Standing
from louiskv.methods.retrieval import Retrieval
from louiskv.methods.retrieval_layer import RetrievalLayer
from louiskv.ops import ragged
from louiskv.ops.ragged import counts_of
from louiskv.triggers import AnchorCosine, Cosine, Coverage, Every, Late, Trigger
from louiskv.units.clusters import Clusters
from louiskv.units.pages import Pages
from louiskv.units.segments import Segments
from louiskv.units.summaries import BoundingVolume, MeanKey, MinMax, OneBit, Sketch
from louiskv.units.tokens import Tokens

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADS, GROUP, DIM = 2, 3, 16
CLUSTERS = Clusters(unit_size=4, iterations=2, chunk_size=24, output_size=8)
BASE = Retrieval(budget=32, sink=3, window=9, dense_layers=0, units=CLUSTERS)
METHODS: dict[str, Method] = {
    "full": Full(),
    "clusters": BASE,
    "clusters of the output": replace(BASE, output=CLUSTERS),
    "pages, anchor": replace(BASE, units=Pages(4), summary=MinMax(), trigger=AnchorCosine(0.8, cap=3)),
    "pages, newest": replace(BASE, units=Pages(4), summary=BoundingVolume(), trigger=Every(1), recent_units=1),
    "pages, stride": replace(BASE, units=Pages(4), summary=MeanKey(), trigger=Every(3), store="device"),
    "segments, coverage": replace(BASE, units=Segments(2, 4), trigger=Coverage(0.95)),
    "best coverage": replace(BASE, trigger=Coverage(0.95, against="best"), hold=0.5),
    "one bit": replace(BASE, units=Tokens(4), summary=OneBit(4), trigger=Every(1)),
    "late": replace(BASE, trigger=Late(Cosine(0.9, per_head=True))),
    "few bits": replace(BASE, pool_bits=8),
    "plus": LouisKVPlus(budget=32, sink=3, window=9, dense_layers=0),
    "bundles": replace(BASE, units=Tokens(4), summary=Sketch(), trigger=Every(1), oversample=2, max_looked=64),
    "per query head": replace(BASE, per_query_head=True),
    "streaming": StreamingLLM(budget=32, sink=3),
    "h2o": H2O(budget=32),
    "snapkv": SnapKV(budget=32, observation=8),
    "raas": RaaS(budget=32, page_size=4),
    "keepkv": KeepKV(budget=40),
    "razor": RazorAttention(window=16, share=0.0, kv_heads=((0,),) * 4),
}
RETRIEVING = sorted(name for name, method in METHODS.items() if isinstance(method.layer(2), RetrievalLayer))
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "bincount", "equal")


class Refuses(TorchDispatchMode):
    """Refuses what on a GPU would wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if name in WAITING or masks:
            # What is for the CPU alone may look at what it computes.
            inside = {Path(frame.filename).stem for frame in traceback.extract_stack()}
            assert any(each.endswith("_cpu") for each in inside), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    if DEVICE.type == "cuda":
        with warnings.catch_warnings(action="ignore"):  # This mode is a prototype.
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        with Refuses():
            yield


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device is taken for a GPU."""
    monkeypatch.setattr(ragged, "READABLE", set())


class Fed:
    """A layer that takes in a prompt of two sequences, one of them padded or not, and then token after token."""

    def __init__(self, method: Method, length: int, padding: int, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.layer: KVLayer = method.layer(2)
        self.layer.begin(2, HEADS, HEADS * GROUP)
        valid = torch.ones(2, length, dtype=torch.bool, device=DEVICE)
        valid[0, :padding] = False
        self.layer.absorb(self.random(HEADS, length), self.random(HEADS, length), valid if padding else None)
        self.query = self.random(HEADS * GROUP, 1)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(2, *shape, DIM, generator=self.generator).to(DEVICE)

    def step(self, watched: bool = False) -> Tensor:
        self.query = self.query + 0.4 * self.random(HEADS * GROUP, 1)
        keys, values = self.random(HEADS, 1), self.random(HEADS, 1)
        if not watched:
            self.layer.append(keys, values)
            return self.layer.attend(self.query, AttentionOptions(0.3))
        with no_waiting():
            self.layer.append(keys, values)
            return self.layer.attend(self.query, AttentionOptions(0.3))


@pytest.mark.parametrize("padding", [0, 11])
@pytest.mark.parametrize("length", [5, 70])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_gives_the_same_whether_it_may_look_or_not(
    name: str, length: int, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    padding = min(padding, length - 1)
    looking = Fed(METHODS[name], length, padding)
    expected = [looking.step() for _ in range(40)]
    looking.layer.check_integrity()
    monkeypatch.setattr(ragged, "READABLE", set())
    blind = Fed(METHODS[name], length, padding)
    for out in expected:
        torch.testing.assert_close(blind.step(), out, atol=1e-5, rtol=1e-5)
        blind.layer.check_integrity()
    assert torch.equal(blind.layer.attended_positions(), looking.layer.attended_positions())
    assert blind.layer.traffic == looking.layer.traffic
    ours, theirs = blind.layer.telemetry, looking.layer.telemetry
    assert ours.selected.read() == theirs.selected.read() and ours.missed.read() == theirs.missed.read()
    assert ours.segments.read() == theirs.segments.read()
    assert torch.equal(ours.fired.tensor(), theirs.fired.tensor())


@pytest.mark.usefixtures("unreadable")
@pytest.mark.parametrize("padding", [0, 11])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_step_waits_for_the_device(name: str, padding: int) -> None:
    fed = Fed(METHODS[name], 70, padding)
    assert fed.layer.waits_for_nothing
    # What is compiled or set up once may wait.
    fed.step()
    fed.step()
    fed.layer.reserve(40)
    for _ in range(30):
        assert fed.step(watched=True).isfinite().all()


@contextmanager
def looking() -> Iterator[None]:
    """What is read here may be waited for."""
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    yield
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")


@pytest.mark.usefixtures("unreadable")
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("name", RETRIEVING)
def test_a_prompt_looks_once_and_what_follows_it_not_at_all(
    name: str, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, look = [], RetrievalLayer._look

    def seen(layer: RetrievalLayer) -> list[Standing]:
        with looking():
            looks.append(look(layer))
            return looks[-1]

    fed = Fed(METHODS[name], 70, 0 if alike else 11)
    layer = fed.layer
    assert isinstance(layer, RetrievalLayer)
    keys, values, query = fed.random(HEADS, 90), fed.random(HEADS, 90), fed.random(HEADS * GROUP, 90)

    def take_in() -> None:
        layer.attend_past(query.unflatten(1, (HEADS, GROUP)).flatten(0, 1), scaling=0.3, softcap=None)
        layer._take_in(keys, values, None)

    fed.step()
    for _ in range(2):
        # What is compiled once may wait.
        layer.tiers()
        take_in()
    layer.expect(1000)
    take_in()
    fed.step()
    monkeypatch.setattr(RetrievalLayer, "_look", seen)
    with no_waiting():
        layer._take_in(keys, values, None)
    assert len(looks) == 1
    assert [row.length for row in looks[0]] == (layer.resident.lengths - 90).tolist()
    with no_waiting():
        take_in()
        take_in()
    assert len(looks) == 1
    layer.check_integrity()


def test_what_waits_is_found_out() -> None:
    fed = Fed(METHODS["clusters"], 70, 0)
    if DEVICE.type == "cpu":
        with pytest.raises(AssertionError, match="_local_scalar_dense waits"):
            fed.step(watched=True)
    assert not FullOffloaded().layer(2).waits_for_nothing


@pytest.mark.usefixtures("unreadable")
@pytest.mark.parametrize("padding", [0, 11])
@pytest.mark.parametrize("name", ["full", *RETRIEVING])
def test_a_first_prompt_waits_for_nothing(name: str, padding: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is compiled once may wait.
    fed = Fed(METHODS[name], 70, padding)
    fed.layer.check_integrity()
    valid = torch.ones(2, 70, dtype=torch.bool, device=DEVICE)
    valid[0, :padding] = False
    keys, values = fed.random(HEADS, 70), fed.random(HEADS, 70)
    layer = METHODS[name].layer(2)
    layer.begin(2, HEADS, HEADS * GROUP)
    assert counts_of(valid) == [70 - padding, 70], "as another layer has asked before"

    def looks(_: RetrievalLayer) -> list[Standing]:
        raise AssertionError("nothing is there yet")

    monkeypatch.setattr(RetrievalLayer, "_look", looks)
    with no_waiting():
        layer.absorb(keys, values, valid if padding else None)
    layer.check_integrity()
    assert layer.tiers() == fed.layer.tiers()


@pytest.mark.usefixtures("unreadable")
def test_of_rows_that_are_alike_full_attention_knows_where_they_stand() -> None:
    fed = Fed(METHODS["full"], 70, 0)
    for _ in range(3):
        fed.step()
        keys, values = fed.random(HEADS, 30), fed.random(HEADS, 30)
        with no_waiting():
            fed.layer.absorb(keys, values, None)
        fed.layer.check_integrity()
    assert fed.layer.attended_positions().shape[1] == 70 + 3 * 31


@pytest.mark.usefixtures("unreadable")
@pytest.mark.parametrize("trigger", [Every(1), Late(Every(1))], ids=str)
def test_no_layers_keys_and_values_are_held(trigger: Trigger) -> None:
    method, generator = replace(BASE, trigger=trigger), torch.Generator().manual_seed(0)
    layers, given = [method.layer(2) for _ in range(6)], []
    for layer in layers:
        keys, values = (torch.randn(1, HEADS, 300, DIM, generator=generator).to(DEVICE) for _ in range(2))
        given.append(weakref.ref(keys))
        layer.begin(1, HEADS, HEADS * GROUP)
        layer.absorb(keys, values, None)
        del keys, values
        assert [each for each in given if each() is not None] == []
    for layer in layers:
        layer.check_integrity()


@pytest.mark.usefixtures("unreadable")
def test_room_made_right_behind_a_prompt_loses_nothing() -> None:
    # On a GPU the index of one layer is copied while the next layers come in, and what it was must not be theirs yet.
    heads, dim, length = (16, 128, 16384) if DEVICE.type == "cuda" else (HEADS, DIM, 200)
    layers, generator = [LouisKVPlus(dense_layers=0).layer(2) for _ in range(9)], torch.Generator().manual_seed(0)
    for layer in layers:
        layer.begin(2, heads, heads * GROUP)
        keys, values = (torch.randn(2, heads, length, dim, generator=generator).to(DEVICE) for _ in range(2))
        layer.absorb(keys, values, None)
    for layer in layers:
        assert layer.reserve(100)
    for layer in layers:
        layer.check_integrity()


def test_a_prompt_that_cannot_be_taken_in_says_so(monkeypatch: pytest.MonkeyPatch, unreadable: None) -> None:
    def fails(*_: object) -> None:
        raise MemoryError("no room")

    layer, other = BASE.layer(2), BASE.layer(2)
    monkeypatch.setattr(layer, "_take_in", fails)
    rows = torch.zeros(1, HEADS, 50, DIM, device=DEVICE)
    for each in (layer, other):
        each.begin(1, HEADS, HEADS * GROUP)
    with pytest.raises(MemoryError, match="no room"):
        layer.absorb(rows, rows, None)
    other.absorb(rows, rows, None)
    other.check_integrity()


@pytest.mark.usefixtures("unreadable")
def test_what_is_asked_while_a_prompt_comes_in_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    take_in = RetrievalLayer._take_in

    def slowly(layer: RetrievalLayer, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        if DEVICE.type == "cuda":
            torch.cuda._sleep(10**9)
        take_in(layer, keys, values, valid)

    monkeypatch.setattr(RetrievalLayer, "_take_in", slowly)
    reserved = Fed(METHODS["clusters"], 70, 11)
    reserved.layer.reserve(40)
    fed = Fed(METHODS["clusters"], 70, 11)
    if DEVICE.type == "cpu":
        # What is timed by events of a GPU cannot be copied.
        copied = deepcopy(fed.layer)
        copied.check_integrity()
        assert copied.tiers() == fed.layer.tiers()
    for _ in range(20):
        reserved.step()
    reserved.layer.check_integrity()
