"""A pool of few bits: what is resident is what it holds, whatever happens, and what that costs is told."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv import SettingsError, attach
from louiskv.cache import passing
from louiskv.methods.base import AttentionOptions, KVLayer, LayerShape
from louiskv.methods.per_query_head import PerQueryHead
from louiskv.methods.retrieval import STORES, Retrieval
from louiskv.methods.retrieval_layer import RetrievalLayer
from louiskv.store.coding import token_size
from louiskv.triggers import Cosine, Every, Late, Trigger
from louiskv.units.base import Units
from louiskv.units.clusters import Clusters
from louiskv.units.pages import Pages
from louiskv.units.segments import Segments
from louiskv.units.summaries import MeanKey, MinMax, OneBit, Sketch, Summary
from louiskv.units.tokens import Tokens
from tests.families import greedy, prompt, tiny
from tests.methods.oracle import SCALING

BITS = [8, 4]
SINK, WINDOW = 3, 9
HEADS, GROUP, KEY_DIM, VALUE_DIM = 2, 2, 15, 17
CLUSTERS = Clusters(unit_size=4, iterations=2, chunk_size=24, output_size=8)
# Each kind of unit and of summary, with a trigger.
PARTS: list[tuple[Units, Units | None, Summary, Trigger]] = [
    (CLUSTERS, None, MeanKey(), Cosine(0.9, per_head=True)),
    (CLUSTERS, CLUSTERS, Sketch(), Every(2)),
    (Pages(4), None, MinMax(), Every(1)),
    (Pages(4), Segments(2, 4), MinMax(), Late(Cosine(0.9, per_head=True))),
    (Tokens(4), None, OneBit(4), Late(Every(3))),
]
ESTIMATING = {"oversample": 2, "estimate": True}


def few_bits(
    bits: int | None,
    units: Units = CLUSTERS,
    output: Units | None = None,
    summary: Summary | None = None,
    trigger: Trigger | None = None,
    budget: int = 32,
    **others: object,
) -> Retrieval:
    estimating = ESTIMATING if isinstance(summary, Sketch) else {}
    return Retrieval(
        budget=budget,
        units=units,
        output=output,
        summary=summary or MeanKey(),
        trigger=trigger or Every(1),
        pool_bits=bits,
        **{"sink": SINK, "window": WINDOW, "dense_layers": 0, **estimating, **others},  # type: ignore[arg-type]
    )


@dataclass
class Driven:
    """A layer fed with random tokens like those of a language model, and all that it was fed.

    Attributes:
        layer: The layer, and `state` what holds its rows: the same, or what is inside if query heads select alone.
        constant: [Hkv, 1, Dk] the part that all keys have.
        rows: [Hkv, T, Dk + Dv] of each sequence, without padding.
    """

    layer: KVLayer
    state: RetrievalLayer
    generator: torch.Generator
    constant: Tensor
    rows: list[Tensor]
    dtype: torch.dtype

    def new(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Keys [B, Hkv, T, Dk], of which each channel has a constant part, and values."""
        shape = (len(self.rows), HEADS, num_tokens)
        keys = torch.randn(*shape, KEY_DIM, generator=self.generator) + self.constant
        return keys.to(self.dtype), torch.randn(*shape, VALUE_DIM, generator=self.generator).to(self.dtype)

    def prompt(self, num_tokens: int, padding: tuple[int, ...] = ()) -> None:
        keys, values = self.new(num_tokens)
        widths = (*padding, *[0] * (len(self.rows) - len(padding)))
        valid = torch.arange(num_tokens) >= torch.tensor(widths)[:, None]
        self.layer.absorb(keys, values, valid if any(widths) else None)
        self._note(keys, values, widths)

    def step(self) -> Tensor:
        keys, values = self.new(1)
        query = torch.randn(len(self.rows), HEADS * GROUP, 1, KEY_DIM, generator=self.generator).to(self.dtype)
        self.layer.append(keys, values)
        self._note(keys, values, (0,) * len(self.rows))
        return self.layer.attend(query, AttentionOptions(scaling=SCALING))

    def crop(self, num_tokens: int) -> None:
        counts = [min(num_tokens, each.shape[1] - 1) for each in self.rows]
        self.layer.crop(torch.tensor(counts))
        self.rows = [each[:, : each.shape[1] - count] for each, count in zip(self.rows, counts, strict=True)]

    def reorder(self, index: list[int]) -> None:
        self.layer.select_batch(torch.tensor(index))
        self.rows = [self.rows[place] for place in index]

    def _note(self, keys: Tensor, values: Tensor, widths: tuple[int, ...]) -> None:
        new = torch.cat([keys, values], dim=-1)
        self.rows = [torch.cat([held, new[n, :, widths[n] :]], dim=1) for n, held in enumerate(self.rows)]

    def check(self, near: float, exact_window: bool = True) -> None:
        """Nothing is lost; the pool is so near to what was fed, and so are sinks and window if they are not exact."""
        self.layer.check_integrity()
        resident, pool, heads = self.state.resident, self.state.pool, self.state.num_kv_heads
        fed = [row for each in self.rows for row in each.repeat_interleave(heads // HEADS, dim=0)]
        for row, (places, count) in enumerate(zip(resident.positions(), pool.lengths.tolist(), strict=True)):
            lies = places >= 0
            always, expected = resident.rows[row, : SINK + WINDOW][lies], fed[row][places[lies]]
            assert torch.equal(always, expected) if exact_window else distance(always, expected) <= near
            if count:
                assert distance(pool.decoded()[row, :count], fed[row][pool.positions[row, :count].long()]) <= near


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm())


def driven(method: Retrieval, batch_size: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> Driven:
    layer = method.layer(0)
    state = layer.state if isinstance(layer, PerQueryHead) else layer
    assert isinstance(state, RetrievalLayer)
    layer.begin(batch_size, HEADS, HEADS * GROUP)
    generator = torch.Generator().manual_seed(seed)
    constant = 3 * torch.randn(HEADS, 1, KEY_DIM, generator=generator)
    nothing = [torch.empty(HEADS, 0, KEY_DIM + VALUE_DIM, dtype=dtype) for _ in range(batch_size)]
    return Driven(layer, state, generator, constant, nothing, dtype)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("per_query_head", [False, True])
def test_what_is_resident_is_what_the_pool_holds(
    bits: int, store: str, parts: tuple[Units, Units | None, Summary, Trigger], per_query_head: bool
) -> None:
    it = driven(few_bits(bits, *parts, store=store, per_query_head=per_query_head))
    near = {8: 0.01, 4: 0.12}[bits]
    it.prompt(50, (13,))
    it.check(near)
    for _ in range(25):
        assert it.step().isfinite().all()
        it.check(near)
    it.prompt(21)
    it.check(near)
    it.reorder([1, 1, 0])
    for _ in range(6):
        it.step()
        it.check(near)
    it.crop(40)
    # What came back to the window is what the pool held, and is coded again when it leaves.
    it.check(near, exact_window=False)
    for _ in range(15):
        assert it.step().isfinite().all()
        it.check(2 * near, exact_window=False)


turns = st.lists(
    st.one_of(
        st.tuples(st.just("decode"), st.integers(1, 25)),
        st.tuples(st.just("prompt"), st.integers(2, 40)),
        st.tuples(st.just("padded"), st.integers(2, 40)),
        st.tuples(st.just("crop"), st.integers(1, 60)),
        st.tuples(st.just("reorder"), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    actions=turns,
    bits=st.sampled_from(BITS),
    parts=st.sampled_from(PARTS),
    store=st.sampled_from(STORES),
    length=st.integers(1, 50),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_any_turns(
    actions: list[tuple[str, int]],
    bits: int,
    parts: tuple[Units, Units | None, Summary, Trigger],
    store: str,
    length: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    it = driven(few_bits(bits, *parts, store=store), 2, dtype, seed)
    it.prompt(length, (length // 2,))
    for action, number in actions:
        if action == "decode":
            for _ in range(number):
                assert it.step().isfinite().all()
        elif action == "prompt":
            it.prompt(number)
        elif action == "padded":
            # One sequence may have no token at all.
            it.prompt(number, (number,))
        elif action == "crop":
            it.crop(number)
        else:
            it.reorder([number // 2, number % 2])
        it.layer.check_integrity()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("store", STORES)
def test_nothing_is_read_from_memory_that_was_never_written(bits: int, store: str, poisoned_memory: None) -> None:
    it = driven(few_bits(bits, store=store))
    it.prompt(50, (13,))
    for _ in range(25):
        assert it.step().isfinite().all()
    it.prompt(20, (20,))
    out, lse = it.layer.attend_past(torch.randn(2 * HEADS, GROUP, 3, KEY_DIM), scaling=SCALING, softcap=None)
    assert out.isfinite().all() and lse.isfinite().all()
    it.check({8: 0.01, 4: 0.12}[bits])
    told = it.layer.telemetry.coding_error.read()
    assert told is not None and all(0 < error < 0.12 for error in told.values())


@pytest.mark.parametrize("bits", BITS)
def test_with_a_budget_for_everything_only_the_coding_is_off(bits: int) -> None:
    exact, coded = (driven(few_bits(each, budget=400)) for each in (None, bits))
    for it in (exact, coded):
        it.prompt(60, (13,))
    for _ in range(30):
        expected, got = exact.step(), coded.step()
        assert distance(got, expected) < {8: 0.03, 4: 0.35}[bits]


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_a_batch_gives_what_its_rows_give_alone(bits: int, parts: tuple[Units, Units | None, Summary, Trigger]) -> None:
    # The first sequence has no token before the second prompt, and nothing in the pool for a while.
    method = few_bits(bits, *parts)
    together = driven(method, 2, seed=3)
    alone = [method.layer(0), method.layer(0)]
    for layer in alone:
        layer.begin(1, HEADS, HEADS * GROUP)

    def take_in(num_tokens: int, padding: int) -> None:
        state = together.generator.get_state()
        together.prompt(num_tokens, (padding,))
        together.generator.set_state(state)
        keys, values = together.new(num_tokens)
        for n, first in enumerate((padding, 0)):
            if first < num_tokens:
                alone[n].absorb(keys[n : n + 1, :, first:], values[n : n + 1, :, first:], None)

    take_in(40, 33)
    take_in(30, 5)
    for _ in range(25):
        state = together.generator.get_state()
        got = together.step()
        together.generator.set_state(state)
        keys, values = together.new(1)
        query = torch.randn(2, HEADS * GROUP, 1, KEY_DIM, generator=together.generator)
        for n, layer in enumerate(alone):
            assert isinstance(layer, RetrievalLayer)
            layer.append(keys[n : n + 1], values[n : n + 1])
            expected = layer.attend(query[n : n + 1], AttentionOptions(scaling=SCALING))
            torch.testing.assert_close(got[n : n + 1], expected, atol=1e-5, rtol=1e-5)
            rows = slice(n * HEADS, (n + 1) * HEADS)
            count = int(layer.pool.lengths[0])
            assert together.state.pool.lengths[rows].tolist() == [count] * HEADS
            assert torch.equal(together.state.pool.rows[rows, :count], layer.pool.rows[:, :count])


def test_a_row_that_was_cropped_to_nothing_learns_anew() -> None:
    it, fresh = driven(few_bits(8)), driven(few_bits(8))
    it.prompt(50)
    it.crop(48)
    assert it.state.pool.lengths.eq(0).all()
    it.constant = fresh.constant = it.constant + 100
    it.generator.manual_seed(9), fresh.generator.manual_seed(9)
    for each in (it, fresh):
        each.prompt(50)
    it.layer.check_integrity()
    # But for the two tokens at its begin it has seen the same.
    near = [it.state.pool.coding, fresh.state.pool.coding]
    torch.testing.assert_close(*(each.mean for each in near), atol=0.5, rtol=0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("bits", BITS)
def test_what_crosses_the_bus_is_coded(bits: int) -> None:
    exact, coded = driven(few_bits(None)), driven(few_bits(bits))
    for it in (exact, coded):
        it.prompt(60, (13,))
        for _ in range(30):
            it.step()
        it.prompt(10)
        it.layer.attend_past(
            torch.randn(2 * HEADS, GROUP, 3, KEY_DIM, generator=it.generator), scaling=SCALING, softcap=None
        )
    size = token_size(bits, KEY_DIM, VALUE_DIM, 4)
    # A quarter or an eighth of float32, half a byte of padding for an odd number of channels, and four of float16.
    assert size == {8: KEY_DIM + VALUE_DIM, 4: (KEY_DIM + VALUE_DIM + 2) // 2}[bits] + 4 * 2
    for it, expected in ((exact, 4 * (KEY_DIM + VALUE_DIM)), (coded, size)):
        traffic = it.layer.traffic
        assert traffic.offloaded_bytes == traffic.offloaded_tokens * expected
        assert traffic.fetched_bytes == traffic.fetched_tokens * expected
        assert traffic.fetched_tokens > 0
    assert coded.layer.traffic.offloaded_tokens == exact.layer.traffic.offloaded_tokens
    assert coded.layer.tiers().seen == exact.layer.tiers().seen, "what full attention would hold stays the same"


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("bits", [None, *BITS])
@pytest.mark.parametrize("per_query_head", [False, True])
def test_the_footprint_is_what_lies_there(bits: int | None, store: str, per_query_head: bool) -> None:
    method = few_bits(bits, Pages(4), store=store, per_query_head=per_query_head)
    it, num_tokens = driven(method, 1), SINK + WINDOW + 600
    it.prompt(num_tokens)
    shape = LayerShape(HEADS, KEY_DIM, VALUE_DIM, 4, GROUP)
    planned, tiers = method.footprint(0, shape, num_tokens), it.layer.tiers()
    state, pool = it.state, it.state.pool
    # Lengths and the bookkeeping of slots come on top.
    of_slots = state.resident.num_bytes - state.resident.rows.nbytes + state.cuts.num_bytes
    in_pool = pool.lengths.nbytes
    if bits is None:
        # The plan is of a GPU, where what is retrieved lies in slots; here it stays in the pool.
        of_slots -= 20 * state.num_kv_heads * (KEY_DIM + VALUE_DIM) * 4
    if store == "host":
        assert tiers.host.bytes == planned.host + in_pool
        assert tiers.resident.bytes == planned.resident + of_slots
    else:
        assert (tiers.host.bytes, planned.host, planned.retrieval) == (0, 0, 0)
        assert tiers.resident.bytes == planned.resident + of_slots + in_pool
    it.step()
    if store == "host":
        # The run that has just left the window is there already.
        retrieved, size = 20 * state.num_kv_heads, token_size(bits, KEY_DIM, VALUE_DIM, 4)
        assert planned.retrieval == retrieved * size
        assert (retrieved - 4 * state.num_kv_heads) * size <= it.layer.traffic.fetched_bytes <= planned.retrieval


@pytest.mark.parametrize("bits", BITS)
def test_the_error_is_that_of_what_was_offloaded(bits: int) -> None:
    it = driven(few_bits(bits, Pages(4)), dtype=torch.bfloat16)
    it.prompt(60, (13,))
    for _ in range(20):
        it.step()
    told = it.layer.telemetry.coding_error.read()
    assert told is not None
    off, whole = torch.zeros(2), torch.zeros(2)
    for row, (positions, count) in enumerate(zip(it.state.pool.positions, it.state.pool.lengths.tolist(), strict=True)):
        exact = it.rows[row // HEADS][row % HEADS][positions[:count].long()].float()
        missed = it.state.pool.decoded()[row, :count].float() - exact
        for part, channels in enumerate((slice(0, KEY_DIM), slice(KEY_DIM, None))):
            off[part] += missed[:, channels].square().sum()
            whole[part] += exact[:, channels].square().sum()
    assert [told["keys"], told["values"]] == pytest.approx((off / whole).sqrt().tolist(), rel=1e-4)


def test_the_report_tells_the_error_of_few_bits_only() -> None:
    model, inputs = tiny("llama"), prompt(80, 2, (13,))
    for bits in (None, 8, 4):
        method = replace(few_bits(bits), dense_layers=1)
        with attach(model, method) as cache:
            greedy(model, inputs, 20, **passing(model, cache))
            cache.check_integrity()
            report = cache.report()
        figures = json.loads(report.to_json())
        assert report.layers[0].coding_error is None
        if bits is None:
            assert report.coding_error is None and "coding_error" not in figures
            assert all(layer["coding_error"] is None for layer in figures["layers"])
            assert "coding" not in str(report)
            continue
        errors = [layer.coding_error for layer in report.layers[1:]]
        assert report.coding_error is not None
        for part in ("keys", "values"):
            each = [error[part] for error in errors if error is not None]
            assert len(each) == 3
            assert all(0 < error < {8: 0.01, 4: 0.12}[bits] for error in each)
            assert report.coding_error[part] == pytest.approx(sum(each) / 3)
        assert figures["coding_error"] == report.coding_error
        assert f"coding      off by keys {report.coding_error['keys']:.2%}, values" in str(report)


@pytest.mark.parametrize("wrong", [3, 16, 0, 8.0, True, "8"])
def test_wrong_bits_say_what_is_allowed(wrong: object) -> None:
    with pytest.raises(SettingsError, match=r"pool_bits=.* is not allowed: give one of None, 8, 4\."):
        Retrieval(pool_bits=wrong)  # type: ignore[arg-type]
