"""`louiskv probe`, with the real default model on the smallest of everything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from louiskv.cli import probe
from louiskv.methods import METHODS
from louiskv.results import Results
from tests.cli.conftest import Run, refused

LITTLE = "--method", "louiskv", "--method", "snapkv", "--budget", "64", "--context", "96", "--steps", "4"
Look = Callable[..., Result]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "probe.jsonl"


@pytest.fixture
def look(run: Run, file: Path) -> Look:
    """Runs `louiskv probe` into the file."""
    return lambda *flags: run("probe", *LITTLE, *flags, "--output", str(file))


def strict(text: str) -> Any:
    """JSON as the standard has it, which knows no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON.")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe") / "probe.jsonl"


@pytest.fixture
def finished(look: Look, kept: Path, file: Path) -> list[Any]:
    """The records of a finished probe, which are in the file."""
    if kept.exists():
        file.write_text(kept.read_text())
    else:
        look()
        kept.write_text(file.read_text())
    return list(map(strict, file.read_text().splitlines()))


@pytest.mark.usefixtures("finished", "unasked")
def test_what_methods_attend_to_is_told_and_nothing_runs_twice(look: Look, file: Path) -> None:
    content = file.read_bytes()
    told = look()
    assert told.exit_code == 0 and not told.stderr
    assert "recall" in told.stdout and "error by layer" in told.stdout and "2 results in" in told.stdout
    assert "index" in told.stdout and "ahead" not in told.stdout
    assert told.stdout.count("louiskv") == told.stdout.count("snapkv") >= 2
    assert look().stdout == told.stdout and file.read_bytes() == content


def test_what_is_selected_ahead_is_told_where_it_is_known(finished: list[Any]) -> None:
    louiskv, snapkv = finished
    assert louiskv["ahead_rate"] is None and louiskv["index_bytes"] > 0
    late = {**louiskv, "ahead_rate": 0.25}
    del snapkv["ahead_rate"], snapkv["index_bytes"]
    columns, *_ = probe._tables([late, snapkv], 120)
    cells = {str(column.header): list(map(str, column.cells)) for column in columns.columns}
    assert cells["ahead"] == ["0.25", "-"]
    share = louiskv["index_bytes"] / louiskv["full_bytes"]
    assert cells["index"] == [f"{share:.1%}", "-"] and cells["device"][1].endswith("%")


def test_json_is_json_and_another_file_gets_the_same_figures(
    look: Look, run: Run, finished: list[Any], file: Path
) -> None:
    assert strict(look("--json").stdout) == finished
    watched = "--layer", "5", "--head", "2", "--json"
    again = strict(run("probe", *LITTLE, *watched, "--output", str(file.with_name("b.jsonl"))).stdout)
    own = dict.fromkeys(("key", "watched", "attended", "seconds", "provenance"))
    assert [{**each, **own} for each in finished] == [{**each, **own} for each in again]
    louiskv, snapkv = again
    assert (louiskv["attended"]["layer"], louiskv["attended"]["head"]) == (5, 2)
    assert finished[0]["attended"]["layer"] == 15 and len(louiskv["attended"]["share"]) == 4
    assert len(louiskv["recall"]) == 30 and len(louiskv["recall"][0]) == 3
    # The first layers keep everything.
    assert louiskv["error"][0] == pytest.approx([0, 0, 0], abs=1e-4) and min(louiskv["error"][9]) > 1e-3
    assert snapkv["retrieval_rate"] == 0 < louiskv["retrieval_rate"] <= 1


def test_a_call_with_more_runs_only_what_is_new(
    look: Look, finished: list[Any], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, seen = file.read_bytes(), []
    add = Results.add

    def adding(results: Results, record: dict[str, Any]) -> None:
        seen.append((record["method"], record["prompt"]))
        add(results, record)

    monkeypatch.setattr(Results, "add", adding)
    more = look("--method", "streaming_llm", "--context", "64", "--context", "96")
    assert seen == [("streaming_llm", 96), *((name, 64) for name in ("louiskv", "snapkv", "streaming_llm"))]
    assert file.read_bytes().startswith(content) and "6 results in" in more.stdout


def test_all_methods_but_the_lossless_ones_are_probed(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def looking(_evaluation: Any, _fed: Any, field: list[Any], *_: Any) -> list[Any]:
        seen.extend(field)
        return []

    monkeypatch.setattr(probe, "look", looking)
    monkeypatch.setattr(probe, "_tables", lambda *_: [])
    assert run("probe", "--output", str(file)).exit_code == 0
    assert [each.name for each in seen] == [name for name in METHODS if name not in ("full", "full_offloaded")]


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--layer", "30"), "--layer 30 is none that is managed: those are 0 to 29."),
        (("--layer", "-1"), "--layer -1 is none"),
        (("--head", "3"), "--head 3 is not there: the model has KV heads 0 to 2."),
        (("--head", "-1"), "--head -1 is not there"),
        (("--method", "louis"), "There is no method 'louis'"),
        (("--text", "/nope"), "The text /nope cannot be read"),
        (("--context", "8190"), "A prompt of 8190 with 4 steps needs 8194 positions, the model has 8192."),
    ],
)
def test_what_cannot_be_probed_is_refused_before_anything_runs(
    look: Look, file: Path, flags: tuple[str, ...], message: str
) -> None:
    refused(look(*flags), message)
    assert not file.exists()


@pytest.mark.usefixtures("unasked")
def test_files_that_cannot_be_used_are_refused_at_once(look: Look, file: Path) -> None:
    file.write_text("notes")
    refused(look(), "is no result of louiskv. Give another --output", code=1)
    assert file.read_text() == "notes"
    file.unlink()
    file.mkdir()
    refused(look(), "Is a directory", code=1)
