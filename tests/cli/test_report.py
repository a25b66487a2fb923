"""`louiskv report`."""

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.reporting.synthetic import Hat, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hat = Hat()
    return write(tmp_path / "results", [hat.prefill("louiskv", 128, context) for context in (512, 1024)])


def test_it_prints_where_the_page_lies(run: Run, folder: Path) -> None:
    (folder / "other.json").write_text("{}")
    result = run("report", str(folder))
    path = folder / "report.html"
    assert result.exit_code == 0 and result.stdout == f"{path}\n"
    assert "left out: other.json holds no results of louiskv" in result.stderr
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "Time to the first token" in page
    # What it has written itself is no result.
    assert run("report", str(folder)).exit_code == 0


def test_json_tells_path_records_and_sections(run: Run, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "page.html"
    told = json.loads(run("report", str(folder), "--output", str(output), "--json").stdout)
    sections = {"tiny/model in float32": ["calibration", "speed"]}
    assert told == {"path": str(output), "records": 2, "sections": sections}
    assert output.exists()


def test_what_eval_and_probe_write_can_be_drawn(run: Run, tmp_path: Path) -> None:
    sizes = "--budget", "96", "--context", "192", "--steps", "4"
    few = "--method", "louiskv", "--samples", "1", "--task", "passkey", "--task", "fidelity", "--prompt", "192"
    assert run("eval", *few, *sizes, "--output", str(tmp_path / "eval.jsonl")).exit_code == 0
    assert run("probe", "--method", "louiskv", *sizes, "--output", str(tmp_path / "probe.jsonl")).exit_code == 0
    told = json.loads(run("report", str(tmp_path), "--json").stdout)
    assert list(told["sections"].values()) == [["accuracy", "scores", "fidelity", "inside"]]


def test_tables_as_markdown(run: Run, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "tables.md"
    assert run("report", str(folder), "--markdown", str(output)).exit_code == 0
    lines = output.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Results of louiskv: results" and "## tiny/model in float32" in lines
    head = next(number for number, line in enumerate(lines) if line.startswith("| method |"))
    rows = [line.split(" | ") for line in lines[head : head + 4]]
    assert {len(row) for row in rows} == {len(rows[0])} and rows[1][0] == "| ---" and rows[1][-1] == "---: |"
    assert [row[0] for row in rows[2:]] == ["| louiskv", "| louiskv"]
    assert any("louiskv bench prefill" in line for line in lines if line.startswith("    "))


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("nowhere", 2, "nowhere is not there: give a folder of results."),
        ("file", 2, "file is no folder: give a folder of results."),
        ("empty", 2, "empty holds no results: make some with `louiskv eval"),
        ("broken", 1, "Line 1 of {}/eval.jsonl has format 99"),
    ],
)
def test_bad_input_is_one_line(run: Run, tmp_path: Path, name: str, code: int, message: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "eval.jsonl").write_text('{"format": 99, "key": "x"}\n')
    result = run("report", str(tmp_path / name))
    assert result.exit_code == code and not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message.format(tmp_path / "broken") in result.stderr


def test_where_nothing_can_be_written_it_says_so(run: Run, folder: Path) -> None:
    result = run("report", str(folder), "--output", str(folder))
    assert result.exit_code == 1 and not result.stdout
    assert result.stderr == f"error: {folder} cannot be written: Is a directory. Give another --output.\n"
    result = run("report", str(folder), "--markdown", str(folder))
    assert result.stderr == f"error: {folder} cannot be written: Is a directory. Give another --markdown.\n"


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_extra_answers_with_its_pip_line(
    run: Run, folder: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = run("report", str(folder))
    assert result.exit_code == 2
    assert result.stderr == f"error: The report needs {package}: pip install 'louiskv[report]'\n"
