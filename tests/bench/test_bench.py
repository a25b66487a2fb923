"""The benchmarks on a tiny model: what they measure is there and adds up; no time is asserted."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv import FreeKV, Full, HostMemoryError, LouisKV
from louiskv.bench import decode, memory
from louiskv.bench.decode import Sweep, bench_decode
from louiskv.bench.memory import Memory, fits_together
from louiskv.bench.prefill import bench_prefill
from louiskv.bench.runner import Bench, Entry, Record
from louiskv.contestants import Contestant
from louiskv.counters import PHASES
from louiskv.errors import DeviceMemoryError
from louiskv.provenance import provenance
from louiskv.results import Results
from tests.families import tiny

LITTLE = LouisKV(budget=64, sink=4, window=16, unit_size=8, dense_layers=1, tau=0.5)
FIELD = [Entry(), Entry(Contestant("full", Full())), Entry(Contestant("louiskv", LITTLE, 64))]
SHARED = {
    *("format", "key", "kind", "run", "model", "model_hash", "dtype", "method", "budget", "class", "settings", "group"),
    *("family", "impl", "context", "seconds", "provenance", "cuda_peak_bytes"),
}
OF_DECODE = {
    *("batch", "num_real", "steps", "ms_per_token", "ms_quartiles", "tokens_per_second", "device_bytes"),
    *("peak_device_bytes", "resident_bytes", "index_bytes", "host_bytes", "full_bytes", "fetched_per_token"),
    *("retrieval_rate", "ahead_rate", "retrieval_share", "hit_rate", "phases", "interleaved"),
}
OF_PREFILL = {"rounds", "first_token_seconds", "all_seconds", "clustering_seconds", "offload_seconds"}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny("llama", max_position_embeddings=512)


@pytest.fixture
def bench(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Bench:
    return Bench(model, tokenizer, Results(tmp_path / "bench.jsonl"))


def again(bench: Bench) -> Bench:
    """Another call on the same file."""
    return Bench(bench.model, bench.tokenizer, Results(bench.results.path))


def times(records: list[Record]) -> list[float]:
    return [record["ms_per_token"] for record in records]


def test_decode_records(bench: Bench) -> None:
    turns: list[tuple[str, float, float]] = []
    bench.progress = lambda *told: turns.append(told)
    records = list(bench_decode(bench, Sweep((300,), (1,), 10), FIELD))
    assert [record["method"] for record in records] == ["sdpa", "full", "louiskv"]
    names = ["sdpa", "full", "louiskv"] * 4
    decoded = [(f"decode 1 x 300: {name}", number, 12) for number, name in enumerate(names, 1)]
    assert turns == [("prefill", 300, 300), *decoded]
    for record in records:
        assert set(record) == SHARED | OF_DECODE
        assert record["steps"] == 10 and record["ms_per_token"] > 0 and record["interleaved"]
        assert record["kind"] == "decode" and record["group"] is None
    sdpa, full, ours = records
    assert sdpa["device_bytes"] == sdpa["full_bytes"] == full["full_bytes"] == 4 * 2 * 310 * 16 * 4
    assert (sdpa["class"], sdpa["settings"], set(sdpa["phases"])) == ("sdpa", {}, {"model"})
    assert set(ours["phases"]) == {"model", *PHASES}
    assert ours["phases"]["prefill"] == ours["phases"]["clustering"] == 0
    assert all(ours["phases"][phase] > 0 for phase in ("model", "selection", "fetch", "attention", "offload"))
    assert 0 < ours["retrieval_rate"] <= 1 and 0 < ours["retrieval_share"] < 1 and 0 < ours["hit_rate"] < 1
    assert ours["fetched_per_token"] > 0 and ours["host_bytes"] > 0 and ours["index_bytes"] > 0
    assert ours["resident_bytes"] + ours["index_bytes"] == ours["device_bytes"] <= ours["peak_device_bytes"]
    assert bench.model.config._attn_implementation == "eager"


def test_phases_and_the_model_are_the_whole_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    runners: list[decode._Runner] = []
    finish = decode._Runner.finish

    def finishing(runner: decode._Runner) -> None:
        runners.append(runner)
        finish(runner)

    monkeypatch.setattr(decode._Runner, "finish", finishing)
    late = Entry(Contestant("late", FreeKV(budget=64, sink=4, window=16, page_size=4, dense_layers=1, tau=0.5), 64))
    records = list(bench_decode(bench, Sweep((100,), (1,), 6), [*FIELD, late]))
    for record, runner in zip(records, runners, strict=True):
        mean = 1000 * sum(runner.decoding.seconds) / 6
        told = sum(time for phase, time in record["phases"].items() if phase != "ahead")
        assert told == pytest.approx(mean)
    assert records[-1]["phases"]["ahead"] > 0
    assert [record["ahead_rate"] for record in records[:-1]] == [None] * 3 and 0 < records[-1]["ahead_rate"] < 1


def test_a_batch_moves_what_its_sequences_move(bench: Bench) -> None:
    one, four = (list(bench_decode(bench, Sweep((60,), (batch,), 5), FIELD)) for batch in (1, 4))
    for alone, together in zip(one, four, strict=True):
        assert together["batch"] == 4
        assert together["full_bytes"] == 4 * alone["full_bytes"]
        assert together["tokens_per_second"] == pytest.approx(4000 / together["ms_per_token"])
    assert four[0]["device_bytes"] == 4 * one[0]["device_bytes"]
    assert four[2]["fetched_per_token"] < 4 * one[2]["fetched_per_token"]


def test_nothing_is_measured_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep((40, 60), (1, 2), 2)
    first = list(bench_decode(bench, sweep, FIELD))
    assert [(record["context"], record["batch"]) for record in first[::3]] == [(40, 1), (40, 2), (60, 1), (60, 2)]
    monkeypatch.setattr(decode, "prefill", lambda *_: pytest.fail("measured again"))
    assert list(bench_decode(again(bench), sweep, FIELD)) == first
    assert list(bench_decode(again(bench), Sweep((60,), (2,), 2), FIELD)) == first[-3:]


def test_a_stopped_sweep_goes_on_with_the_next_group(bench: Bench) -> None:
    sweep = Sweep((40, 60), (1,), 2)
    known = [next(records) for records in [bench_decode(bench, sweep, FIELD)] for _ in range(3)]
    rest = again(bench)
    heard = []
    rest.progress = lambda what, *_: heard.append(what)
    assert times(list(bench_decode(rest, sweep, FIELD)))[:3] == times(known)
    assert not any("1 x 40" in what for what in heard) and any("1 x 60" in what for what in heard)


def test_a_group_is_measured_whole(bench: Bench) -> None:
    sweep = Sweep((40,), (1,), 2)
    first = list(bench_decode(bench, sweep, FIELD[:2]))
    more = list(bench_decode(again(bench), sweep, FIELD))
    assert len({record["run"] for record in more}) == 1 and more[0]["run"] != first[0]["run"]
    # The old figures of a part of it are gone: they are of the new run, so that they may be compared.
    results = again(bench).results
    assert {record["run"] for record in results} == {more[0]["run"]}
    assert list(bench_decode(again(bench), sweep, FIELD[:2])) == more[:2]
    # Two runs make no group.
    list(bench_decode(again(bench), sweep, FIELD[1:2]))
    other = list(bench_decode(again(bench), sweep, [FIELD[0]]))
    assert other[0]["run"] == more[0]["run"]


def test_who_does_not_fit_together_is_measured_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "available", lambda _: Memory(600_000, 0))
    heard = []
    bench.progress = lambda what, *_: heard.append(what.split()[-1])
    records = list(bench_decode(bench, Sweep((200,), (1,), 8), FIELD))
    assert [record["interleaved"] for record in records] == [False] * 3
    assert heard[1:] == ["sdpa"] * 3 + ["full"] * 3 + ["louiskv"] * 3


def test_what_fits_in_no_way_is_refused_before_anything_is_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = list(bench_decode(bench, Sweep((40,), (1,), 2), FIELD))
    monkeypatch.setattr(memory, "available_host_memory", lambda: 1_000_000)
    monkeypatch.setattr(decode, "prefill", lambda *_: pytest.fail("measured"))
    wanted = r"^louiskv needs 1\.\d MiB of host memory for 8 x 40 tokens, but \d+\.\d KiB can be used\. .*--batch"
    with pytest.raises(HostMemoryError, match=wanted):
        list(bench_decode(again(bench), Sweep((40, 300), (1, 8), 2), FIELD))
    assert [json.loads(line)["key"] for line in bench.results.path.read_text().splitlines()] == [
        record["key"] for record in known
    ]
    assert list(bench_decode(again(bench), Sweep((40,), (1,), 2), FIELD)) == known


def test_memory_of_the_device_is_counted_apart() -> None:
    needs = [(FIELD[1], Memory(0, 50)), (FIELD[2], Memory(50, 10))]
    assert fits_together(needs, Memory(50, 60), "1 x 9")
    assert not fits_together(needs, Memory(50, 59), "1 x 9")
    with pytest.raises(DeviceMemoryError, match="full needs 50 B of device .* 49 B can be used.* no --method full"):
        fits_together(needs, Memory(50, 49), "1 x 9")


def test_prefill_records(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    records = list(bench_prefill(bench, (100, 50), 3, FIELD))
    assert [(record["context"], record["method"]) for record in records[:3]] == [
        (100, "sdpa"),
        (100, "full"),
        (100, "louiskv"),
    ]
    for record in records:
        assert set(record) == SHARED | OF_PREFILL
        assert record["first_token_seconds"] == sorted(record["all_seconds"])[1]
    assert records[2]["clustering_seconds"] > 0 and records[2]["offload_seconds"] > 0
    monkeypatch.setattr("louiskv.bench.prefill.text_ids", lambda *_: pytest.fail("measured again"))
    assert list(bench_prefill(again(bench), (100, 50), 3, FIELD)) == records


def test_another_model_machine_or_implementation_is_another_measurement(bench: Bench) -> None:
    sizes = {"context": 1}
    key = bench.key("decode", sizes, FIELD[1])
    assert key != bench.key("prefill", sizes, FIELD[1])
    assert key != bench.key("decode", sizes, Entry(FIELD[1].contestant, "torch"))
    bench.provenance["commit"] = "other"
    assert key == bench.key("decode", sizes, FIELD[1])
    bench.provenance["device"] = "other"
    assert key != bench.key("decode", sizes, FIELD[1])


def test_provenance_names_the_machine_and_the_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = provenance(torch.device("cpu"))
    assert figures["torch"] == torch.__version__
    assert figures["device"] == "cpu"
    assert figures["processor"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance(torch.device("cpu"))["commit"] is None
