"""`louiskv batch`: every line has an answer or an error, also after it was stopped."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from louiskv.serving.batch import lines
from tests.cli.conftest import Run, refused

SETTINGS = ["--budget", "256", "--max-length", "600", "--rows", "4"]


def asked(number: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Say {number}"}]
    body = {"model": "smollm2", "messages": messages, "max_tokens": 4, "temperature": 0, **more}
    return {"custom_id": f"request {number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def written(path: Path, *told: Any) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in told))
    return path


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.filterwarnings("error")
def test_every_line_is_answered_once(run: Run, tmp_path: Path) -> None:
    text = {"model": "smollm2", "prompt": ["One, two,", "Red, green,"], "max_tokens": 3}
    completion = {"custom_id": "text", "method": "POST", "url": "/v1/completions", "body": text}
    requests = [*map(asked, range(6)), asked(6, temperature=9), asked(7, model="other"), completion, asked(0)]
    file, output = written(tmp_path / "requests.jsonl", *requests, "{"), tmp_path / "requests.answers.jsonl"
    result = run("batch", str(file), "--json", *SETTINGS)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["lines"], report["answered"], report["refused"], report["skipped"]) == (11, 7, 4, 0)
    assert report["completion_tokens"] == 6 * 4 + 2 * 3
    answers = told(output)
    statuses = {each["custom_id"]: each["response"]["status_code"] for each in answers if each["response"]}
    assert statuses == {**{f"request {number}": 200 for number in range(6)}, "request 6": 400, "request 7": 404} | {
        "text": 200
    }
    assert {each["error"]["code"] for each in answers if each["error"]} == {"duplicate_custom_id", "invalid_json_line"}
    body = next(each["response"]["body"] for each in answers if each["custom_id"] == "request 3")
    assert body["choices"][0]["finish_reason"] == "length"
    # Nothing is asked again, and the model is not loaded.
    again = run("batch", str(file), *SETTINGS)
    assert again.exit_code == 0 and "0 answered, 0 with an error, 11 there before" in again.stderr
    assert told(output) == answers


def test_after_ctrl_c_the_same_call_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, output = written(tmp_path / "requests.jsonl", *map(asked, range(12))), tmp_path / "answers.jsonl"
    answered = lines.Line.answered
    calls = 0

    def stopping(line: lines.Line, status: int, body: bytes) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 5:
            signal.raise_signal(signal.SIGINT)
        return answered(line, status, body)

    monkeypatch.setattr(lines.Line, "answered", stopping)
    result = run("batch", str(file), "--output", str(output), *SETTINGS)
    assert result.exit_code == 130
    before = told(output)
    assert 4 <= len(before) < 12
    assert f"stopped: {12 - len(before)} lines are left" in result.stderr
    again = run("batch", str(file), "--output", str(output), "--json", *SETTINGS)
    assert json.loads(again.stdout)["skipped"] == len(before)
    assert told(output)[: len(before)] == before
    assert sorted(each["custom_id"] for each in told(output)) == sorted(f"request {number}" for number in range(12))


def test_what_cannot_be_read_or_written_is_said_first(run: Run, unasked: None, tmp_path: Path) -> None:
    refused(run("batch", str(tmp_path / "none.jsonl")), "none.jsonl cannot be read: No such file")
    file = written(tmp_path / "requests.jsonl", asked(0))
    refused(run("batch", str(file), "--output", str(file)), "is no answer of a batch", 1)
    refused(run("batch", str(file), "--output", str(tmp_path / "no" / "where")), "cannot be written", 1)
    refused(run("batch", str(file), "--replicas", "2"), "--replicas are for replicas on a cluster: give --ray as well")
    refused(run("batch", str(file), "--method", "nope"), "There is no method")
