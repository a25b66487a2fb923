"""Every combination of parts: no token is lost, no budget exceeded, and room for everything is full attention."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import Quest, SettingsError
from louiskv.methods.full import FullLayer
from louiskv.methods.per_query_head import PerQueryHead
from louiskv.methods.retrieval import STORES, Retrieval
from louiskv.methods.retrieval_layer import RetrievalLayer
from louiskv.ops.selection import REDUCES
from louiskv.triggers import Cosine, Every, Late, Trigger
from louiskv.units.base import Units
from louiskv.units.clusters import Clusters
from louiskv.units.pages import Pages
from louiskv.units.segments import Segments
from louiskv.units.summaries import BoundingVolume, MeanKey, MinMax, OneBit, Summary
from louiskv.units.tokens import Tokens
from tests.methods.oracle import (
    NUM_KV_HEADS,
    Sequence,
    agree_step_by_step,
    attended_positions,
    attention,
    by_group,
    decode,
    drifting,
    started,
)
from tests.methods.test_quest import QuestOracle

SINK, WINDOW = 3, 9
CLUSTERS = Clusters(unit_size=4, iterations=2, chunk_size=24, output_size=8)
# How a prompt is grouped, and how its output is (None: as the units say).
GROUPINGS: list[tuple[Units, Units | None]] = [
    (Pages(4), None),
    (CLUSTERS, None),
    (CLUSTERS, CLUSTERS),
    (Tokens(4), None),
    (Segments(2, 4), None),
    (Pages(4), Segments(2, 4)),
    (CLUSTERS, Pages(6)),
    (Tokens(4), CLUSTERS),
]
SUMMARIES: list[Summary] = [MeanKey(), MinMax(), BoundingVolume()]
TRIGGERS: list[Trigger] = [
    Every(1),
    Every(4),
    Cosine(0.9),
    Cosine(0.9, per_head=True),
    Late(Cosine(0.9, per_head=True)),
    Late(Every(3)),
]
ONE_BIT: tuple[Units, Units | None, Summary] = (Tokens(4), None, OneBit(4))
COMBINATIONS = [(*grouping, summary) for grouping, summary in product(GROUPINGS, SUMMARIES)] + [ONE_BIT]


def combined(
    units: Units, output: Units | None, summary: Summary, trigger: Trigger, num_pages: int = 7, **others: object
) -> Retrieval:
    settings = {"sink": SINK, "window": WINDOW, "dense_layers": 0, **others}
    return Retrieval(
        budget=4 * num_pages,
        units=units,
        output=output,
        summary=summary,
        trigger=trigger,
        **settings,  # type: ignore[arg-type]
    )


def decoded(method: Retrieval, sequence: Sequence) -> Iterator[tuple[RetrievalLayer, torch.Tensor]]:
    """Decode, and look at the state after every step."""
    layer = started(method, sequence)
    layer.check_integrity()
    for step in range(len(sequence.queries)):
        out = decode(layer, sequence, step)
        assert layer.attended <= method.budget
        yield layer, out
        layer.check_integrity()
        assert layer.attended <= method.budget


def full_attention(sequence: Sequence, step: int) -> torch.Tensor:
    end = sequence.length + step + 1
    keys, values = sequence.keys[:, :end].tolist(), sequence.values[:, :end].tolist()
    rows = zip(by_group(sequence.queries[step]), keys, values, strict=True)
    return torch.tensor([attention(each, *held) for group, *held in rows for each in group])


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
@pytest.mark.parametrize(("units", "output", "summary"), COMBINATIONS, ids=str)
def test_no_token_is_lost_and_no_budget_exceeded(
    units: Units, output: Units | None, summary: Summary, trigger: Trigger
) -> None:
    # The parts that only change which units are best take turns; all of them meet all others below.
    turn = COMBINATIONS.index((units, output, summary)) + TRIGGERS.index(trigger)
    reduce, store = REDUCES[turn % len(REDUCES)], STORES[turn % len(STORES)]
    method = combined(units, output, summary, trigger, reduce=reduce, store=store, scaled=turn % 3 > 0)
    states = list(decoded(method, drifting(35, 20, 2, seed=turn)))
    assert all(out.isfinite().all() for _, out in states)
    layer = states[-1][0]
    assert layer.traffic.offloaded_tokens == (int(layer.pool.lengths.sum()) if store == "host" else 0)
    assert (layer.traffic.fetched_tokens > 0) == (store == "host")


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
@pytest.mark.parametrize(("units", "output", "summary"), COMBINATIONS, ids=str)
def test_with_a_budget_for_everything_it_is_full_attention(
    units: Units, output: Units | None, summary: Summary, trigger: Trigger
) -> None:
    sequence = drifting(30, 12, 2, seed=1)
    for step, (layer, out) in enumerate(decoded(combined(units, output, summary, trigger, num_pages=20), sequence)):
        assert layer.attended == 30 + step + 1
        torch.testing.assert_close(out, full_attention(sequence, step), atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    combination=st.sampled_from(COMBINATIONS),
    trigger=st.sampled_from(TRIGGERS),
    reduce=st.sampled_from(REDUCES),
    scaled=st.booleans(),
    store=st.sampled_from(STORES),
    prompt_window=st.one_of(st.none(), st.integers(0, WINDOW)),
    length=st.integers(1, 70),
    num_pages=st.one_of(st.integers(6, 14), st.just(30)),
    group_size=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_any_parts_go_together(
    combination: tuple[Units, Units | None, Summary],
    trigger: Trigger,
    reduce: str,
    scaled: bool,
    store: str,
    prompt_window: int | None,
    length: int,
    num_pages: int,
    group_size: int,
    seed: int,
) -> None:
    method = combined(
        *combination,
        trigger,
        num_pages,
        reduce=reduce,
        scaled=scaled,
        store=store,
        prompt_window=prompt_window,
    )
    sequence = drifting(length, 24, group_size, seed)
    for step, (_, out) in enumerate(decoded(method, sequence)):
        assert out.isfinite().all()
        if num_pages == 30:
            torch.testing.assert_close(out, full_attention(sequence, step), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize(("units", "output", "summary"), COMBINATIONS, ids=str)
def test_where_the_keys_lie_changes_nothing_but_the_traffic(
    units: Units, output: Units | None, summary: Summary, reduce: str
) -> None:
    sequence = drifting(47, 8, 3, seed=5)
    on_host = combined(units, output, summary, Every(1), reduce=reduce)
    pairs = zip(decoded(on_host, sequence), decoded(replace(on_host, store="device"), sequence), strict=True)
    for (host, expected), (device, got) in pairs:
        assert torch.equal(got, expected)
        assert attended_positions(device, sequence.keys) == attended_positions(host, sequence.keys)
    assert host.traffic.fetched_tokens > 0 and host.traffic.offloaded_tokens > 0
    assert device.traffic.fetched_bytes == device.traffic.offloaded_bytes == 0
    assert host.telemetry.selected.read() == device.telemetry.selected.read()


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
def test_the_newest_units_can_be_taken_in_any_case(trigger: Trigger) -> None:
    method = combined(Pages(4), None, MinMax(), trigger, num_pages=9, recent_units=2)
    sequence = drifting(47, 24, 2, seed=0)
    for step, (layer, _) in enumerate(decoded(method, sequence)):
        if isinstance(trigger, Every) and step % trigger.steps == 0:
            in_pages = int(layer.resident.window_start[0])
            newest = set(range(in_pages - 8, in_pages))
            assert all(newest <= positions for positions in attended_positions(layer, sequence.keys))


@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    length=st.integers(1, 90),
    page_size=st.sampled_from([1, 3, 8]),
    num_pages=st.integers(2, 6),
    seed=st.integers(0, 999),
)
def test_pages_with_min_and_max_at_every_step_are_quest(length: int, page_size: int, num_pages: int, seed: int) -> None:
    quest = Quest(budget=num_pages * page_size, page_size=page_size, dense_layers=0)
    parts = Retrieval(
        budget=num_pages * page_size,
        sink=0,
        window=page_size,
        units=Pages(page_size),
        summary=MinMax(),
        trigger=Every(1),
        store="device",
        dense_layers=0,
    )
    sequence = drifting(length, 30, 2, seed)
    agree_step_by_step(parts, sequence, QuestOracle(quest, sequence))
    moving, still = started(replace(parts, store="host"), sequence), started(quest, sequence)
    for step in range(30):
        assert torch.equal(decode(moving, sequence, step), decode(still, sequence, step))


def test_a_prompt_may_leave_less_than_a_window() -> None:
    sequence = drifting(47, 1, 2, seed=0)
    for prompt_window, expected in ((None, 8), (8, 8), (5, 4), (4, 4), (3, 0), (0, 0)):
        method = combined(Pages(4), None, MinMax(), Every(1), prompt_window=prompt_window)
        layer = started(method, sequence)
        assert (layer.resident.lengths - layer.resident.window_start).tolist() == [expected] * NUM_KV_HEADS


def test_the_output_is_grouped_like_the_prompt_except_beside_clusters() -> None:
    # Behind the sinks 56 tokens, of which the window keeps 8: its tail is whole segments as well.
    sequence = drifting(59, 40, 2, seed=0)
    cases: list[tuple[Units, int]] = [(Pages(4), 4), (Tokens(4), 1), (Segments(2, 4), 4), (CLUSTERS, 4)]
    for units, longest in cases:
        layer = started(combined(units, None, MeanKey(), Cosine(-1)), sequence)
        for step in range(40):
            decode(layer, sequence, step)
        assert set(layer.telemetry.segments.read()) == {longest}, units


@pytest.mark.parametrize("trigger", TRIGGERS, ids=str)
@pytest.mark.parametrize(("units", "output", "summary"), [COMBINATIONS[0], COMBINATIONS[4], ONE_BIT], ids=str)
def test_query_heads_that_select_alone_are_groups_of_one(
    units: Units, output: Units | None, summary: Summary, trigger: Trigger
) -> None:
    sequence = drifting(47, 12, 3, seed=2)
    repeated = replace(sequence, keys=each_three_times(sequence.keys), values=each_three_times(sequence.values))
    method = combined(units, output, summary, trigger)
    alone = replace(method, per_query_head=True).layer(0)
    assert isinstance(alone, PerQueryHead)
    alone.begin(1, NUM_KV_HEADS, 3 * NUM_KV_HEADS)
    alone.absorb(sequence.keys[None, :, :47], sequence.values[None, :, :47], None)
    for step, (groups_of_one, out) in enumerate(decoded(method, repeated)):
        assert torch.equal(decode(alone, sequence, step), out)
        assert torch.equal(alone.attended_positions(), groups_of_one.attended_positions())
        alone.check_integrity()
    assert alone.traffic == groups_of_one.traffic
    alone_held, held = alone.tiers(), groups_of_one.tiers()
    assert replace(alone_held, seen=held.seen) == held
    assert (3 * alone_held.seen.tokens, 3 * alone_held.seen.bytes) == (held.seen.tokens, held.seen.bytes)
    assert alone_held.seen.bytes == 59 * NUM_KV_HEADS * sequence.token_size


def each_three_times(states: torch.Tensor) -> torch.Tensor:
    return states.repeat_interleave(3, dim=0)


def test_query_heads_that_select_alone_move_more_than_their_groups() -> None:
    sequence = drifting(400, 30, 4, seed=3)
    method = combined(CLUSTERS, None, MeanKey(), Cosine(0.9))
    fetched = []
    for each in (method, replace(method, per_query_head=True)):
        layer = each.layer(0)
        layer.begin(1, NUM_KV_HEADS, 4 * NUM_KV_HEADS)
        layer.absorb(sequence.keys[None, :, :400], sequence.values[None, :, :400], None)
        for step in range(30):
            decode(layer, sequence, step)
        fetched.append(layer.traffic.fetched_bytes)
    assert fetched[1] > 2 * fetched[0] > 0


def test_the_first_layers_keep_everything() -> None:
    method = Retrieval(dense_layers=2)
    assert [type(method.layer(index)) for index in range(4)] == [FullLayer] * 2 + [RetrievalLayer] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 0}, "budget=0 .* at least 1"),
        ({"budget": 2.0}, "budget=2.0 .* whole number"),
        ({"budget": True}, "budget=True .* whole number"),
        ({"window": 0}, "window=0 .* at least 1"),
        ({"window": "all"}, "window='all' .* whole number"),
        ({"sink": -1}, "sink=-1 .* at least 0"),
        ({"recent_units": -1}, "recent_units=-1 .* at least 0"),
        ({"recent_units": 1.0}, "recent_units=1.0 .* whole number"),
        ({"dense_layers": -1}, "dense_layers=-1 .* at least 0"),
        ({"dense_layers": None}, "dense_layers=None .* whole number"),
        ({"prompt_window": -1}, "prompt_window=-1 .* at least 0"),
        ({"prompt_window": 0.5}, "prompt_window=0.5 .* whole number"),
        ({"prompt_window": 65}, "prompt_window=65 .* at most 64"),
        ({"reduce": "softmax_sum"}, "reduce='softmax_sum' .* softmax_mean, softmax_max, share_mean, logit_mean"),
        ({"store": "disk"}, "store='disk' .* host, device"),
        ({"units": Pages(16), "budget": 1000}, "budget=1000 is not a multiple of page_size=16: give 992 or 1008"),
        ({"units": Pages(65), "budget": 650}, "window=64 .* 65 tokens .*Pages.* at least 65"),
        ({"units": Tokens(65)}, "window=64 .* 65 tokens .*Tokens.* at least 65"),
        ({"output": Clusters(output_size=80)}, "window=64 .* 80 tokens .*Clusters.* at least 80"),
        ({"budget": 80}, r"budget=80 leaves no room .* at least 81,"),
        ({"units": Pages(16), "budget": 80}, r"budget=80 leaves no room .* at least 96,"),
        ({"units": Pages(16), "budget": 112, "recent_units": 2}, r"budget=112 leaves no room .* at least 128,"),
        ({"units": Pages(16), "output": Pages(24), "budget": 80}, "budget=80 leaves no room .* at least 88,"),
        (
            {"units": Pages(16), "output": Segments(2, 4), "window": 8, "budget": 96},
            "window=8 .*Pages.* multiples of 16",
        ),
        ({"units": "pages"}, "units='pages' .* louiskv.units.base.Units"),
        ({"output": 4}, "output=4 .* louiskv.units.base.Units"),
        ({"summary": Pages(4)}, "summary=Pages.* louiskv.units.summaries.Summary"),
        ({"trigger": "every"}, "trigger='every' .* louiskv.triggers.base.Trigger"),
        ({"summary": OneBit(32)}, r"OneBit\(group_size=32\) .* needs units=Tokens\(group_size=32\)"),
        ({"summary": OneBit(32), "units": Tokens(16)}, r"units=Tokens\(group_size=16\) it needs .*group_size=32"),
        ({"summary": OneBit(32), "units": Tokens(32), "output": Pages(16)}, "for the output as well"),
    ],
)
def test_wrong_settings_say_what_is_allowed(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Retrieval(**wrong)  # type: ignore[arg-type]


def test_the_least_that_is_allowed() -> None:
    assert Retrieval(budget=81).budget == 81
    assert Retrieval(budget=96, units=Pages(16)).budget == 96
    assert Retrieval(budget=128, units=Pages(16), recent_units=2).budget == 128
    assert Retrieval(budget=88, units=Clusters(), output=Pages(64)).budget == 88
    assert Retrieval(units=Tokens(32), summary=OneBit(32)).summary == OneBit(32)
