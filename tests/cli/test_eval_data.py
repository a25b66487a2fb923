"""`louiskv eval --data`: published benchmarks from their files, through the command."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a dataset of LongBench, and MATH-500."""
    passages = "Passage 1:\nAnn Smith lives in Paris.\n" + "Passage 2:\nNothing happened on that day.\n" * 60
    asked = {"input": "Where does Ann Smith live?", "context": passages, "answers": ["Paris"], "all_classes": None}
    problem = {"problem": "What is 1 + 1?", "answer": "2"}
    (tmp_path / "hotpotqa.jsonl").write_text(f"{json.dumps(asked)}\n" * 2)
    (tmp_path / "math.jsonl").write_text(json.dumps(problem))
    return tmp_path


def test_tasks_of_files_run_and_resume(run: Run, files: Path) -> None:
    arguments = ["eval", "--data", f"longbench={files / 'hotpotqa.jsonl'}", "--data", f"math500={files / 'math.jsonl'}"]
    arguments += ["--method", "louiskv", "--budget", "128", "--context", "300", "--max-new-tokens", "4", "--json"]
    arguments += ["--output", str(files / "eval.jsonl")]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    assert [(record["task"], record["method"], len(record["scores"])) for record in records] == [
        ("longbench_hotpotqa", "full", 2),
        ("longbench_hotpotqa", "louiskv", 2),
        ("math500", "full", 1),
        ("math500", "louiskv", 1),
    ]
    first, _, problem, _ = records
    assert all(250 < tokens <= 300 for tokens in first["tokens"]) and problem["tokens"][0] < 100
    assert all(0 < len(said) <= 4 for said in first["said"])
    assert first["answers"] == [["Paris"], ["Paris"]] and problem["scenario"] == "long output"
    assert json.loads(run(*arguments).stdout) == records

    (files / "math.jsonl").write_text(json.dumps({"problem": "What is 1 + 2?", "answer": "3"}))
    again = json.loads(run(*arguments, "--task", "math500").stdout)
    assert [record["answers"] for record in again] == [[["3"]], [["3"]]]
    assert {record["key"] for record in again}.isdisjoint(record["key"] for record in records)


def test_tasks_of_files_are_listed_with_the_others(run: Run, files: Path) -> None:
    listed = run("eval", "--tasks", "--data", f"math500={files / 'math.jsonl'}").stdout
    assert "math500" in listed and "passkey" in listed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "longbench"],
            "error: --data longbench is not allowed: give NAME=PATH, such as",
        ),
        (["--data", "gsm8k=x"], "error: There is no benchmark 'gsm8k'. The benchmarks are: longbench, math500"),
        (["--data", "aime=/no/such"], "error: /no/such cannot be read: No such file or directory. AIME is a file"),
        (["--max-new-tokens", "4"], "error: --max-new-tokens is for the tasks of --data"),
    ],
)
def test_wrong_options_are_answered_in_one_line(run: Run, arguments: list[str], message: str) -> None:
    result = run("eval", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message) and result.stderr.count("\n") == 1


def test_a_task_that_no_file_has_is_answered_with_those_there_are(run: Run, files: Path) -> None:
    result = run("eval", "--data", f"math500={files / 'math.jsonl'}", "--task", "maths")
    assert result.exit_code == 2
    assert "There is no task 'maths'. The tasks are: passkey" in result.stderr and "math500, " in result.stderr
