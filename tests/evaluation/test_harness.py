"""The lm-evaluation-harness with our model type: the tokens of `attach` and `generate`, its own scores."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv import LouisKV, Quest, SettingsError, attach, models
from tests.families import greedy, prompt, tiny

TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: {kind}
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: {metric}}}]
"""
TEXTS = [
    "The sky is blue. " * 12 + "The colour of the sky is",
    "Grass is green. Grass is",
    "Snow is white. " * 5 + "Snow is",
]
ANSWERS = [" blue", " green", " white"]


@pytest.fixture(scope="module")
def real() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return models.load(dtype="float32", device="cpu")


def evaluated(model: Any, folder: Path, kind: str = "generate_until") -> Any:
    """The harness's results of a task over a file of our own."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    data = folder / "data.jsonl"
    records = [{"text": text, "answer": answer} for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    metric = "exact_match" if kind == "generate_until" else "perplexity"
    (folder / "colours.yaml").write_text(TASK.format(data=data, kind=kind, metric=metric))
    known = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(model=model, tasks=["colours"], task_manager=known, bootstrap_iters=0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_at_a_full_budget_the_results_are_those_of_the_harness(real: Any, folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from louiskv.evaluation.harness import LouisKVLM

    model, tokenizer = real
    plain = evaluated(HFLM(model, tokenizer=tokenizer, batch_size=2), folder)
    ours = evaluated(LouisKVLM(model, tokenizer=tokenizer, batch_size=2, budget=512), folder)
    said = [[sample["resps"] for sample in found["samples"]["colours"]] for found in (plain, ours)]
    assert said[0] == said[1] and len(said[0]) == len(TEXTS)
    assert ours["results"] == plain["results"] and "exact_match,none" in ours["results"]["colours"]


def test_batches_have_the_tokens_of_attach_and_generate(real: Any) -> None:
    from louiskv.evaluation.harness import LouisKVLM

    model, inputs = tiny("llama"), prompt(60, 3, (0, 7, 31))
    method = LouisKV(budget=32, sink=4, window=8, unit_size=4)
    lm = LouisKVLM(model, tokenizer=real[1], method=method, batch_size=3)
    given = {"context": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "max_length": 76, "stop": []}
    found = lm._model_generate(**given, min_new_tokens=16)
    with attach(model, method):
        assert found.tolist() == greedy(model, inputs, 16, suppress_tokens=None, pad_token_id=2).tolist()
    full = LouisKVLM(model, tokenizer=real[1], method="full")._model_generate(**given, min_new_tokens=16)
    assert found.tolist() != full.tolist()


def test_the_type_is_registered_and_checks_its_settings(real: Any) -> None:
    from lm_eval.api.registry import get_model

    from louiskv.evaluation.harness import LouisKVLM

    model, tokenizer = real
    assert get_model("louiskv") is LouisKVLM
    assert LouisKVLM(model, tokenizer=tokenizer, method="quest", budget=256).method == Quest().at_budget(256)
    with pytest.raises(SettingsError, match="There is no method 'louis'. The methods are: full"):
        LouisKVLM(model, method="louis")


def test_log_likelihoods_are_refused(real: Any, folder: Path) -> None:
    from louiskv.evaluation.harness import LouisKVLM

    model, tokenizer = real
    with pytest.raises(SettingsError, match="has no log-likelihoods: .* tasks that generate"):
        evaluated(LouisKVLM(model, tokenizer=tokenizer), folder, "loglikelihood")
    with pytest.raises(SettingsError, match="has no log-likelihoods"):
        LouisKVLM(model, tokenizer=tokenizer).loglikelihood_rolling([])


def test_without_the_harness_the_pip_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "louiskv.evaluation.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    with pytest.raises(ModuleNotFoundError, match=r"The harness needs .*: pip install 'louiskv\[eval\]'"):
        import_module("louiskv.evaluation.harness")
