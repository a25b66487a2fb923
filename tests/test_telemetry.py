"""The report: its figures add up, and it prints, dumps and counts what happened."""

import json

import pytest
import torch

from louiskv import FreeKV, Full, LouisKV, RazorAttention, attach
from louiskv.cache import passing
from louiskv.counters import PHASES, CodingError, Histogram, Series, Tally
from louiskv.telemetry import Report, format_bytes
from tests.families import greedy, prompt, tiny

METHOD = LouisKV(budget=40, sink=4, window=16, unit_size=4, max_segment=8, dense_layers=1, tau=0.3)


@pytest.fixture(scope="module")
def report() -> Report:
    model = tiny("llama")
    with attach(model, METHOD) as cache:
        greedy(model, prompt(80, 2, (13,)), 61, **passing(model, cache))
        return cache.report()


def test_tokens_and_bytes_of_each_tier(report: Report) -> None:
    assert report.prompt_tokens == 80 + 67
    assert report.output_tokens == 2 * 60
    dense, *retrieving = report.layers
    seen = 2 * (80 + 67 + 120)  # two KV heads
    assert (dense.kind, dense.tiers.resident.tokens, dense.tiers.host.tokens) == ("FullLayer", seen, 0)
    for layer in retrieving:
        assert layer.kind == "RetrievalLayer"
        assert layer.tiers.seen.tokens == seen
        assert layer.tiers.seen.bytes == seen * (8 + 8) * 4
        assert layer.tiers.resident.tokens <= 2 * 2 * 40
        # Sinks and window are nowhere else; retrieved tokens lie in both places.
        assert layer.tiers.host.tokens + 2 * 2 * (4 + 16) >= seen
        assert layer.tiers.index.tokens > 0
        assert layer.steps == 60
    assert report.full_bytes == 4 * seen * 16 * 4
    assert report.device_bytes == sum(layer.tiers.resident.bytes + layer.tiers.index.bytes for layer in report.layers)


def test_what_moved(report: Report) -> None:
    for layer in report.layers[1:]:
        assert layer.offloaded_bytes == layer.tiers.host.tokens * 16 * 4
        assert layer.fetched_bytes > 0
        assert 0 < layer.retrieval_rate <= 1
        assert layer.hit_rate is not None
        assert 0 < layer.hit_rate < 1
        assert layer.similarity is not None
        assert -1 <= layer.similarity["min"] <= layer.similarity["median"] <= 1
        closed = sum(size * number for size, number in layer.segment_sizes.items())
        assert 0 < closed <= layer.tiers.host.tokens
        assert max(layer.segment_sizes) <= 8
    assert report.layers[0].fetched_bytes == report.layers[0].offloaded_bytes == 0


def test_fetched_bytes_are_selected_tokens_that_missed(report: Report) -> None:
    model = tiny("llama")
    with attach(model, METHOD) as cache:
        greedy(model, prompt(80, 2, (13,)), 61, **passing(model, cache))
        for layer in cache.managed[1:]:
            telemetry = layer.state.telemetry
            assert 0 < telemetry.missed.read() < telemetry.selected.read()
            assert layer.state.traffic.fetched_bytes == telemetry.missed.read() * 16 * 4


def test_times(report: Report) -> None:
    assert set(report.seconds) == set(PHASES)
    for phase in ("prefill", "clustering", "offload", "selection", "fetch", "attention"):
        assert report.seconds[phase] > 0


def test_report_as_text_dict_and_json(report: Report) -> None:
    text = str(report)
    for word in ("LouisKV(budget=40", "device", "host", "moved", "retrievals", "segments", "cosine", "seconds"):
        assert word in text
    figures = json.loads(report.to_json())
    assert figures["device_bytes"] == report.device_bytes
    assert figures["layers"][1]["tiers"]["host"]["tokens"] == report.layers[1].tiers.host.tokens
    assert figures["settings"]["budget"] == 40 and figures["ahead_rate"] is None


def test_what_is_selected_for_the_next_step_is_a_mean_over_the_layers_that_do() -> None:
    model = tiny("llama")
    with attach(model, FreeKV(budget=40, sink=4, window=16, page_size=4, dense_layers=1, tau=-1.0)) as cache:
        greedy(model, prompt(80), 9, **passing(model, cache))
        report = cache.report()
    # The first of 8 steps selects for itself.
    assert report.ahead_rate == report.to_dict()["ahead_rate"] == pytest.approx(7 / 8)
    assert "0.12 per step and layer (0.12 to 0.12), 0.88 for the next step" in str(report)


def test_an_empty_cache_reports_too() -> None:
    with attach(tiny("llama"), Full()) as cache:
        report = cache.report()
    assert (report.device_bytes, report.full_bytes, report.device_share) == (0, 0, 0.0)
    assert "0 prompt + 0 output" in str(report)


def test_series_grows_and_keeps_order() -> None:
    series = Series()
    for step in range(600):
        series.begin_step()
        series.append(torch.tensor([step, -step]))
    assert torch.equal(series.tensor()[:, 0], torch.arange(600))
    assert Series().quartiles() is None


def test_a_series_stays_where_it_is_for_as_many_steps_as_were_reserved() -> None:
    series, moved = Series(), []
    for step in range(500):
        if step == 50:
            assert series.reserve(400)
        moved += [step] if series.begin_step() else []
        series.append(torch.tensor(step))
    # Room for 256 at first; then for 450 and as many as that was again.
    assert moved == []
    assert [series.begin_step() for _ in range(13)].count(True) == 1


def test_bytes_as_people_read_them() -> None:
    sizes = (0, 1023, 1536, 5 * 2**20, 3 * 2**30)
    assert [format_bytes(size) for size in sizes] == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.00 GiB"]


def test_a_series_goes_on_when_the_batch_changes() -> None:
    series = Series()
    for value in (torch.zeros(2, 3), torch.ones(1, 3), torch.ones(1, 3)):
        series.begin_step()
        series.append(value)
    assert series.tensor().tolist() == [0.0] * 6 + [1.0] * 6


def test_both_halves_of_a_split_layer_are_timed() -> None:
    model = tiny("llama")
    method = RazorAttention(window=8, share=0.0, kv_heads=((0,),) * 4)
    with attach(model, method) as cache:
        greedy(model, prompt(60), 30)
    assert cache.report().seconds["attention"] > 0
    assert cache.report().seconds["selection"] > 0


def test_a_tally_counts_the_rows_that_hold_a_sequence_and_keeps_one_value() -> None:
    rows = torch.tensor([True, False, True])
    tally = Tally(rows)
    assert tally.mean() is None
    assert not tally.began
    for value in ([1.0, 1.0, 0.0], [1.0, torch.nan, 1.0], [torch.nan, 0.0, 0.0]):
        tally.append(torch.tensor(value)[:, None].expand(-1, 2))
    assert tally.mean() == pytest.approx(3 / 5)
    assert tally.last[:, 0].tolist()[1:] == [0.0, 0.0]
    rows[1] = True
    tally.append(torch.tensor([True, True, True])[:, None].expand(-1, 2))
    assert tally.mean() == pytest.approx(6 / 8)
    series, other = Series(), Tally(rows)
    series.begin_step()
    series.append(torch.zeros(3, 2))
    other.take_over(tally)
    other.take_over(series)
    assert other.mean() == pytest.approx(6 / 11)


def test_counts_are_taken_over() -> None:
    histograms = Histogram(), Histogram()
    histograms[1].add(torch.tensor([1, 2, 2]), 3)
    for _ in range(2):
        histograms[0].take_over(histograms[1])
    assert histograms[0].read() == {1: 2, 2: 4}
    assert histograms[1].read() == {1: 1, 2: 2}
    errors = CodingError(), CodingError()
    errors[1].add(torch.ones(1, 1, 2), torch.full((1, 1, 2), 0.5), 1, torch.tensor([1]))
    errors[0].take_over(errors[1])
    assert errors[0].read() == errors[1].read() == {"keys": 0.5, "values": 0.5}
