"""`louiskv batch`: every line has an answer or an error, also after it was stopped."""

import errno
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from louiskv import models
from louiskv.engine.batch import Batch
from louiskv.engine.turns import Turns
from louiskv.serving.batch import answering, lines
from louiskv.serving.batch.answers import Answers
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
    refused(run("batch", str(file), "--output", str(file / "where")), "cannot be written", 1)
    refused(run("batch", str(file), "--output", str(tmp_path)), "cannot be read: Is a directory")
    refused(run("batch", str(file), "--replicas", "2"), "--replicas are for replicas on a cluster: give --ray as well")
    refused(run("batch", str(file), "--method", "nope"), "There is no method")
    for command in (["batch", str(file)], ["bench", "serve"]):
        refused(run(*command, "--prefill-chunk", "2"), "'--prefill-chunk': Input should be greater than or equal to 3")
    whole = file.read_bytes()
    file.write_bytes(whole.rstrip())
    refused(run("batch", str(file), "--output", str(file)), "line 1 is no answer of a batch", 1)
    assert file.read_bytes() == whole.rstrip()


def test_an_output_that_cannot_be_written_is_said_before_the_model_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("The model was loaded."))
    file = written(tmp_path / "requests.jsonl", asked(0))
    refused(run("batch", str(file), "--output", str(file / "where")), "where cannot be written: ", 1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Batch, r"Line \d+ \('request \d+'\) ended twice with status 500: The server had an error"),
        (Turns, r"An error has ended the engine: RuntimeError\('the device is gone'\)\. .* The same call goes on"),
    ],
)
def test_an_engine_that_breaks_is_one_line_and_nothing_is_lost(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: type, message: str
) -> None:
    file, output = written(tmp_path / "requests.jsonl", *map(asked, range(12))), tmp_path / "requests.answers.jsonl"
    name = "run" if broken is Batch else "_step"
    whole, calls = getattr(broken, name), 0

    def failing(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise RuntimeError("the device is gone")
        return whole(*given)

    with monkeypatch.context() as patched:
        patched.setattr(broken, name, failing)
        result = run("batch", str(file), *SETTINGS)
    (line,) = [each for each in result.stderr.splitlines() if each.startswith("error: ")]
    assert result.exit_code == 1 and re.match(f"error: {message}", line)
    before = told(output)
    assert 0 < len(before) < 12 and all(each["response"]["status_code"] == 200 for each in before)
    assert json.loads(run("batch", str(file), "--json", *SETTINGS).stdout)["answered"] == 12 - len(before)
    assert sorted(each["custom_id"] for each in told(output)) == sorted(f"request {number}" for number in range(12))


def test_what_is_lost_on_the_way_is_no_fault_of_the_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: Any) -> None:
        raise ConnectionError("the cluster is gone")

    monkeypatch.setattr(answering, "answer_all", lost)
    with pytest.raises(ConnectionError, match="the cluster is gone"):
        run("batch", str(written(tmp_path / "requests.jsonl", asked(0))), *SETTINGS)
    assert not (tmp_path / "requests.answers.jsonl").exists()


def test_a_disk_that_fills_up_is_told_of_the_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(_: Answers, __: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Answers, "add", add)
    result = run("batch", str(written(tmp_path / "requests.jsonl", *map(asked, range(6)))), *SETTINGS)
    assert result.exit_code == 1
    assert "requests.answers.jsonl cannot be written: No space left on device" in result.stderr
    assert "ExceptionGroup" not in result.stderr
