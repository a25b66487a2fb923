"""The app: help, version, and how errors end a run."""

import sys
from importlib import import_module

import pytest

import louiskv
from louiskv.cli import main
from louiskv.cli.commands import COMMANDS
from tests.cli.conftest import Run


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    result = run()
    assert result.exit_code == 0
    assert all(name in result.stdout for name in COMMANDS)


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"louiskv {louiskv.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_a_module_of_its_name(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0 and f"Usage: louiskv {name}" in result.stdout
    assert import_module(f"louiskv.cli.{name}").app


@pytest.mark.parametrize("arguments", [["--nope"], ["nope"], ["generate", "--nope"], ["doctor", "superfluous"]])
def test_wrong_usage_is_one_line_on_stderr(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_missing_extra_answers_with_its_pip_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=r"pip install 'louiskv\[cli\]'"):
        main()
