"""Files of results: written at once, gone on with, and never harmed."""

from pathlib import Path

import pytest

from louiskv.errors import ResultsError
from louiskv.results import Results, key_of


def test_records_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    results = Results(path)
    assert "a" not in results
    results.add({"key": "a", "score": 1})
    results.add({"key": "b", "score": 2})
    again = Results(path)
    assert [record["score"] for record in again] == [1, 2]
    assert "a" in again and again["b"]["score"] == 2


def test_a_line_that_was_cut_off_is_taken_away_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Results(path).add({"key": "a"})
    whole = path.read_text()
    path.write_text(whole + '{"format": 1, "key": "b", "sco')
    results = Results(path)
    assert "a" in results and "b" not in results
    assert path.read_text() == whole
    results.add({"key": "b"})
    assert [record["key"] for record in Results(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hello", "Line 2 .* is no result of louiskv"),
        ('{"key": "x"}', "Line 2 .* is no result"),
        ("[1]", "Line 2 .* is no result"),
        (
            '{"format": 99, "key": "x"}',
            "Line 2 .* has format 99, this version of louiskv writes 1. What is there is kept",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_and_kept(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "results.jsonl"
    Results(path).add({"key": "a"})
    text = path.read_text() + line + "\n"
    path.write_text(text)
    with pytest.raises(ResultsError, match=message):
        Results(path)
    assert path.read_text() == text


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot be written"):
        Results(tmp_path / "file" / "results.jsonl").add({"key": "a"})


def test_keys_depend_on_all_and_on_no_order() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
