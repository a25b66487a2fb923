"""`louiskv methods`, and every method in the commands that use one."""

import json
from pathlib import Path

import pytest

from louiskv import METHODS
from louiskv.cli.options import PRESETS
from louiskv.heads import HeadScores
from tests.cli.conftest import Run

QUESTIONS = "What is the capital of France?\nAnd the capital of Spain?\n"


def test_all_methods_are_listed_with_paper_places_and_settings(run: Run) -> None:
    result = run("methods")
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    words = " ".join(result.stdout.split())
    for name, kind in METHODS.items():
        assert name in result.stdout.splitlines()
        assert f"paper {kind.paper}" in words and f"keeps {kind.keeps}" in words
        assert all(
            f"--{setting.name.replace('_', '-')} {setting.default}".strip() in words for setting in kind.settings()
        )


@pytest.mark.parametrize("name", METHODS)
def test_one_method_is_shown_with_what_its_settings_mean(run: Run, name: str) -> None:
    words = " ".join(run("methods", name).stdout.split())
    for setting in METHODS[name].settings():
        assert f"--{setting.name.replace('_', '-')} {setting.metadata['help']} ({setting.default})" in words


def test_the_list_as_json_holds_what_the_classes_say(run: Run) -> None:
    found = json.loads(run("methods", "--json").stdout)
    assert list(found) == list(METHODS)
    for name, told in found.items():
        assert {key: setting["default"] for key, setting in told["settings"].items()} == METHODS[name]().values()
        assert set(told["presets"]) == set(PRESETS.get(name, {}))
    assert found["freekv"]["presets"]["long_output"]["budget"] == 2048
    assert set(json.loads(run("methods", "quest", "--json").stdout)) == {"quest"}


def test_an_unknown_method_is_refused_with_the_names_of_all(run: Run) -> None:
    result = run("methods", "nope")
    assert result.exit_code == 2 and not result.stdout
    assert "There is no method 'nope'. The methods are: full, " in result.stderr


@pytest.mark.parametrize("name", METHODS)
def test_every_method_talks_over_several_turns(run: Run, name: str) -> None:
    result = run("chat", "--method", name, "--max-new-tokens", "9", stdin=QUESTIONS)
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert (first, second) == ("The capital of France is Paris.", "The capital of Spain is Madrid.")


def test_every_method_can_be_measured(run: Run, tmp_path: Path) -> None:
    flags = [part for name in METHODS for part in ("--method", name)]
    flags += ["--context", "40", "--output", str(tmp_path / "bench.jsonl"), "--json"]
    told = json.loads(run("bench", "decode", *flags, "--steps", "2").stdout)
    assert [record["method"] for record in told] == ["sdpa", *METHODS]
    told = json.loads(run("bench", "prefill", *flags, "--rounds", "1").stdout)
    assert [record["method"] for record in told] == ["sdpa", *METHODS]


def test_heads_are_measured_once_for_a_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("louiskv.heads._folder", lambda: tmp_path)
    ask = "generate", "Hello", "--max-new-tokens", "2", "--method", "razor_attention", "--json"
    told = json.loads(run(*ask).stdout)
    (saved,) = tmp_path.iterdir()
    # Where the file lies decides nothing: what it says is part of the method.
    assert told["settings"]["heads"] == ""
    assert len(HeadScores.load(saved).echo) == 30
    monkeypatch.setattr("louiskv.calibration.score_heads", lambda *args, **kwargs: pytest.fail("measured again"))
    assert json.loads(run(*ask).stdout)["text"] == told["text"]
    assert json.loads(run(*ask, "--heads", str(saved)).stdout)["text"] == told["text"]


def test_a_file_of_heads_that_is_missing_or_holds_something_else_is_refused(run: Run, tmp_path: Path) -> None:
    ask = "generate", "Hello", "--method", "razor_attention", "--heads"
    missing, other = tmp_path / "missing.json", tmp_path / "other.json"
    other.write_text("[]")
    for path, why in ((missing, "cannot be read: No such file"), (other, "holds no head scores")):
        result = run(*ask, str(path))
        assert result.exit_code == 2 and not result.stdout
        assert str(path) in result.stderr and why in result.stderr
