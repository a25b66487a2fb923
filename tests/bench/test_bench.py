"""The benchmarks on a tiny model: what they measure is there and adds up; no time is asserted."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from louiskv import Full, LouisKV, UnsupportedModelError
from louiskv.bench.decode import bench_decode
from louiskv.bench.material import prefill, text_ids
from louiskv.bench.prefill import bench_prefill
from louiskv.provenance import provenance
from tests.families import tiny

METHODS = {"full": Full(), "louiskv": LouisKV(budget=64, sink=4, window=16, unit_size=8, dense_layers=1, tau=0.5)}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    letters = {letter: number for number, letter in enumerate(map(chr, range(32, 127)), start=3)}
    plain = Tokenizer(models.WordLevel({"?": 0, **letters}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=plain)


def test_contexts_are_real_text_and_then_its_repetition(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny("llama", max_position_embeddings=128)
    heard: list[int] = []
    short, long = prefill(model, tokenizer, [50, 300], 8, heard.append)
    assert sum(heard) == 120
    assert (short.context, short.num_real, short.position) == (50, 50, 50)
    assert (long.context, long.num_real, long.position) == (300, 120, 120)
    assert torch.equal(long.keys[0][:, :, :50], short.keys[0])
    repeated, real = long.keys[0][:, :, 120:240], long.keys[0][:, :, :120]
    assert not torch.equal(repeated, real)
    assert (repeated - real).std() < 0.2 * real.std()
    ids = text_ids(tokenizer, 300)
    assert torch.equal(short.continuation, ids[:, 50:58])
    assert torch.equal(long.continuation, ids[:, 120:128])


def test_decode_results(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny("llama", max_position_embeddings=512)
    turns: list[str] = []
    (start,) = prefill(model, tokenizer, [300], 10, lambda _: None)
    results = {each.contestant: each for each in bench_decode(model, METHODS, start, progress=turns.append)}
    assert list(results) == ["sdpa", "full", "louiskv"]
    assert turns == ["sdpa", "full", "louiskv"] * 4
    assert all(each.steps == 10 and each.ms_per_token > 0 for each in results.values())
    assert results["sdpa"].device_bytes == 4 * 2 * 310 * 16 * 4
    ours = results["louiskv"]
    assert ours.resident_bytes[0] == ours.resident_bytes[1] > 0
    assert 0 < ours.retrieval_rate <= 1
    assert 0 < ours.retrieval_share < 1
    assert ours.fetched_per_token > 0
    assert model.config._attn_implementation == "eager"


def test_prefill_results(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny("llama")
    results = list(bench_prefill(model, METHODS, text_ids(tokenizer, 100), rounds=3))
    assert [each.contestant for each in results] == ["sdpa", "full", "louiskv"]
    assert all(len(each.all_seconds) == 3 and each.seconds == sorted(each.all_seconds)[1] for each in results)
    assert results[2].clustering_seconds > 0


def test_a_model_with_other_layers_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UnsupportedModelError, match="bench needs full attention"):
        prefill(tiny("gemma2"), tokenizer, [50], 4, lambda _: None)


def test_provenance_names_the_machine_and_the_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = provenance(torch.device("cpu"))
    assert figures["torch"] == torch.__version__
    assert figures["device"] == "cpu"
    assert figures["processor"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance(torch.device("cpu"))["commit"] is None
