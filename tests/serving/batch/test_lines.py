"""Lines of a batch: what is a request, what is not, and what was answered before."""

import json
from pathlib import Path
from typing import Any

import pytest

from louiskv.errors import ResultsError
from louiskv.serving.batch.lines import answered_before, read_lines

GOOD: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": []},
}


def raw(*told: Any) -> bytes:
    return b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in told)


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        ({**GOOD, "custom_id": 3}, "invalid_value", "custom_id"),
        ({**GOOD, "custom_id": ""}, "invalid_value", "custom_id"),
        ({**GOOD, "method": "GET"}, "invalid_value", "method"),
        ({**GOOD, "url": "/v1/embeddings"}, "invalid_value", "url"),
        ({**GOOD, "url": []}, "invalid_value", "url"),
        ({**GOOD, "body": None}, "invalid_value", "body"),
        ({**GOOD, "body": {"stream": True}}, "invalid_value", "body.stream"),
    ],
)
def test_what_is_no_request_says_why(line: Any, code: str, param: str | None) -> None:
    good, wrong = read_lines(raw({**GOOD, "custom_id": "first"}, b"", line))
    assert good.call is not None and good.identity == "first"
    error = wrong.refused["error"]
    assert wrong.call is None and (error["code"], error["param"], error["line"]) == (code, param, 3)
    assert wrong.identity == 3


def test_a_name_is_given_once() -> None:
    first, second = read_lines(raw(GOOD, GOOD))
    assert first.call is not None and second.call is None
    assert second.refused["error"]["code"] == "duplicate_custom_id"
    assert second.refused["custom_id"] == "a" and second.identity == 2


def test_what_was_answered_is_known_again_and_half_a_line_is_cut(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    assert answered_before(output) == set()
    good, wrong = read_lines(raw(GOOD, b"{"))
    whole = raw(good.answered(200, b"{}"), wrong.refused) + b"\n"
    output.write_bytes(whole + b'{"id": "batch_re')
    assert answered_before(output) == {"a", 2}
    assert output.read_bytes() == whole
    output.write_bytes(b'{"id": "batch_re')
    assert answered_before(output) == set()
    assert output.read_bytes() == b""


@pytest.mark.parametrize("line", [b"{}\n", b"3\n", b"text\n", b'{"error": {}}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, line: bytes) -> None:
    output = tmp_path / "other"
    output.write_bytes(line)
    with pytest.raises(ResultsError, match="line 1 is no answer of a batch"):
        answered_before(output)
    assert output.read_bytes() == line
