"""The commit of a checkout, and of no other repository."""

import subprocess
from pathlib import Path

import pytest

from louiskv import provenance


def test_the_commit_is_of_our_own_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        named = "-c", "user.name=A", "-c", "user.email=a@b.c"
        subprocess.run(["git", *named, *arguments], cwd=tmp_path, check=True, capture_output=True)

    installed = tmp_path / "provenance.py"
    installed.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(installed))
    git("init")
    git("commit", "--allow-empty", "-m", "of somebody else")
    assert provenance._commit() is None
    git("add", "provenance.py")
    git("commit", "-m", "ours")
    commit = provenance._commit()
    assert commit is not None and len(commit) == 12
