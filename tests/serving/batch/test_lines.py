"""Lines of a batch: what is a request, what is not, and by what each is known."""

import json
from typing import Any

import pytest

from louiskv.serving.batch.lines import read_lines

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
    assert wrong.identity == (3, error["digest"])


def test_a_name_is_given_once() -> None:
    first, second = read_lines(raw(GOOD, GOOD))
    assert first.call is not None and second.call is None
    assert second.refused["error"]["code"] == "duplicate_custom_id"
    assert second.refused["custom_id"] == "a" and second.identity == (2, second.digest)


def test_what_is_no_request_is_known_by_its_number_and_its_bytes() -> None:
    first, second, other = (next(iter(read_lines(each))) for each in (b"{", b"{\r\n", b"["))
    assert first.identity == second.identity == (1, first.refused["error"]["digest"])
    assert other.identity != first.identity
    assert [each.identity[0] for each in read_lines(b"{\n{")] == [1, 2]


def test_a_line_put_in_before_another_is_a_line_of_its_own() -> None:
    before = {each.identity for each in read_lines(raw(GOOD, b"{"))}
    now = read_lines(raw(GOOD, {**GOOD, "url": "/"}, b"{"))
    assert [each.identity in before for each in now] == [True, False, False]


def test_a_mark_before_the_first_line_is_no_part_of_it() -> None:
    (line,) = read_lines(b"\xef\xbb\xbf" + raw(GOOD))
    assert line.call is not None and line.identity == "a"
