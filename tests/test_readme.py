"""The README tells the truth: its snippets run, its commands exist, its files are there, its methods are all."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from louiskv import METHODS
from louiskv.cli.commands import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_snippets_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert blocks("python")
    # One after the other, as they are read.
    names: dict[str, object] = {}
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "The capital of France is" in printed
    assert "LouisKVPlus(budget=1024" in printed


def test_commands_have_the_options_that_are_shown() -> None:
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    lines += re.findall(r"`(louiskv [^`]+)`", README)
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("louiskv ")]
    assert len(commands) >= 5
    for arguments in commands:
        result = CliRunner().invoke(app, [*arguments, "--help"], prog_name="louiskv", catch_exceptions=False)
        assert result.exit_code == 0, (arguments, result.output)


def test_make_targets_exist() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {target for target in re.findall(r"make (\w+)", README) if target != "no"} <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_method_has_its_row() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|.*louiskv/methods/\1\.py", README, flags=re.MULTILINE))
    assert rows == set(METHODS)


def test_contributing_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 60
