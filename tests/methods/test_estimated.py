"""Attention to what is not resident, by estimate: against a softmax written out, in every state a layer can come to."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv import SettingsError
from louiskv.methods.base import AttentionOptions, KVLayer
from louiskv.methods.retrieval import Retrieval
from louiskv.methods.retrieval_layer import RetrievalLayer
from louiskv.triggers import Coverage, Every, Late, Trigger
from louiskv.units.base import Units
from louiskv.units.clusters import Clusters
from louiskv.units.pages import Pages
from louiskv.units.segments import Segments
from louiskv.units.summaries import MeanKey, Sketch, Summary
from louiskv.units.tokens import Tokens
from tests.methods.oracle import NUM_KV_HEADS, SCALING, attended_rows, decode, drifting, started
from tests.methods.test_retrieval import full_attention

DIM, VALUE_DIM, GROUP_SIZE = 8, 6, 3
SMALL = Retrieval(
    budget=24,
    sink=3,
    window=9,
    units=Clusters(unit_size=4, iterations=2, chunk_size=24, output_size=8),
    output=Clusters(unit_size=4, iterations=2, chunk_size=24, output_size=8),
    summary=Sketch(),
    trigger=Coverage(0.9),
    estimate=True,
    dense_layers=0,
)
GROUPINGS: list[tuple[Units, Units | None]] = [
    (SMALL.units, SMALL.output),
    (SMALL.units, None),
    (Pages(4), None),
    (Segments(2, 4), None),
    (Tokens(4), None),
]
TRIGGERS: list[Trigger] = [
    Every(1),
    Every(5),
    Coverage(0.95),
    Coverage(0.95, against="best"),
    Coverage(0.9, cap=4),
    Late(),
    Late(when=Coverage(0.95)),
]
PLAIN = AttentionOptions(scaling=SCALING)
OPTIONS = {
    "plain": PLAIN,
    "softcap": AttentionOptions(scaling=SCALING, softcap=2.0),
    "sinks": AttentionOptions(scaling=SCALING, attention_sinks=torch.linspace(-1, 2, NUM_KV_HEADS * GROUP_SIZE)),
}


class Driven:
    """A layer that is given random tokens and queries."""

    def __init__(self, method: Retrieval, batch_size: int = 1, seed: int = 0) -> None:
        self.layer: KVLayer = method.layer(0)
        self.layer.begin(batch_size, NUM_KV_HEADS, NUM_KV_HEADS * GROUP_SIZE)
        self.generator = torch.Generator().manual_seed(seed)
        self.last: Tensor | None = None

    def random(self, *shape: int) -> Tensor:
        return torch.randn(self.layer.batch_size, *shape, generator=self.generator)

    def prompt(self, length: int, valid: Tensor | None = None) -> None:
        self.layer.absorb(self.random(NUM_KV_HEADS, length, DIM), self.random(NUM_KV_HEADS, length, VALUE_DIM), valid)

    def step(self, options: AttentionOptions = PLAIN) -> tuple[Tensor, Tensor]:
        """Query and output of a decode step; a query is near the one before."""
        self.layer.append(self.random(NUM_KV_HEADS, 1, DIM), self.random(NUM_KV_HEADS, 1, VALUE_DIM))
        new = self.random(NUM_KV_HEADS * GROUP_SIZE, 1, DIM)
        self.last = new if self.last is None or len(self.last) != len(new) else self.last + 0.5 * new
        return self.last, self.layer.attend(self.last, options)


def written_out(
    layer: RetrievalLayer, query: Tensor, options: AttentionOptions, max_estimated: int | None = None
) -> Tensor:
    """[B, Hq, Dv] in float64: what is in the slots, and for all others of a unit the mean value at the mean key."""
    resident, index = layer.resident, layer.index
    grouped = query.view(len(resident.rows), -1, query.shape[-1]).double()
    sinks = options.sinks_by_row(layer.batch_size, layer.num_kv_heads)
    outs = []
    for row, queries in enumerate(grouped):
        exact_keys, exact_values = attended_rows(layer, row)
        logits = [options.scaling * queries @ key.double() for key in exact_keys]
        values = [value.double() for value in exact_values]
        mean_logits, mean_values, left = units_of(layer, row, queries, options.scaling)
        assert len(values) + sum(left) == int(resident.lengths[row]), "each token counts once"
        beside = torch.stack(logits[: int((resident.always[1][row, 0] == 0).sum())], dim=1).logsumexp(1)
        if sinks is not None:
            beside = torch.logaddexp(beside, sinks[row].double())
        for unit in most_attended(mean_logits, beside, index.sizes[row].tolist(), left, max_estimated):
            logits += [mean_logits[unit]] * left[unit]
            values += [mean_values[unit]] * left[unit]
        each = torch.stack(logits, dim=1)
        if options.softcap is not None:
            each = options.softcap * torch.tanh(each / options.softcap)
        if sinks is not None:
            each = torch.cat([each, sinks[row].double()[:, None]], dim=1)
        outs.append(each.softmax(1)[:, : len(values)] @ torch.stack(values))
    return torch.cat(outs).view(layer.batch_size, -1, outs[0].shape[-1])


def units_of(
    layer: RetrievalLayer, row: int, queries: Tensor, scaling: float
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Logits [G] and value [Dv] of the means of each unit of a row, and how many of its tokens are in no slot."""
    index, logits, values, left, first = layer.index, [], [], [], 0
    places = layer.resident.slot_place[row].tolist()
    for unit in range(int(index.counts[row])):
        size = int(index.sizes[row, unit])
        key_step, value_step, _ = index.summaries[2][row, unit].double()
        logits.append(scaling * queries @ (index.summaries[0][row, unit].double() * key_step))
        values.append(index.summaries[1][row, unit].double() * value_step)
        left.append(size - sum(first <= place < first + size for place in places))
        first += size
    return logits, values, left


def most_attended(
    logits: list[Tensor], beside: Tensor, sizes: list[int], left: list[int], max_estimated: int | None
) -> list[int]:
    """The units whose tokens without a slot get most attention, mean over the group; the softcap is not looked at."""
    if max_estimated is None or not logits:
        return list(range(len(logits)))
    mass = [logit.exp() for logit in logits]
    total = torch.stack([size * each for size, each in zip(sizes, mass, strict=False)]).sum(0) + beside.exp()
    shares = [float((each / total).mean()) * count for each, count in zip(mass, left, strict=True)]
    return sorted(range(len(shares)), key=lambda unit: -shares[unit])[:max_estimated]


def check_step(driven: Driven, options: AttentionOptions = PLAIN, max_estimated: int | None = None) -> None:
    """One step is as written out."""
    query, got = driven.step(options)
    layer = driven.layer
    assert isinstance(layer, RetrievalLayer)
    expected = written_out(layer, query, options, max_estimated)
    torch.testing.assert_close(got[:, :, 0].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
def test_the_rest_of_each_unit_is_its_mean(trigger: Trigger, options: str) -> None:
    for seed, (units, output) in enumerate(GROUPINGS):
        for oversample in (0, 3):
            method = replace(
                SMALL, units=units, output=output, trigger=trigger, oversample=oversample, hold=float(seed % 2)
            )
            driven = Driven(method, seed=seed)
            driven.prompt(50)
            for _ in range(14):
                check_step(driven, OPTIONS[options])
            driven.layer.check_integrity()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    grouping=st.sampled_from(GROUPINGS),
    trigger=st.sampled_from(TRIGGERS),
    options=st.sampled_from(sorted(OPTIONS)),
    oversample=st.sampled_from([0, 1, 4]),
    max_estimated=st.sampled_from([None, 1, 3, 1000]),
    padding=st.integers(0, 44),
    turns=st.lists(
        st.one_of(
            st.tuples(st.just("decode"), st.integers(1, 12)),
            st.tuples(st.just("prompt"), st.integers(2, 30)),
            st.tuples(st.just("crop"), st.integers(1, 30)),
            st.tuples(st.just("reorder"), st.integers(0, 3)),
        ),
        max_size=5,
    ),
    seed=st.integers(0, 99),
)
def test_whatever_came_before(
    grouping: tuple[Units, Units | None],
    trigger: Trigger,
    options: str,
    oversample: int,
    max_estimated: int | None,
    padding: int,
    turns: list[tuple[str, int]],
    seed: int,
) -> None:
    method = replace(
        SMALL,
        units=grouping[0],
        output=grouping[1],
        trigger=trigger,
        oversample=oversample,
        max_estimated=max_estimated,
    )
    driven = Driven(method, batch_size=2, seed=seed)
    valid = torch.ones(2, 45, dtype=torch.bool)
    # The row may be so short that it has no units where the other has some.
    valid[0, :padding] = False
    driven.prompt(45, valid)
    for action, number in [*turns, ("decode", 3)]:
        if action == "decode":
            for _ in range(number):
                check_step(driven, OPTIONS[options], max_estimated)
        elif action == "prompt":
            driven.prompt(number)
        elif action == "reorder":
            driven.layer.select_batch(torch.tensor([number // 2, number % 2]))
        else:
            assert isinstance(driven.layer, RetrievalLayer)
            shortest = driven.layer.resident.lengths.view(2, -1).amin(1)
            driven.layer.crop(torch.full((2,), number).minimum(shortest - 1))
        driven.layer.check_integrity()


def test_only_the_units_with_most_attention_may_be_estimated() -> None:
    outs = []
    for max_estimated in (1, 2, 5, 10, 1000, None):
        driven = Driven(replace(SMALL, trigger=Every(1), max_estimated=max_estimated))
        driven.prompt(90)
        for _ in range(5):
            _, out = driven.step()
        outs.append(out)
    assert torch.equal(outs[-1], outs[-2]), "more than there are"
    errors = [float((out - outs[-1]).norm()) for out in outs]
    assert errors[0] > errors[2] > errors[3] > 0


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_rows_of_a_batch_are_as_they_are_alone(trigger: Trigger, softcap: float | None) -> None:
    """Also where one of them has no units, or gets its first when others have had some for long."""
    options = AttentionOptions(scaling=SCALING, softcap=softcap)
    method = replace(SMALL, trigger=trigger, oversample=3, hold=1.0, max_estimated=6)
    lengths, num_steps = (2, 17, 60), 24
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(3, NUM_KV_HEADS, 60 + num_steps, DIM, generator=generator)
    values = torch.randn(3, NUM_KV_HEADS, 60 + num_steps, VALUE_DIM, generator=generator)
    queries = torch.randn(3, num_steps, NUM_KV_HEADS * GROUP_SIZE, DIM, generator=generator)
    queries = queries[:, :1] + 0.5 * queries.cumsum(1)

    def outputs(rows: slice, valid: Tensor | None, first: int) -> Tensor:
        layer = method.layer(0)
        layer.begin(len(keys[rows]), NUM_KV_HEADS, NUM_KV_HEADS * GROUP_SIZE)
        layer.absorb(keys[rows, :, first:60], values[rows, :, first:60], valid)
        outs = []
        for step in range(num_steps):
            place = slice(60 + step, 61 + step)
            layer.append(keys[rows, :, place], values[rows, :, place])
            outs.append(layer.attend(queries[rows, step, :, None], options))
        layer.check_integrity()
        return torch.cat(outs, dim=2)

    valid = torch.arange(60) >= 60 - torch.tensor(lengths)[:, None]
    together = outputs(slice(0, 3), valid, 0)
    for row, length in enumerate(lengths):
        alone = outputs(slice(row, row + 1), None, 60 - length)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("oversample", [0, 3])
def test_query_heads_that_select_alone_estimate_alone(oversample: int) -> None:
    method = replace(SMALL, oversample=oversample, per_query_head=True, max_estimated=7)
    driven = Driven(method)
    driven.prompt(60)
    for _ in range(12):
        query, got = driven.step()
        state = driven.layer.state  # type: ignore[attr-defined]
        expected = written_out(state, query, PLAIN, 7)
        torch.testing.assert_close(got[:, :, 0].double(), expected, atol=1e-4, rtol=1e-4)
    driven.layer.check_integrity()


@pytest.mark.parametrize("length", [1, 2, 5, 11, 12, 13])
@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
def test_a_prompt_without_units(trigger: Trigger, length: int) -> None:
    sequence = drifting(length, 16, 2, seed=length)
    layer = started(replace(SMALL, trigger=trigger, budget=100, oversample=2), sequence)
    for step in range(16):
        torch.testing.assert_close(decode(layer, sequence, step), full_attention(sequence, step), atol=1e-4, rtol=1e-4)
    layer.check_integrity()


def test_units_of_one_token_are_almost_full_attention() -> None:
    """Keys and values in 8 bits: what an estimate costs is what rounding costs."""
    sequence = drifting(80, 12, 2, seed=0)
    exact, estimated = (
        started(replace(SMALL, units=Tokens(4), output=None, trigger=Every(1), estimate=estimate), sequence)
        for estimate in (False, True)
    )
    for step in range(12):
        expected = full_attention(sequence, step)
        got, without = decode(estimated, sequence, step), decode(exact, sequence, step)
        assert float((got - expected).abs().max()) < 0.05
        assert float((got - expected).norm()) < 0.2 * float((without - expected).norm())


@pytest.mark.parametrize("seed", range(3))
def test_an_estimate_is_nearer_to_full_attention_than_nothing(seed: int) -> None:
    sequence = drifting(400, 12, 2, seed=seed)
    errors = []
    for estimate in (False, True):
        layer = started(replace(SMALL, trigger=Every(1), estimate=estimate), sequence)
        outs = [decode(layer, sequence, step) - full_attention(sequence, step) for step in range(12)]
        errors.append(float(torch.stack(outs).norm()))
        assert layer.attended <= SMALL.budget
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("oversample", [0, 3])
def test_in_few_bits_it_is_near_float32(dtype: torch.dtype, oversample: int) -> None:
    """The estimate of the same resident tokens; the selection itself may differ where scores are near."""
    method = replace(SMALL, oversample=oversample)
    driven = Driven(method)
    layer = driven.layer
    assert isinstance(layer, RetrievalLayer)
    shape = (1, NUM_KV_HEADS, 90)
    random = driven.random
    layer.absorb(random(*shape[1:], DIM).to(dtype), random(*shape[1:], VALUE_DIM).to(dtype), None)
    for _ in range(20):
        layer.append(random(NUM_KV_HEADS, 1, DIM).to(dtype), random(NUM_KV_HEADS, 1, VALUE_DIM).to(dtype))
        query = random(NUM_KV_HEADS * GROUP_SIZE, 1, DIM).to(dtype)
        got = layer.attend(query, PLAIN)
        assert got.dtype == dtype
        expected = written_out(layer, query, PLAIN)
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(got[:, :, 0].double(), expected, atol=tolerance, rtol=tolerance)
    layer.check_integrity()


def test_hold_moves_less() -> None:
    fetched = []
    for hold in (0.0, 1.0, 100.0):
        for oversample in (0, 4):
            sequence = drifting(200, 30, 2, seed=4)
            layer = started(replace(SMALL, trigger=Every(1), hold=hold, oversample=oversample), sequence)
            for step in range(30):
                decode(layer, sequence, step)
            fetched.append(layer.traffic.fetched_tokens)
    whole, inside = fetched[::2], fetched[1::2]
    for moved in (whole, inside):
        assert moved[0] > moved[1] > moved[2]
    first = SMALL.budget - SMALL.sink - SMALL.window
    assert inside[2] <= 2 * NUM_KV_HEADS * first, "what is there stays, but for the window, which takes and gives room"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"summary": MeanKey()},
            r"estimate=True and max_looked=None need what MeanKey\(\) does not keep: give summary=Sketch",
        ),
        ({"summary": MeanKey(), "estimate": False, "oversample": 2}, r"oversample=2, .*Sketch\(token_bits=True\)"),
        ({"summary": Sketch(token_bits=False), "oversample": 2}, r"oversample=2, .*Sketch\(token_bits=True\)"),
        ({"scaled": False}, "scaled=False is not allowed"),
        ({"oversample": 2, "recent_units": 1}, "recent_units=1 takes whole units, and oversample=2 single tokens"),
        ({"hold": -1}, "hold=-1 .* from 0 to 100"),
        ({"oversample": -1}, "oversample=-1 .* at least 0"),
        ({"oversample": 1.5}, "oversample=1.5 .* whole number"),
        ({"max_estimated": 0}, "max_estimated=0 .* at least 1"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        replace(SMALL, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("summary", [Sketch(), Sketch(token_bits=False)], ids=str)
def test_an_estimate_needs_no_bits(summary: Summary) -> None:
    driven = Driven(replace(SMALL, summary=summary))
    driven.prompt(60)
    for _ in range(5):
        check_step(driven)
    driven.layer.check_integrity()
