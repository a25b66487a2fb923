"""The evaluation on the real small model: replayed prompts are real ones, runs resume, figures repeat."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv import METHODS, ClusterKV, Full, LouisKV, Quest, RazorAttention, SettingsError, attach, models
from louiskv.cache import passing
from louiskv.contestants import Contestant, contestants
from louiskv.evaluation.asking import agreement, ask
from louiskv.evaluation.batches import Steps, answer, padded
from louiskv.evaluation.feeding import feed
from louiskv.evaluation.fidelity import compare, refer
from louiskv.evaluation.grid import Asked, Fed, planned, tasks_named
from louiskv.evaluation.replay import take_in
from louiskv.evaluation.runner import Evaluation
from louiskv.evaluation.summary import summarise
from louiskv.evaluation.texts import Haystack
from louiskv.results import Results
from tests.families import greedy, prompt, tiny
from tests.methods.test_contract import CASES

LITTLE = Contestant("louiskv", LouisKV(budget=64, sink=4, window=16, unit_size=8), 64)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_replayed_prompt_is_a_real_one(family: str, name: str) -> None:
    method = CASES[name][1]
    if isinstance(method, RazorAttention):
        method = replace(method, kv_heads=((0,), (1,), (), (0, 1), (0,), ()))
    model, inputs = tiny(family), prompt(40, 2, (7,))
    taken = take_in(model, inputs["input_ids"], inputs["attention_mask"].bool())
    tokens = torch.randint(3, 200, (6, 2), generator=torch.Generator().manual_seed(0))
    mask = inputs["attention_mask"].bool()
    with torch.inference_mode(), attach(model, method) as expected:
        position = (mask.cumsum(1) - 1).clamp(min=0)
        model(**inputs, position_ids=position, **passing(model, expected))
        steps = Steps(model, expected, taken)
        logits = [steps.feed(token) for token in tokens]
    with torch.inference_mode(), attach(model, method) as got:
        taken.replay(got)
        steps = Steps(model, got, taken)
        torch.testing.assert_close([steps.feed(token) for token in tokens], logits, atol=1e-4, rtol=1e-4)
        got.check_integrity()
    assert got.report().prompt_tokens == expected.report().prompt_tokens


def test_answers_are_those_of_generate_and_spoken_ids_come_first() -> None:
    model, inputs = tiny("llama"), prompt(40, 2, (7,))
    taken = take_in(model, inputs["input_ids"], inputs["attention_mask"].bool())
    expected = greedy(model, inputs, 12)[:, 40:].tolist()
    with attach(model, Full()) as kv_cache:
        taken.replay(kv_cache)
        assert answer(model, kv_cache, taken, [[], []], 12, set()) == expected
        kv_cache.reset()
        taken.replay(kv_cache)
        spoken = [expected[0][:5], expected[1][:2]]
        said = answer(model, kv_cache, taken, spoken, 4, set())
        assert said == [expected[0][5:9], expected[1][2:6]]
        kv_cache.reset()
        taken.replay(kv_cache)
        end = expected[0][3]
        assert answer(model, kv_cache, taken, [[], []], 12, {end})[0] == expected[0][: expected[0].index(end)]


def test_padding_goes_to_the_left() -> None:
    ids, mask = padded([[1, 2, 3], [4]], torch.device("cpu"))
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]


@pytest.mark.parametrize("name", [name for name in METHODS if "budget" in {s.name for s in METHODS[name].settings()}])
@pytest.mark.parametrize("budget", [128, 256, 512, 1024])
def test_every_method_has_every_budget_of_the_grid(name: str, budget: int) -> None:
    method: Any = METHODS[name]().at_budget(budget)
    assert method.budget == budget
    assert method.layer(2) is not None


def test_small_budgets_have_small_sinks_and_windows() -> None:
    assert LouisKV().at_budget(128) == LouisKV(budget=128, sink=16, window=32)
    razor = RazorAttention().at_budget(256)
    assert (razor.sink + razor.window, razor.share) == (256, 0)
    assert ClusterKV().at_budget(256) == ClusterKV(budget=256, output_size=80)
    assert Full().at_budget(64) == Full()
    field = contestants(["full", "quest", "razor_attention"], [128, 256])
    assert [(each.name, each.budget) for each in field] == [
        ("full", None),
        ("quest", 128),
        ("quest", 256),
        ("razor_attention", 128),
        ("razor_attention", 256),
    ]


def test_what_is_given_goes_before_what_the_budget_makes_of_it() -> None:
    given = {"sink": 4, "tau": 0.5, "page_size": 8}
    louis, quest = contestants(["louiskv", "quest"], [128], given)
    assert louis.method == LouisKV(budget=128, sink=4, window=32, tau=0.5)
    assert quest.method == Quest(budget=128, page_size=8)
    with pytest.raises(SettingsError, match="None of the methods quest has a setting sink, tau"):
        contestants(["quest"], [128], given)


@pytest.fixture(scope="module")
def real() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Haystack]:
    model, tokenizer = models.load(dtype="float32", device="cpu")
    return model, tokenizer, Haystack.of(tokenizer)


def test_runs_resume_and_figures_repeat(real: tuple[Any, Any, Haystack], tmp_path: Path) -> None:
    asked, fed = Asked(tasks_named(["passkey", "multikey"]), (300,), 3, 2), Fed((100,), 40, 2)
    field = [Contestant("full", Full()), LITTLE]
    told: list[tuple[str, float]] = []

    def run(path: Path, number: int | None = None) -> list[dict[str, Any]]:
        evaluation = Evaluation(*real, Results(path), lambda what, done: told.append((what, done)))
        found = []
        for record in (*ask(evaluation, asked, field), *feed(evaluation, fed, field)):
            found.append(record)
            if len(found) == number:
                break
        return found

    first = run(tmp_path / "a.jsonl")
    assert len(first) == planned(asked, fed, field) == 10
    assert told[-1][1] == pytest.approx(10, abs=1) and "fidelity behind 100, louiskv" in {what for what, _ in told}
    for record in first:
        assert (
            record["provenance"]["torch"] == torch.__version__ and record["seed"] == 0 and record["dtype"] == "float32"
        )
    full = [record for record in first if record["method"] == "full"]
    assert all(share == 1 for record in full if record["kind"] == "task" for share in record["agreement"])
    assert next(record["kl"] for record in full if record["kind"] == "fidelity") == pytest.approx(0, abs=1e-5)
    little = next(record for record in first if record["kind"] == "fidelity" and record["method"] == "louiskv")
    assert little["kl"] > 1e-4 and len(little["curves"]["kl"]) == 1 and little["fetched_per_token"] > 0
    assert little["index_bytes"] > 0 and little["ahead_rate"] is None

    generated = Results(tmp_path / "b.jsonl")
    half = Evaluation(*real, generated)
    taken = [record for record, _ in zip(ask(half, asked, field), range(3), strict=False)]
    size = len((tmp_path / "b.jsonl").read_text().splitlines())
    second = run(tmp_path / "b.jsonl")
    assert len(taken) == 3 and size < 10 and len(second) == 10
    figures = ("scores", "outputs", "agreement", "kl", "top1", "nll", "curves", "fetched_per_token")
    by_key = {record["key"]: record for record in first}
    for record in second:
        for name in figures:
            assert record.get(name) == by_key[record["key"]].get(name), name
    rows = summarise(second)
    assert [(row.name, row.budget) for row in rows] == [("full", None), ("louiskv", 64)]
    assert rows[0].scores.keys() == {"passkey", "multikey"} and rows[1].kl == little["kl"]


@pytest.mark.parametrize(
    ("said", "share"),
    [
        ([1, 2, 3, 4], 1),
        ([1, 2, 9, 4], 0.5),
        ([1, 2], 0.5),
        ([], 0),
        # Full attention ended here.
        ([1, 2, 3, 4, 5], 0.8),
        ([1, 2, 3, 4, 5, 6, 7], 0.8),
        ([1, 2, 9, 4, 5], 0.5),
    ],
)
def test_agreement_ends_at_the_first_difference(said: list[int], share: float) -> None:
    assert agreement(said, [1, 2, 3, 4]) == share
    assert (agreement([], []), agreement(said, [])) == (1, float(not said))


def test_what_the_model_has_no_positions_for_is_refused(real: tuple[Any, Any, Haystack], tmp_path: Path) -> None:
    evaluation = Evaluation(*real, Results(tmp_path / "a.jsonl"))
    with pytest.raises(SettingsError, match="passkey at a context of 9000 needs .* the model has 8192"):
        next(ask(evaluation, Asked(tasks_named(["passkey"]), (9000,), 1), [LITTLE]))
    with pytest.raises(SettingsError, match="8000 with 500 steps needs 8500 positions, the model has 8192"):
        next(feed(evaluation, Fed((8000,), 500), [LITTLE]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"contexts": (0,)}, "context=0"),
        ({"samples": 0}, "samples=0"),
        ({"batch_size": 1.5}, "batch_size=1.5"),
    ],
)
def test_wrong_grids_say_what_is_allowed(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Asked(**wrong)


def test_what_was_measured_on_a_model_decides_and_where_it_lies_does_not() -> None:
    heads = [RazorAttention(kv_heads=each) for each in (((0,), ()), ((), (0,)))]
    keys = {json.dumps(Contestant("razor_attention", each, 64).identity) for each in heads}
    assert len(keys) == 2


def test_the_reference_knows_padding() -> None:
    model, inputs = tiny("llama"), prompt(40, 2, (7,))
    taken = take_in(model, inputs["input_ids"], inputs["attention_mask"].bool())
    output = torch.randint(3, 200, (2, 6), generator=torch.Generator().manual_seed(0))
    reference = refer(model, taken, output)
    with attach(model, Full()) as kv_cache:
        taken.replay(kv_cache)
        curves = compare(model, kv_cache, reference)
    assert max(curves.kl) < 1e-6 and curves.top1 == [1.0] * 6 and max(map(abs, curves.nll)) < 1e-5


def test_records_come_in_the_order_of_the_contestants(real: tuple[Any, Any, Haystack], tmp_path: Path) -> None:
    field, fed = contestants(["full", "quest", "streaming_llm"], [64]), Fed((64,), 2, 1)
    evaluation = Evaluation(*real, Results(tmp_path / "a.jsonl"))
    assert [record["method"] for record in feed(evaluation, fed, field[2:])] == ["streaming_llm"]
    assert [record["method"] for record in feed(evaluation, fed, field)] == ["full", "quest", "streaming_llm"]
    assert evaluation.done == 4


def test_a_text_shorter_than_the_context_is_refused(real: tuple[Any, Any, Haystack], tmp_path: Path) -> None:
    short = Haystack("A short text.\n\nOf two paragraphs.", real[1], "short.txt")
    evaluation = Evaluation(*real[:2], short, Results(tmp_path / "a.jsonl"))
    with pytest.raises(SettingsError, match=r"short\.txt has \d+ tokens, but \d+ are needed"):
        ask(evaluation, Asked(tasks_named(["passkey"]), (300,), 1), [LITTLE])


def test_unknown_names_are_answered_with_those_that_are_known() -> None:
    with pytest.raises(SettingsError, match="There is no task 'passkeys'. The tasks are: passkey"):
        tasks_named(["passkeys"])
    with pytest.raises(SettingsError, match="There is no method 'louis'. The methods are: full"):
        contestants(["louis"], [256])
