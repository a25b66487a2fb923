"""A selection that looks at the best bundles only, against a search written out, in every state of a layer."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from louiskv import LouisKVPlus, SettingsError
from louiskv.methods.base import AttentionOptions
from louiskv.methods.parts import BUNDLE_SIZE
from louiskv.methods.retrieval import Retrieval
from louiskv.methods.retrieval_layer import RetrievalLayer
from louiskv.ops.quantize import unpack_bits
from louiskv.triggers import Coverage, Every, Late, Trigger
from louiskv.units.base import Units
from louiskv.units.clusters import Clusters
from louiskv.units.pages import Pages
from louiskv.units.summaries import MeanKey, Sketch
from louiskv.units.tokens import Tokens
from tests.methods.oracle import NUM_KV_HEADS, SCALING, attended_rows, decode, drifting, started
from tests.methods.test_estimated import DIM, GROUP_SIZE, PLAIN, SMALL, VALUE_DIM, Driven

# Three bundles of sixteen and a half, for about twenty tokens to retrieve.
FEW = 7 * BUNDLE_SIZE // 2
METHOD = replace(SMALL, reduce="share_mean", trigger=Every(1), max_looked=FEW, units=Clusters(3, 2, 200))
GROUPINGS: list[tuple[Units, Units | None]] = [(METHOD.units, METHOD.output), (Pages(2), None), (Tokens(4), None)]


@dataclass
class Entry:
    """What a step knows of the tokens at some places: of a unit, or of a bundle that it does not look into."""

    places: range
    logits: Tensor
    value: Tensor
    bit_step: float
    is_unit: bool = True

    def share(self, total: Tensor) -> float:
        """Of a token, mean over the heads whose softmax sums to `total` [G]."""
        return float((self.logits.exp() / total).mean())


def level(
    summaries: tuple[Tensor, ...], row: int, sizes: list[int], queries: Tensor, is_unit: bool = True
) -> list[Entry]:
    """The entries of a row of units, or of one of bundles, that have these sizes and lie side by side."""
    entries, first = [], 0
    for each, size in enumerate(sizes):
        key_step, value_step, bit_step = summaries[2][row, each].double()
        key, value = summaries[0][row, each].double() * key_step, summaries[1][row, each].double() * value_step
        logits = SCALING * queries @ key
        entries.append(Entry(range(first, first + size), logits, value, float(bit_step), is_unit))
        first += size
    return entries


def total_of(entries: list[Entry], always: Tensor) -> Tensor:
    """[G] sum of the exponentials of the logits of all tokens."""
    return torch.stack([always, *(len(entry.places) * entry.logits.exp() for entry in entries)]).sum(0)


def always_of(layer: RetrievalLayer, row: int, queries: Tensor) -> Tensor:
    keys, bias = layer.resident.always
    return (SCALING * queries @ keys[row, bias[row, 0] == 0].double().T).exp().sum(1)


def looked_at(layer: RetrievalLayer, row: int, queries: Tensor) -> list[Entry]:
    """The units of the best bundles, and the other bundles."""
    index, max_looked = layer.index, layer.parts.max_looked
    sizes: list[int] = index.sizes[row].tolist()
    units = level(index.summaries, row, sizes, queries)
    if max_looked is None or len(units) <= max_looked:
        return units
    of_bundle = [sizes[first : first + BUNDLE_SIZE] for first in range(0, len(sizes), BUNDLE_SIZE)]
    bundles = level(index.bundled, row, [sum(inside) for inside in of_bundle], queries, is_unit=False)
    total = total_of(bundles, always_of(layer, row, queries))
    held = [bundle for bundle in range(len(bundles)) if bundles[bundle].places]
    best = sorted(held, key=lambda bundle: -bundles[bundle].share(total))[: max_looked // BUNDLE_SIZE]
    inside = [unit for bundle in best for unit in units[bundle * BUNDLE_SIZE : (bundle + 1) * BUNDLE_SIZE]]
    return inside + [bundles[bundle] for bundle in held if bundle not in best]


def check_selected(
    layer: RetrievalLayer, row: int, queries: Tensor, entries: list[Entry], before: set[int], resident: set[int]
) -> None:
    """What is resident the flat algorithm selects among the entries that are units, when those `before` were."""
    parts, rooms = layer.parts, layer.parts.room(layer.resident)
    room = int(rooms[row]) if isinstance(rooms, Tensor) else rooms
    total = total_of(entries, always_of(layer, row, queries))
    units = [entry for entry in entries if entry.is_unit and entry.places]

    def score(entry: Entry) -> float:
        return math.log(entry.share(total)) + parts.hold * (not parts.oversample and bool(before & set(entry.places)))

    ranked = [place for entry in sorted(units, key=lambda entry: -score(entry)) for place in entry.places]
    assert len(resident) == min(room, int(layer.pool.lengths[row]))
    if not parts.oversample:
        assert resident == set(ranked[:room])
        return
    bits = layer.index.details
    assert bits is not None
    candidates = set(ranked[: room * parts.oversample]) | (before & set(ranked))
    scores = {}
    for entry in units:
        for place in candidates & set(entry.places):
            signs = unpack_bits(bits[row, place], DIM).double() * 2 - 1
            shares = (entry.logits + SCALING * entry.bit_step * queries @ signs).exp() / total
            scores[place] = math.log(float(shares.mean())) + parts.hold * (place in before)
    # Tokens of a unit that have the same bits have the same score.
    assert sorted(scores[place] for place in resident) == pytest.approx(sorted(scores.values())[-room:], abs=1e-4)


def attended(layer: RetrievalLayer, row: int, queries: Tensor, entries: list[Entry], resident: set[int]) -> Tensor:
    """[G, Dv]: exactly what is in the slots, and the others as their entry says."""
    keys, values = (each.double() for each in attended_rows(layer, row))
    weights, sums = (SCALING * queries @ keys.T).exp(), values
    left = [entry for entry in entries for place in entry.places if place not in resident]
    assert len(values) + len(left) == int(layer.resident.lengths[row]), "each token counts once"
    max_estimated = layer.parts.max_estimated
    if max_estimated is not None:
        total = total_of(entries, always_of(layer, row, queries))
        mass = {id(entry): entry.share(total) * sum(each is entry for each in left) for entry in entries}
        best = sorted(mass, key=lambda entry: -mass[entry])[:max_estimated]
        left = [entry for entry in left if id(entry) in best]
    if left:
        weights = torch.cat([weights, torch.stack([entry.logits.exp() for entry in left], dim=1)], dim=1)
        sums = torch.cat([values, torch.stack([entry.value for entry in left])])
    return weights / weights.sum(1, keepdim=True) @ sums


def places(layer: RetrievalLayer, row: int) -> set[int]:
    return {place for place in layer.resident.slot_place[row].tolist() if place >= 0}


def check_step(driven: Driven, selects: bool = True) -> None:
    """One step selects and attends as written out; `selects` says that each row selects anew."""
    layer = driven.layer
    assert isinstance(layer, RetrievalLayer)
    attend = layer.attend
    before: list[set[int]] = []

    def watched(query: Tensor, options: AttentionOptions) -> Tensor:
        before.extend(places(layer, row) for row in range(len(layer.resident.lengths)))
        return attend(query, options)

    layer.attend = watched  # type: ignore[method-assign]
    query, got = driven.step()
    layer.attend = attend  # type: ignore[method-assign]
    grouped = query.view(len(before), GROUP_SIZE, DIM).double()
    for row, queries in enumerate(grouped):
        entries, resident = looked_at(layer, row, queries), places(layer, row)
        if selects:
            check_selected(layer, row, queries, entries, before[row], resident)
        out = got.view(len(before), GROUP_SIZE, -1)[row].double()
        torch.testing.assert_close(out, attended(layer, row, queries, entries, resident), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
@pytest.mark.parametrize("oversample", [0, 3])
@pytest.mark.parametrize("hold", [0.0, 1.0])
def test_the_best_units_of_the_best_bundles(grouping: tuple[Units, Units | None], oversample: int, hold: float) -> None:
    method = replace(METHOD, units=grouping[0], output=grouping[1], oversample=oversample, hold=hold)
    driven = Driven(method)
    driven.prompt(300)
    assert isinstance(driven.layer, RetrievalLayer)
    assert driven.layer.index.sizes.shape[1] > FEW
    for _ in range(12):
        check_step(driven)
    driven.layer.check_integrity()


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    grouping=st.sampled_from(GROUPINGS),
    trigger=st.sampled_from([Every(1), Every(4), Coverage(0.95, against="best"), Late()]),
    oversample=st.sampled_from([0, 2]),
    max_estimated=st.sampled_from([None, 1, 5, 30]),
    padding=st.integers(0, 219),
    turns=st.lists(
        st.one_of(
            st.tuples(st.just("decode"), st.integers(1, 8)),
            st.tuples(st.just("prompt"), st.integers(2, 90)),
            st.tuples(st.just("crop"), st.integers(1, 150)),
            st.tuples(st.just("reorder"), st.integers(0, 3)),
        ),
        max_size=4,
    ),
    seed=st.integers(0, 99),
)
def test_whatever_came_before(
    grouping: tuple[Units, Units | None],
    trigger: Trigger,
    oversample: int,
    max_estimated: int | None,
    padding: int,
    turns: list[tuple[str, int]],
    seed: int,
) -> None:
    method = replace(
        METHOD,
        units=grouping[0],
        output=grouping[1],
        trigger=trigger,
        oversample=oversample,
        max_estimated=max_estimated,
    )
    driven = Driven(method, batch_size=2, seed=seed)
    valid = torch.ones(2, 220, dtype=torch.bool)
    valid[0, :padding] = False
    driven.prompt(220, valid)
    for action, number in [*turns, ("decode", 3)]:
        assert isinstance(driven.layer, RetrievalLayer)
        if action == "decode":
            for _ in range(number):
                check_step(driven, selects=trigger == Every(1))
        elif action == "prompt":
            driven.prompt(number)
        elif action == "reorder":
            driven.layer.select_batch(torch.tensor([number // 2, number % 2]))
        else:
            shortest = driven.layer.resident.lengths.view(2, -1).amin(1)
            driven.layer.crop(torch.full((2,), number).minimum(shortest - 1))
        driven.layer.check_integrity()


@pytest.mark.parametrize("oversample", [0, 3])
@pytest.mark.parametrize("trigger", [Every(1), Coverage(0.9), Late()], ids=str)
def test_looking_at_as_many_as_there_are_changes_nothing(trigger: Trigger, oversample: int) -> None:
    sequence = drifting(300, 20, GROUP_SIZE, seed=0)
    method = replace(METHOD, trigger=trigger, oversample=oversample, hold=1.0)
    # One that reads all units at once, and one whose index has room for more than it may look at.
    layers = [started(replace(method, max_looked=limit), sequence) for limit in (None, 10_000, 112)]
    assert layers[2].index.sizes.shape[1] <= 112
    for step in range(20):
        flat, *bundled = (decode(layer, sequence, step) for layer in layers)
        for out in bundled:
            torch.testing.assert_close(out, flat, atol=1e-5, rtol=1e-5)
    assert layers[2].index.sizes.shape[1] > 112 >= int(layers[2].index.counts.max())
    positions = [[set(row) for row in layer.attended_positions().tolist()] for layer in layers]
    assert positions[0] == positions[1] == positions[2]
    assert len({layer.traffic.fetched_tokens for layer in layers}) == 1


@pytest.mark.parametrize("num_retrieved", [1, 15, 16, 17, 31, 32, 33])
def test_the_least_that_may_be_looked_at_is_enough(num_retrieved: int) -> None:
    """Units of one token, and a last bundle of one unit that is always among the best."""
    least = num_retrieved + 2 * BUNDLE_SIZE
    method = replace(METHOD, units=Tokens(1), output=None, sink=0, window=2, budget=2 + num_retrieved, max_looked=least)
    layer = method.layer(0)
    layer.begin(1, 1, 1)
    num_units = 8 * BUNDLE_SIZE + 1
    keys = torch.randn(1, 1, num_units + 2, DIM, generator=torch.Generator().manual_seed(0))
    keys[..., num_units - 1, :] = 50
    layer.absorb(keys, keys, None)
    assert isinstance(layer, RetrievalLayer)
    layer.append(keys[:, :, :1], keys[:, :, :1])
    layer.attend(torch.ones(1, 1, 1, DIM), PLAIN)
    assert int((layer.resident.slot_place >= 0).sum()) == num_retrieved
    with pytest.raises(SettingsError, match=f"max_looked={least - 1} .* at least {least}"):
        replace(method, max_looked=least - 1)


@pytest.mark.parametrize("oversample", [0, 3])
def test_rows_of_a_batch_are_as_they_are_alone(oversample: int) -> None:
    """Whether they have no units, fewer than a look may read, or more."""
    method = replace(METHOD, oversample=oversample, hold=1.0, max_estimated=20)
    lengths, num_steps = (2, 90, 400), 24
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(3, NUM_KV_HEADS, 400 + num_steps, DIM, generator=generator)
    values = torch.randn(3, NUM_KV_HEADS, 400 + num_steps, VALUE_DIM, generator=generator)
    queries = torch.randn(3, num_steps, NUM_KV_HEADS * GROUP_SIZE, DIM, generator=generator)

    def outputs(rows: slice, valid: Tensor | None, first: int) -> Tensor:
        layer = method.layer(0)
        layer.begin(len(keys[rows]), NUM_KV_HEADS, NUM_KV_HEADS * GROUP_SIZE)
        layer.absorb(keys[rows, :, first:400], values[rows, :, first:400], valid)
        outs = []
        for step in range(num_steps):
            place = slice(400 + step, 401 + step)
            layer.append(keys[rows, :, place], values[rows, :, place])
            outs.append(layer.attend(queries[rows, step, :, None], PLAIN))
        layer.check_integrity()
        return torch.cat(outs, dim=2)

    valid = torch.arange(400) >= 400 - torch.tensor(lengths)[:, None]
    together = outputs(slice(0, 3), valid, 0)
    for row, length in enumerate(lengths):
        alone = outputs(slice(row, row + 1), None, 400 - length)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


def test_integrity_is_of_bundles_too() -> None:
    driven = Driven(METHOD)
    driven.prompt(300)
    driven.step()
    assert isinstance(driven.layer, RetrievalLayer)
    driven.layer.check_integrity()
    driven.layer.index.bundled[1][0, 2, 3] += 9
    with pytest.raises(AssertionError):
        driven.layer.check_integrity()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_looked": 50}, "max_looked=50 .* at least 51"),
        ({"max_looked": 1e3}, r"max_looked=1000.0 .* whole number"),
        (
            {"summary": MeanKey(), "estimate": False},
            r"max_looked=56 need what MeanKey\(\) .*token_bits=False",
        ),
        ({"scaled": False, "estimate": False}, "scaled=False is not allowed with .* max_looked"),
        ({"recent_units": 2, "budget": 40, "max_looked": 99}, "recent_units=2 .* max_looked=99 may not look at"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        replace(METHOD, **wrong)  # type: ignore[arg-type]


def test_neither_bits_nor_an_estimate_are_needed() -> None:
    method = replace(METHOD, summary=Sketch(token_bits=False), estimate=False)
    layer = started(method, drifting(300, 4, GROUP_SIZE, seed=0))
    assert layer.index.bundled and layer.index.details is None
    layer.check_integrity()


def test_louiskv_plus_looks_at_enough_for_any_budget() -> None:
    for budget in (100, 2048, 5000):
        parts: Retrieval = LouisKVPlus(budget=budget, max_looked=64).parts()
        assert parts.max_looked is not None and parts.max_looked > budget
