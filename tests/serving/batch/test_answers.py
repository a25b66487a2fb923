"""The output of a batch: what was answered before, half a line, and files of something else."""

import json
import resource
import signal
from pathlib import Path

import pytest

from louiskv.errors import ResultsError
from louiskv.serving.batch.answers import HEAD, Answers
from louiskv.serving.batch.lines import Line, read_lines
from louiskv.serving.calls import Call

HALF = b'{"id": "batch_req_12'


def line(name: str) -> Line:
    return Line(1, name, Call("/v1/completions"))


def told(name: str, status: int = 200) -> bytes:
    return json.dumps(line(name).answered(status, b"{}")).encode()


def names(path: Path) -> list[str]:
    return [json.loads(each)["custom_id"] for each in path.read_bytes().splitlines()]


def test_what_was_answered_is_known_again(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    answers, (wrong,) = Answers(output), read_lines(b"{")
    assert not answers.known and not output.exists()
    answers.add(line("a").answered(200, b"{}"))
    answers.add(wrong.refused)
    assert Answers(output).known == {"a", wrong.identity}


@pytest.mark.parametrize("whole", [b"", told("a") + b"\n"])
@pytest.mark.parametrize("half", [HALF, HALF[:1], HEAD])
def test_half_a_line_gives_its_place_to_the_next(tmp_path: Path, whole: bytes, half: bytes) -> None:
    output = tmp_path / "answers.jsonl"
    output.write_bytes(whole + half)
    answers = Answers(output)
    assert answers.known == ({"a"} if whole else set())
    assert output.read_bytes() == whole + half
    answers.add(line("b").answered(200, b"{}"))
    assert output.read_bytes().startswith(whole) and names(output)[-1] == "b"
    assert Answers(output).known == answers.known | {"b"}


def test_a_whole_line_without_its_end_stays(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    output.write_bytes(told("a"))
    answers = Answers(output)
    assert answers.known == {"a"}
    answers.add(line("b").answered(200, b"{}"))
    assert names(output) == ["a", "b"]


def test_what_a_full_disk_left_of_a_line_is_cut_off(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    answers = Answers(output)
    answers.add(line("a").answered(200, b"{}"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Without its signal, a file that is too large is an error of the system, as a full disk is.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (output.stat().st_size + 9, limit[1]))
        with pytest.raises(OSError, match="too large"):
            answers.add(line("b").answered(200, b"{}"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert output.read_bytes().endswith(b'\n{"id": "b')
    answers.add(line("c").answered(200, b"{}"))
    assert names(output) == ["a", "c"]


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_error_of_the_server_is_asked_again(tmp_path: Path, status: int) -> None:
    output = tmp_path / "answers.jsonl"
    output.write_bytes(told("a", status) + b"\n" + told("b", 400) + b"\n")
    assert Answers(output).known == {"b"}


REQUEST = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}).encode()


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"{}\n", 1),
        (b"3\n", 1),
        (b"text\n", 1),
        (b'{"error": {}}\n', 1),
        (b'{"custom_id": [], "response": {"status_code": 200}, "error": null}\n', 1),
        (b"text", 1),
        (b"{}", 1),
        (REQUEST, 1),
        (REQUEST + b"\n" + REQUEST, 1),
        (REQUEST + b"\n" + HALF, 1),
        (told("a") + b"\n" + REQUEST, 2),
        (told("a") + b"\n" + REQUEST[:-3], 2),
        (b"\xff\xfe", 1),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes, number: int) -> None:
    output = tmp_path / "other"
    output.write_bytes(content)
    with pytest.raises(ResultsError, match=f"line {number} is no answer of a batch"):
        Answers(output)
    assert output.read_bytes() == content
