"""Published benchmarks: read from their files, asked within the context, scored as worked out by hand."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from louiskv import Full, SettingsError, models
from louiskv.contestants import Contestant
from louiskv.evaluation.asking import ask
from louiskv.evaluation.grid import Asked
from louiskv.evaluation.runner import Evaluation
from louiskv.evaluation.tasks import TASKS, Sample
from louiskv.evaluation.tasks.published import metrics, published
from louiskv.evaluation.tasks.published.longbench import DATASETS
from louiskv.evaluation.tasks.published.mathematics import boxed, equal
from louiskv.evaluation.texts import Haystack
from louiskv.prompts import Request, encode
from louiskv.results import Results


@pytest.fixture(scope="module")
def haystack() -> Haystack:
    return Haystack.of(models.load_tokenizer())


def lines(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def asked(**fields: Any) -> dict[str, Any]:
    return {"input": "Who?", "context": "Text.", "answers": ["Ann"], "all_classes": None, **fields}


def answered(*answers: str) -> Sample:
    return Sample("", "", answers, 8)


GPQA_HEAD = "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n"


@pytest.mark.parametrize(
    ("score", "output", "answer", "expected"),
    [
        (metrics.f1, "The Eiffel Tower!", "eiffel tower", 1),
        (metrics.f1, "Paris", "London", 0),
        (metrics.f1, "", "London", 0),
        # Words in common: 1 of 2 that are said and of 4 that are wanted: 2 * 1 / (2 + 4).
        (metrics.f1, "Ann Smith", "Ann of Green Gables", 1 / 3),
        # 我 来到 北京 清华大学 against 我 来到 北京: 2 * 3 / (4 + 3), punctuation aside.
        (metrics.f1_chinese, "我来到北京清华大学。", "我，来到北京", 6 / 7),  # noqa: RUF001
        (metrics.rouge, "the cat sat", "the cat ran", 2 / 3),
        (metrics.rouge, "the cat sat", "the cat sat", 1),
        (metrics.rouge, "...", "the cat sat", 0),
        (metrics.rouge_chinese, "我来到北京清华大学", "我来到北京", 6 / 7),
        (metrics.number, "There are 12.", "12", 1),
        (metrics.number, "12 or 13", "12", 1 / 2),
        (metrics.number, "Paragraph 3", "Paragraph 30", 0),
        (metrics.number, "段落7", "段落7", 1),
        (metrics.number, "none", "12", 0),
        (metrics.code, "\n# first\n```\nreturn x\nreturn y", "return x", 1),
        # 7 of 8 letters are alike: 14 of 16.
        (metrics.code, "return y", "return x", 7 / 8),
        (metrics.code, "// nothing else", "return x", 0),
    ],
)
def test_scores_of_longbench(score: Callable[[str, str], float], output: str, answer: str, expected: float) -> None:
    assert score(output, answer) == pytest.approx(expected, abs=1e-6)


def test_long_sentences_have_a_rouge() -> None:
    words = " ".join(map(str, range(600)))
    assert metrics.rouge(f"{words} 600", words) == pytest.approx(1200 / 1201, abs=1e-6)


def test_classes() -> None:
    classes = ["Food", "Seafood", "City", "sea"]
    assert metrics.classification(classes, "Food", "Food") == 1
    assert metrics.classification(classes, "Food or City", "Food") == 1 / 2
    assert metrics.classification(classes, "City", "Food") == 0
    # "sea" is a part of the right name.
    assert metrics.classification(classes, "undersea", "undersea") == 0
    assert metrics.classification([*classes, "undersea"], "undersea", "undersea") == 1


@pytest.mark.parametrize(
    ("said", "expected"),
    [("0.5", True), ("\\dfrac12", True), ("\\frac{2}{4}", True), ("1/2", True), ("2", False), ("", False)],
)
def test_expressions_that_mean_the_same(said: str, expected: bool) -> None:
    assert equal("\\frac{1}{2}", said) is expected


def test_texts_and_tuples_are_expressions() -> None:
    assert equal("\\text{Evelyn}", "Evelyn")
    assert equal("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)")
    assert not equal("(1,2)", "(2,1)")


def test_the_last_whole_box_counts() -> None:
    assert boxed("\\boxed{1}, no: \\boxed{\\frac{1}{2}}.") == "\\frac{1}{2}"
    assert boxed("\\boxed{\\{1, 2\\}}") == "\\{1, 2\\}"
    assert boxed("\\boxed{1} and \\boxed{2") is None
    assert boxed("2") is None


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_dataset_is_asked_whole_or_without_its_middle(haystack: Haystack, dataset: str, tmp_path: Path) -> None:
    record = asked(context="Ann was here. " * 400, answers=["Food", "7"], all_classes=["Food", "City"])
    task = published([("longbench", lines(tmp_path / f"{dataset}.jsonl", record))])[f"longbench_{dataset}"]
    whole, cut = (task.numbered(0, haystack, tokens, "0") for tokens in (5000, 300))
    begin, end = DATASETS[dataset].prompt.replace("{input}", record["input"]).split("{context}")
    assert whole.prompt == f"{begin}{record['context']}{end}"
    assert cut.prompt.startswith(begin) and cut.prompt.endswith(end) and 290 < haystack.count(cut.prompt) <= 300
    assert cut.answers == ("Food", "7") and cut.max_new_tokens == DATASETS[dataset].max_new_tokens
    assert cut.raw == (dataset in ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"))
    assert max(task.score(cut, said) for said in ("Food", "7")) == pytest.approx(1, abs=1e-6)
    assert task.score(cut, "") == 0
    with pytest.raises(SettingsError, match=f"too short for longbench_{dataset}: a question needs"):
        task.numbered(0, haystack, 2, "0")


def test_code_is_asked_without_the_chat_template(tmp_path: Path) -> None:
    model, tokenizer = models.load(device="cpu")
    haystack = Haystack.of(tokenizer)
    for name in ("lcc", "hotpotqa"):
        lines(tmp_path / f"{name}.jsonl", asked())
    tasks = published([("longbench", tmp_path)], max_new_tokens=1)
    evaluation = Evaluation(model, tokenizer, haystack, Results(tmp_path / "results.jsonl"))
    full = [Contestant("full", Full())]
    records = {record["task"]: record for record in ask(evaluation, Asked(tasks, (200,)), full)}
    prompts = {name: task.numbered(0, haystack, 190, "0").prompt for name, task in tasks.items()}
    around = len(encode(tokenizer, Request("")))
    assert records["longbench_lcc"]["tokens"] == [haystack.count(prompts["longbench_lcc"])]
    assert records["longbench_hotpotqa"]["tokens"] == [haystack.count(prompts["longbench_hotpotqa"]) + around]


def test_answers_are_alternatives_and_some_end_with_their_line(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("trec", "hotpotqa", "hotpotqa_e"):
        lines(folder / f"{name}.jsonl", asked(all_classes=["Food", "City"]))
    tasks = published([("longbench", tmp_path)])
    assert list(tasks) == ["longbench_hotpotqa", "longbench_hotpotqa_e", "longbench_trec"]
    assert tasks["longbench_hotpotqa"].score(answered("Ann", "Ben"), "It was Ben.") == 1 / 2
    assert tasks["longbench_hotpotqa"].score(answered("Ann"), "\nAnn\nQuestion") == 2 / 3
    assert tasks["longbench_trec"].score(answered("Food"), "\nFood\nCity") == 1


def test_problems_are_scored_by_their_box(haystack: Haystack, tmp_path: Path) -> None:
    record = {"problem": "Halve 1.", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 1}
    task = published([("math500", lines(tmp_path / "m.jsonl", record))])["math500"]
    sample = task.numbered(0, haystack, 100, "0")
    assert sample.prompt.startswith("Halve 1.\n\n") and "\\boxed{}" in sample.prompt and not sample.raw
    assert sample.max_new_tokens == 2048 and task.scenario == "long output"
    outputs = ["So \\boxed{0.5}.", "So \\boxed{2}.", "So 0.5."]
    assert [task.score(sample, output) for output in outputs] == [1, 0, 0]
    with pytest.raises(SettingsError, match="5 tokens is too short for math500: a question needs"):
        task.numbered(0, haystack, 5, "0")


def test_aime_comes_as_lines_or_as_a_list(haystack: Haystack, tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"Problem": "Count.", "Answer": 33}, {"Problem": "Again.", "Answer": "007"}]
    listed = tmp_path / "aime.json"
    listed.write_text(json.dumps(records, indent=1))
    for path in (listed, lines(tmp_path / "aime.jsonl", *records)):
        task = published([("aime", path)], max_new_tokens=9)["aime"]
        samples = [task.numbered(number, haystack, 100, "0") for number in range(task.available)]
        assert [sample.answers for sample in samples] == [("33",), ("7",)]
        assert samples[0].max_new_tokens == 9
        assert [task.score(samples[1], f"\\boxed{{{said}}}") for said in ("7", "007", "8")] == [1, 1, 0]


def test_choices_are_shuffled_by_the_seed(haystack: Haystack, tmp_path: Path) -> None:
    path = tmp_path / "gpqa.csv"
    path.write_text("\ufeff" + GPQA_HEAD + '1,"Which\nparticle, then?",up,down,left,right\n' * 8, encoding="utf-8")
    task = published([("gpqa", path)])["gpqa"]
    samples = [task.numbered(number, haystack, 200, "0") for number in range(task.available)]
    assert samples == [task.numbered(number, haystack, 200, "0") for number in range(8)]
    assert samples != [task.numbered(number, haystack, 200, "1") for number in range(8)]
    assert len({sample.answers for sample in samples}) > 1
    for sample in samples:
        assert f"\n{sample.answers[0]}) up\n" in sample.prompt and "Which\nparticle, then?" in sample.prompt


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("B", 1),
        ("(B).", 1),
        ("It is A. So\nAnswer: B", 1),
        ("**Answer:** B", 1),
        ("The correct answer is (B)", 1),
        ("Answer: \\boxed{B}", 1),
        ("\\boxed{\\text{B}}", 1),
        ("Answer: B. No, Answer: C", 0),
        ("Answer: C", 0),
        ("That is the answer. A longer one is B", 0),
        ("Bees", 0),
        ("", 0),
    ],
)
def test_the_last_letter_that_is_called_the_answer_counts(output: str, expected: float, tmp_path: Path) -> None:
    path = tmp_path / "gpqa.csv"
    path.write_text(f"{GPQA_HEAD}1,Which?,up,down,left,right\n")
    assert published([("gpqa", path)])["gpqa"].score(answered("B"), output) == expected


def test_there_are_as_many_samples_as_the_file_has(tmp_path: Path) -> None:
    tasks = published([("longbench", lines(tmp_path / "qasper.jsonl", asked(), asked(), asked()))])
    batches = Asked({**tasks, "passkey": TASKS["passkey"]}, (100,), samples=5, batch_size=2).batches
    assert [numbers for name, _, numbers in batches if name == "longbench_qasper"] == [[0, 1], [2]]
    assert [numbers for name, _, numbers in batches if name == "passkey"] == [[0, 1], [2, 3], [4]]


def test_what_identifies_a_task_changes_with_its_file_and_is_short(haystack: Haystack, tmp_path: Path) -> None:
    path = lines(tmp_path / "qasper.jsonl", asked(context="A" * 5000))
    task = published([("longbench", path)])["longbench_qasper"]
    assert repr(task) == repr(published([("longbench", path)])["longbench_qasper"])
    assert len(repr(task)) < 300
    assert repr(task) != repr(published([("longbench", path)], max_new_tokens=3)["longbench_qasper"])
    lines(path, asked(context="B" * 5000))
    assert repr(task) != repr(published([("longbench", path)])["longbench_qasper"])
    assert task.sample(haystack, 9000, random.Random(0)) == task.numbered(0, haystack, 9000, "0")


GOOD = json.dumps(asked())


@pytest.mark.parametrize(
    ("benchmark", "name", "content", "message"),
    [
        ("longbench", "qasper.jsonl", "", "qasper.jsonl is empty. LongBench has a file of JSON lines"),
        (
            "longbench",
            "qasper.jsonl",
            f"{GOOD}\n\n{{oh",
            "Line 3 of .*qasper.jsonl is no JSON: .* each line has",
        ),
        ("longbench", "qasper.jsonl", f"{GOOD}\n7\n", "Line 2 of .*qasper.jsonl is no JSON object"),
        ("longbench", "qasper.jsonl", json.dumps(asked(context="")), "Line 1 of .*qasper.jsonl has no 'context'"),
        ("longbench", "qasper.jsonl", json.dumps(asked(answers="Ann")), "answers='Ann', which is not allowed"),
        ("longbench", "trec.jsonl", GOOD, "Line 1 of .*trec.jsonl has no 'all_classes'"),
        ("longbench", "other.jsonl", GOOD, "other.jsonl is no dataset of LongBench. They are: narrativeqa, "),
        ("math500", "m.jsonl", '{"problem": "Halve 1."}', "Line 1 of .*m.jsonl has no 'answer'. MATH-500 is a file"),
        ("aime", "a.json", '[{"problem": "x",\n"answer" 1}]', "Line 2 of .*a.json is no JSON"),
        ("aime", "a.json", '[{"problem": "x", "answer": 1000}]', "Record 1 of .*a.json has answer=1000, which is not"),
        ("aime", "a.json", '[{"problem": "x"}]', "Record 1 of .*a.json has no 'answer'"),
        ("aime", "a.json", "[]", "a.json has no records"),
        ("gpqa", "g.csv", GPQA_HEAD, "g.csv has no records. GPQA is a CSV file with the columns Question, "),
        ("gpqa", "g.csv", f"{GPQA_HEAD}1,Which?,up,down\n", "Line 2 of .*g.csv has no 'Incorrect Answer 2'"),
        ("gpqa", "g.csv", f'{GPQA_HEAD}1,"Which?"?,up\n', "What follows line 1 of .*g.csv is no row of a table"),
        ("gpqa", "g.csv", b"\xff\xfe", "g.csv is no UTF-8 text"),
        ("gsm8k", "g.csv", "", "There is no benchmark 'gsm8k'. The benchmarks are: longbench, math500, aime, gpqa"),
    ],
)
def test_wrong_files_say_what_is_expected_and_where(
    benchmark: str, name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match=message) as caught:
        published([(benchmark, path)])
    assert "\n" not in str(caught.value)


def test_missing_files_and_packages_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="nothing.jsonl cannot be read: No such file or directory. MATH-500 is"):
        published([("math500", tmp_path / "nothing.jsonl")])
    with pytest.raises(SettingsError, match="holds no .jsonl files. LongBench has"):
        published([("longbench", tmp_path)])
    with pytest.raises(SettingsError, match="nowhere is not there. LongBench has"):
        published([("longbench", tmp_path / "nowhere")])
    path = lines(tmp_path / "m.jsonl", {"problem": "Halve 1.", "answer": "0.5"})
    with pytest.raises(SettingsError, match="The task math500 is in .* and in another file as well"):
        published([("math500", path), ("math500", path)])
    monkeypatch.setattr("louiskv.evaluation.tasks.published.PACKAGES", {"louiskv_absent": "absent", "json": "json"})
    with pytest.raises(SettingsError, match=r"Scoring math500 needs absent: pip install 'louiskv\[eval\]'"):
        published([("math500", path)])
