"""The shapes of large models on tiny ones: what is recorded, how it is worn, what is measured; no time is asserted."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from louiskv import Full, FullOffloaded, HostMemoryError, LouisKV, Method, SettingsError, attach
from louiskv.bench import large, large_models, large_timing
from louiskv.bench.large import Cell, LargeBench
from louiskv.bench.large_models import config_of, random_model
from louiskv.bench.memory import Memory
from louiskv.bench.recording import Recording, record
from louiskv.bench.replaying import on_stage, shape_of
from louiskv.bench.runner import Entry, Known, Record
from louiskv.bench.scenarios import end_to_end, speed_ups
from louiskv.bench.shapes import Shape
from louiskv.cache import passing
from louiskv.contestants import Contestant
from louiskv.errors import DeviceFailedError
from louiskv.results import Results
from tests.families import tiny

CPU = torch.device("cpu")
LITTLE = LouisKV(budget=64, sink=4, window=16, unit_size=8, dense_layers=1, tau=0.5)
STEPS = 12


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny("llama", max_position_embeddings=512)


@pytest.fixture(scope="module")
def recording(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Recording:
    return record(model, tokenizer, 2, 200, STEPS)


def worn_shape(model: PreTrainedModel, times: int, num_kv_heads: int, group_size: int) -> Shape:
    return Shape(num_kv_heads, group_size, times * model.config.head_dim, torch.float32)


def test_what_is_recorded_is_what_the_model_computes(model: PreTrainedModel, recording: Recording) -> None:
    num_layers, own = model.config.num_hidden_layers, shape_of(model.config, torch.float32)
    kv_cache = DynamicCache(config=model.config)
    for index, layer in enumerate(kv_cache.layers):
        keys, values = recording.context(index, num_layers, own, 2, 200)
        layer.update(keys, values)  # type: ignore[union-attr]
    ids, ends = recording.text.continuation, torch.tensor(recording.text.ends)
    positions = ends[:, None] + torch.arange(STEPS)
    # Each sequence alone: their positions differ, and a batch's mask would not.
    with torch.inference_mode():
        for step in range(STEPS):
            model(ids[:, step : step + 1], position_ids=positions[:, step : step + 1], **passing(model, kv_cache))
    for index, layer in enumerate(kv_cache.layers):
        script = recording.script(index, num_layers, own, 2)
        keys = script[:, :, own.num_kv_heads * own.group_size :][:, :, : own.num_kv_heads]
        expected = layer.keys[:, :, 200:]  # type: ignore[union-attr, index]
        torch.testing.assert_close(keys.permute(1, 2, 0, 3), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("num_kv_heads", "group_size"), [(3, 4), (8, 2), (2, 5)])
def test_logits_of_worn_heads_are_sums_of_real_ones(
    model: PreTrainedModel, recording: Recording, num_kv_heads: int, group_size: int
) -> None:
    num_layers, own = model.config.num_hidden_layers, shape_of(model.config, torch.float32)
    shape = worn_shape(model, 2, num_kv_heads, group_size)

    def logits(worn: Shape) -> torch.Tensor:
        keys, _ = recording.context(1, num_layers, worn, 1, 50)
        queries = recording.script(1, num_layers, worn, 1)[:, 0, : worn.num_kv_heads * worn.group_size]
        grouped = queries.unflatten(1, (worn.num_kv_heads, -1))
        return torch.einsum("shgd,htd->shgt", grouped, keys[0])

    real, made = logits(own), logits(shape)
    pairs = set()
    for head in range(num_kv_heads):
        first, second = head % own.num_kv_heads, head // own.num_kv_heads % own.num_kv_heads
        pairs.add((first, second))
        for member in range(group_size):
            one = member % own.group_size
            other = (member + member // own.group_size) % own.group_size
            torch.testing.assert_close(made[:, head, member], real[:, first, one] + real[:, second, other])
    assert len(pairs) == min(num_kv_heads, own.num_kv_heads**2), "each is another choice as far as there are some"


def test_a_shape_that_cannot_wear_it_is_refused(model: PreTrainedModel, recording: Recording) -> None:
    odd = Shape(2, 4, model.config.head_dim + 1, torch.float32)
    with pytest.raises(SettingsError, match=f"Heads of {odd.dim} numbers cannot be made .* divides {odd.dim}"):
        recording.context(0, 4, odd, 1, 50)


def test_contexts_are_longer_than_the_text_and_batches_smaller(model: PreTrainedModel, recording: Recording) -> None:
    keys, values = recording.context(2, 6, worn_shape(model, 2, 4, 2), 1, 1000)
    assert keys.shape == values.shape == (1, 4, 1000, 2 * model.config.head_dim)
    assert keys.isfinite().all()
    assert not torch.equal(keys[:, :, 300], keys[:, :, 300 - recording.text.ends[0]]), "repeated with noise"


def test_on_stage_the_model_attends_with_what_was_recorded(model: PreTrainedModel, recording: Recording) -> None:
    """On the recorded model itself, the tokens that it is given make no difference: it repeats what it did."""
    model_seen = []
    with torch.no_grad():
        for seed in (0, 1):
            kv_cache = on_stage(model.config, LITTLE, recording, 2, 200, None)
            with attach(model, LITTLE):
                ids = torch.randint(3, 90, (2, STEPS + 3), generator=torch.Generator().manual_seed(seed))
                for step in range(STEPS + 3):
                    model(ids[:, step : step + 1], **passing(model, kv_cache))
            kv_cache.check_integrity()
            report = kv_cache.report().to_dict()
            model_seen.append({name: report[name] for name in ("fetched_bytes", "retrievals_per_step")})
    assert model_seen[0] == model_seen[1]
    assert 0 < model_seen[0]["retrievals_per_step"] < 1


def entry(name: str, method: Method) -> Entry:
    return Entry(Contestant(name, method))


FIELD = [Entry(), entry("full", Full()), entry("full_offloaded", FullOffloaded()), entry("louiskv", LITTLE)]
SHAPE = LlamaConfig(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=90,
)


@pytest.fixture
def bench(recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LargeBench:
    # However slow the machine is, all steps are timed.
    monkeypatch.setattr(large_timing, "PATIENCE", 1e6)
    known = Known(Results(tmp_path / "large.jsonl"), {"model": "tiny", "model_hash": "0", "dtype": "float32"}, CPU)
    return LargeBench(known, random_model(SHAPE, torch.float32, CPU), recording)


def test_each_kind_of_cell_is_measured_once(bench: LargeBench) -> None:
    told: list[str] = []
    bench.progress = lambda what, *_: told.append(what)
    cells = [Cell("decode", 300, 2, 6, phases=True), Cell("prefill", 100, 1, 2), Cell("prefill", 100, 1, 2, chunk=40)]
    cells = [*cells, Cell("growth", 100, 1, 16)]
    records = list(bench.run(cells, FIELD))
    assert [each["kind"] for each in records] == 4 * ["large decode"] + 8 * ["large prefill"] + 4 * ["large growth"]
    decode, first, growth = records[:4], records[4:12], records[12:]
    assert [each.get("chunk") for each in first] == 4 * [None] + 4 * [40]
    assert [each["method"] for each in decode] == ["sdpa", "full", "full_offloaded", "louiskv"]
    for each in decode:
        assert each["timed_steps"] == 6
        assert each["tokens_per_second"] == pytest.approx(2000 / each["ms_per_token"])
        assert each["eager"], "there is no graph on a CPU, and the record says why"
    louiskv = decode[-1]
    assert louiskv["fetched_per_token"] > 0
    assert 0 < louiskv["retrieval_rate"] < 1
    assert set(louiskv["phases"]) >= {"model", "selection", "attention"}
    assert all(each["first_token_seconds"] <= each["ready_seconds"] for each in first)
    assert first[-1]["clustering_seconds"] > 0
    held = growth[-1]["held"]
    assert len(held) == 8
    assert held[0]["device_bytes"] == held[-1]["device_bytes"], "room for all of it was made before"
    again = list(bench.run(cells, FIELD))
    assert [each["run"] for each in again] == [each["run"] for each in records]
    assert "decode 2 x 300: louiskv" in told


def test_what_does_not_fit_and_what_is_too_late_is_said(bench: LargeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "available", lambda _: Memory(1000, 0))
    (record,) = bench.run([Cell("decode", 300, 2, 6)], FIELD[1:2])
    assert "of host memory, but 1000 B can be used" in record["left_out"]
    monkeypatch.undo()
    bench.deadline = time.monotonic()
    (record,) = bench.run([Cell("decode", 300, 2, 6)], FIELD[1:2])
    assert record["left_out"] == "there was no time left"
    bench.deadline = None
    (record,) = bench.run([Cell("decode", 300, 2, 6)], FIELD[1:2])
    assert "left_out" not in record, "what was left out is no result"


def test_a_device_that_fails_ends_it_and_is_not_asked_the_same_again(
    bench: LargeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, measure = [Cell("prefill", 50, 1, 1), Cell("prefill", 60, 1, 1)], LargeBench._prefill

    def dead(_: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nand more")

    def fails(bench: LargeBench, cell: Cell, entry: Entry) -> Record:
        if cell.context == 50:
            return measure(bench, cell, entry)
        monkeypatch.setattr(large_timing, "wait", dead)
        # As a pool says it that cannot grow.
        raise HostMemoryError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(LargeBench, "_prefill", fails)
    with pytest.raises(DeviceFailedError, match=r"full, prefill of 1 x 60 .*: the device failed \(CUDA .* access"):
        list(bench.run(cells, FIELD[1:2]))
    done, failed = bench.run(cells, FIELD[1:2])
    assert "left_out" not in done
    assert failed["left_out"] == "the device failed (CUDA error: an illegal memory access was encountered)"
    bench.known.provenance = {**bench.known.provenance, "commit": "another"}
    with pytest.raises(DeviceFailedError):
        list(bench.run(cells, FIELD[1:2]))


def test_an_error_of_another_kind_is_not_taken_for_the_device(
    bench: LargeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Record:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(LargeBench, "_prefill", fails)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(bench.run([Cell("prefill", 50, 1, 1)], FIELD[1:2]))


def test_weights_that_have_no_room_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_models, "available", lambda _: Memory(2**34, 0))
    with pytest.raises(HostMemoryError, match=r"weights need 29.92 GiB of host memory, but 16.00 GiB .* --layers"):
        large_models.check_fits(config_of("llama-3.1-8b"), torch.float32, CPU)
    large_models.check_fits(config_of("llama-3.1-8b", 2), torch.float32, CPU)


def test_sizes_are_known_by_name() -> None:
    assert config_of("llama-3.1-8b").num_hidden_layers == 32
    few = config_of("qwen3-8b", 3)
    assert few.num_hidden_layers == len(few.layer_types) == 3
    with pytest.raises(SettingsError, match=r"no shape 'gpt'. There are: llama-3.1-8b, qwen3-8b"):
        config_of("gpt")
    with pytest.raises(SettingsError, match="--layers 33 is not allowed: llama-3.1-8b has 1 to 32"):
        config_of("llama-3.1-8b", 33)
    assert set(large_models.MODELS) == {"llama-3.1-8b", "qwen3-8b"}


def measured(kind: str, method: str, context: int, **figures: Any) -> Record:
    return {"kind": f"large {kind}", "model": "m", "method": method, "batch": 1, "context": context, **figures}


def test_scenarios_are_made_of_first_tokens_and_steps() -> None:
    records = [
        *(measured("prefill", name, 32768, first_token_seconds=2.0) for name in ("arkvale", "louiskv:tau=0.7", "full")),
        measured("decode", "arkvale", 32768, ms_per_token=20.0) | {"batch": 8},
        measured("decode", "louiskv:tau=0.7", 32768, ms_per_token=10.0) | {"batch": 8},
        measured("decode", "full", 32768, left_out="it does not fit") | {"batch": 8},
        measured("decode", "louiskv", 8192, ms_per_token=10.0),
    ]
    made = speed_ups(end_to_end(records))
    assert {each["scenario"] for each in made} == {"long input", "long input and output"}
    assert {each["method"] for each in made} == {"arkvale", "louiskv:tau=0.7"}, "each needs both"
    ours = next(each for each in made if each["method"] != "arkvale" and each["output"] == 512)
    assert ours["seconds"] == pytest.approx(8 * 2 + 512 * 0.01), "prompts come one after the other"
    assert ours["over_rival"] == pytest.approx((16 + 512 * 0.02) / ours["seconds"])
    assert ours["rival"] == "arkvale"
    assert ours["over_full"] is None
