"""`louiskv eval`, with the real default model on the smallest of everything."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from louiskv.cli.eval import EVERYTHING, FOR_PARTS, QUICK
from louiskv.evaluation import comparisons
from louiskv.evaluation.tasks import TASKS
from louiskv.results import Results
from tests.cli.conftest import Run, refused

LITTLE = "--budget", "64", "--context", "96", "--prompt", "96", "--samples", "2", "--steps", "3"
QUEST = "--task", "passkey", "--task", "fidelity", "--method", "quest", *LITTLE
FIGURES = "scores", "outputs", "agreement", "kl", "top1", "nll", "curves", "fetched_per_token", "resident_bytes"

Evaluate = Callable[..., Result]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "results.jsonl"


@pytest.fixture
def evaluate(run: Run, file: Path) -> Evaluate:
    """Runs `louiskv eval` into the file."""
    return lambda *flags: run("eval", *(flags or QUEST), "--output", str(file))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("eval") / "results.jsonl"


@pytest.fixture
def finished(evaluate: Evaluate, kept: Path, file: Path) -> list[str]:
    """The lines of a finished evaluation, which are in the file."""
    file.parent.mkdir()
    if kept.exists():
        file.write_text(kept.read_text())
    else:
        evaluate()
        kept.write_text(file.read_text())
    return file.read_text().splitlines(keepends=True)


def figures(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a rerun must give again."""
    return [{name: record[name] for name in ("method", *FIGURES) if name in record} for record in records]


def titles(result: Result) -> list[str]:
    """Of all tables."""
    return [line.strip().split("  ")[0] for line in result.stdout.splitlines() if "budget" in line]


@pytest.mark.usefixtures("finished", "unasked")
def test_scores_and_fidelity_are_told_in_tables_and_nothing_runs_twice(evaluate: Evaluate, file: Path) -> None:
    content = file.read_bytes()
    told = evaluate()
    assert told.exit_code == 0 and not told.stderr
    assert list(dict.fromkeys(titles(told))) == ["score at 96", "fidelity behind 96"]
    num_tables = len(titles(told))
    assert "index" in told.stdout and "ahead" not in told.stdout
    assert told.stdout.count("\n full") == num_tables == told.stdout.count("\n quest") and "4 results in" in told.stdout
    assert evaluate().stdout == told.stdout and file.read_bytes() == content


def test_json_has_all_records_and_another_file_gets_the_same_figures(
    run: Run, evaluate: Evaluate, finished: list[str], file: Path
) -> None:
    told = json.loads(evaluate(*QUEST, "--json").stdout)
    assert told == list(map(json.loads, finished))
    again = json.loads(run("eval", *QUEST, "--json", "--output", str(file.with_name("b.jsonl"))).stdout)
    assert figures(told) == figures(again)
    kinds = [("task", "full"), ("task", "quest"), ("fidelity", "full"), ("fidelity", "quest")]
    assert [(each["kind"], each["method"]) for each in told] == kinds
    passkey, fed = told[1], told[3]
    assert passkey["samples"] == [0, 1] and len(passkey["scores"]) == 2 and max(passkey["tokens"]) <= 96 + 16
    assert fed["budget"] == 64 and fed["steps"] == 3 and len(fed["curves"]["kl"]) == 1 and fed["kl"] > 0
    assert {"model_hash", "dtype", "impl", "text_hash", "seed", "settings", "provenance"} <= set(fed)


def test_ctrl_c_keeps_what_is_finished_and_the_next_call_goes_on(
    evaluate: Evaluate, finished: list[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Results.add

    def adding(results: Results, record: dict[str, Any]) -> None:
        if len(results.records) == 2:
            signal.raise_signal(signal.SIGINT)
        add(results, record)

    file.write_text(finished[0])
    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", adding)
        assert evaluate().exit_code == 130
    kept = file.read_text()
    assert [record["method"] for record in Results(file)] == ["full", "quest"]
    # As if it had been killed in the middle of the third.
    file.write_text(kept + '{"format": 1, "kind": "fid')
    records = json.loads(evaluate(*QUEST, "--json").stdout)
    assert file.read_text().startswith(kept) and len(file.read_text().splitlines()) == 4
    assert records == list(Results(file)) and figures(records) == figures(list(map(json.loads, finished)))


@pytest.mark.usefixtures("finished", "unasked")
@pytest.mark.parametrize("flags", [("--seed", "1"), ("--impl", "torch"), ("--batch-size", "1"), ("--budget", "80")])
def test_what_decides_over_a_result_is_part_of_its_key(evaluate: Evaluate, flags: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match="The model was asked"):
        evaluate(*QUEST, *flags)


def test_another_text_of_the_same_name_is_another_text(
    evaluate: Evaluate, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    text = tmp_path / "text.txt"
    task = "--task", "fidelity", "--method", "full", *LITTLE, "--text", str(text)
    text.write_text("The stone is old.\n\n" * 100)
    assert evaluate(*task).exit_code == 0
    request.getfixturevalue("unasked")
    assert evaluate(*task).exit_code == 0
    text.write_text("The river is old.\n\n" * 100)
    with pytest.raises(AssertionError, match="The model was asked"):
        evaluate(*task)


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "passkeys"), "There is no task 'passkeys'. The tasks are: passkey"),
        (("--task", "fidelty"), "ledger_behind_text, fidelity."),
        (("--method", "louis"), "There is no method 'louis'. The methods are: full"),
        (
            ("--compare", "colours"),
            "'colours'. The comparisons are: trigger, units, output, plus.",
        ),
        (("--text", "/nope"), "The text /nope cannot be read"),
        (("--impl", "nope"), "There is no implementation 'nope'"),
        (("--task", "passkey", "--context", "32"), "A context of"),
        (("--task", "common_words", "--context", "96"), "too short for common_words"),
        # Others would run well before.
        (("--task", "ledger_behind_text", "--context", "640", "--context", "8192"), "at a context of 8192 needs"),
        (("--context", "96", "--task", "passkey", "--task", "fidelity", "--steps", "8100"), "the model has 8192"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(
    evaluate: Evaluate, file: Path, flags: tuple[str, ...], message: str
) -> None:
    refused(evaluate("--method", "full", "--samples", "1", *flags), message)
    assert not file.exists()


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("Short.\n\n" * 4, "tokens, but"), ("One long paragraph. " * 99, "put empty lines")],
)
def test_a_text_that_is_not_long_enough_is_refused(
    evaluate: Evaluate, tmp_path: Path, content: str, message: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(content)
    refused(evaluate("--task", "fidelity", "--method", "full", *LITTLE, "--text", str(text)), message)


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("content", ['{"format": 99, "key": "x"}\n', "notes\n", "notes", '{"tau": [0.9]}'])
def test_a_file_of_something_else_is_refused_and_kept(evaluate: Evaluate, file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    refused(evaluate(), "ive another --output", code=1)
    assert file.read_text() == content


@pytest.mark.usefixtures("unasked")
def test_where_nothing_can_be_written_is_found_out_at_once(evaluate: Evaluate, file: Path) -> None:
    file.mkdir(parents=True)
    refused(evaluate(), "cannot be read: Is a directory. Give another --output", code=1)
    file.rmdir()
    file.parent.rmdir()
    file.parent.write_text("a file in the place of a folder")
    refused(evaluate(), "cannot be written: File exists. Give another --output", code=1)


def test_every_context_and_every_comparison_has_its_tables(
    evaluate: Evaluate, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = list(comparisons.COMPARISONS["trigger"](64))
    monkeypatch.setitem(comparisons.COMPARISONS, "trigger", lambda _: cells[:1])
    less = "--budget", "64", "--samples", "1", "--task", "passkey"
    told = evaluate("--compare", "trigger", *less, "--context", "96", "--context", "112", "--context", "96")
    assert list(dict.fromkeys(titles(told))) == ["score at 96, by trigger", "score at 112, by trigger"]
    assert told.stdout.count("\n full") == len(titles(told)) == told.stdout.count("\n every 1")
    assert len(Results(file).records) == 4 and "4 results in" in told.stdout


@pytest.mark.usefixtures("unasked")
def test_tasks_are_listed(run: Run) -> None:
    told = run("eval", "--tasks")
    assert told.exit_code == 0
    assert [line.split()[0] for line in told.stdout.splitlines() if line[0] != " "] == [*TASKS, "fidelity"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), EVERYTHING),
        (("--quick",), QUICK),
        (("--quick", "--method", "full", "--samples", "1"), {**QUICK, "method": ["full"], "samples": 1}),
        (("--compare", "units"), {**EVERYTHING, **FOR_PARTS}),
        (("--compare", "units", "--quick"), {**QUICK, **FOR_PARTS}),
    ],
)
def test_what_runs_unless_it_is_said_otherwise(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], expected: dict[str, Any]
) -> None:
    seen: list[Any] = []

    def planning(_evaluation: Any, *planned: Any) -> list[Any]:
        seen.extend(planned)
        return []

    for name in ("ask", "feed"):
        monkeypatch.setattr(f"louiskv.cli.eval.{name}", planning)
    assert evaluate(*(flags or ("--seed", "0"))).exit_code == 0
    asked, field, fed, _ = seen
    assert [*asked.tasks, "fidelity"] == expected["task"]
    assert (list(asked.contexts), asked.samples, fed.steps) == (
        expected["context"],
        expected["samples"],
        expected["steps"],
    )
    names = dict.fromkeys(["full", *expected["method"]])
    assert list(dict.fromkeys(each.name for each in field if each.group is None)) == list(names)
    assert {each.budget for each in field} - {None} == (set(expected["budget"]) if len(field) > 1 else set())
    assert any(each.group for each in field) == ("--compare" in flags)


def test_settings_go_to_the_methods_that_have_them(evaluate: Evaluate, unasked: None) -> None:
    with pytest.raises(AssertionError, match="The model was asked"):
        evaluate(*QUEST, "--page-size", "8")
    result = evaluate(*QUEST, "--tau", "0.5")
    assert result.exit_code == 2
    assert result.stderr == "error: None of the methods full, quest has a setting tau.\n"
