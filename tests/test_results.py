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
    for rest in ("{", '{"format": 1, "key": "b", "settings": {"budget": 64}'):
        path.write_text(whole + rest)
        results = Results(path)
        assert "a" in results and "b" not in results
        # Another process may still be writing that line: only who adds one takes it away.
        assert path.read_text() == whole + rest
        results.add({"key": "b"})
        assert [record["key"] for record in Results(path)] == ["a", "b"]


def test_a_last_line_without_its_end_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Results(path).add({"key": "a"})
    path.write_text(path.read_text().rstrip())
    results = Results(path)
    assert "a" in results
    results.add({"key": "b"})
    assert [record["key"] for record in Results(path)] == ["a", "b"]


@pytest.mark.parametrize(
    "content", [b"notes without a last newline", b'{"tau": [0.9]}', b"\xff\xfe\n", b'{"format": 2, "k": 1}']
)
def test_a_file_that_is_none_of_ours_is_not_harmed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match="Give another --output"):
        Results(path)
    assert path.read_bytes() == content


def test_what_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    with pytest.raises(ResultsError, match="of quest is no finite number"):
        results.add({"key": "a", "method": "quest", "curve": [1.0, float("nan")]})
    assert not results.path.exists() and "a" not in results


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
    results = Results(tmp_path / "file" / "results.jsonl")
    with pytest.raises(ResultsError, match="cannot be written"):
        results.add({"key": "a"})
    with pytest.raises(ResultsError, match="cannot be written"):
        results.check_writable()
    with pytest.raises(ResultsError, match="cannot be read: Is a directory"):
        Results(tmp_path)
    Results(tmp_path / "deep" / "new.jsonl").check_writable()
    assert not (tmp_path / "deep" / "new.jsonl").exists()


def test_keys_depend_on_all_and_on_no_order() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
