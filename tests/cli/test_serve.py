"""`louiskv serve` as a process of its own: it begins, answers, and ends in good order."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from louiskv.cli.failures import UsageError
from louiskv.cli.prompts import size_of
from tests.cli.conftest import Run, refused

COMMAND = [sys.executable, "-m", "louiskv", "serve", "--port", "0", "--budget", "512"]


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"at (http://\S+) ", line)
        assert address is not None, line
        yield process, address[1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("way", "key"), [(signal.SIGTERM, {"LOUISKV_API_KEY": " secret\n"}), (signal.SIGINT, {})])
def test_it_answers_and_ends_with_zero(way: signal.Signals, key: dict[str, str]) -> None:
    with started("--max-length", "600", "--grace", "30", **key) as (process, address):
        connection = http.client.HTTPConnection(address.removeprefix("http://"))
        connection.request("GET", "/ready", headers={"Host": "example.org"})
        status = connection.getresponse().status
        connection.close()
        assert status == (200 if key else 403), "without a key it is for this machine's own names"
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)
        asked: Any = [{"role": "user", "content": "What is the capital of France?"}]
        stream = iter(
            client.chat.completions.create(
                model="smollm2", messages=asked, max_tokens=40, temperature=0, stream=True, logit_bias={"2": -100}
            )
        )
        next(stream)
        process.send_signal(way)
        parts = list(stream)
        client.close()
        assert process.wait(60) == 0
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        assert "Paris" in text
        assert parts[-1].choices[0].finish_reason == "length", "what runs is finished"
        assert process.stderr is not None
        told = process.stderr.read()
        assert "Up to 8 rows of 600 tokens" in told
        assert "of host memory" in told
        assert "warning" not in told and "Traceback" not in told


def test_a_port_in_use_is_said_before_a_model_is_loaded(run: Run, unasked: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(run("serve", "--port", port), f"Nothing can listen at 127.0.0.1 port {port}: Address already in use", 1)
    refused(run("serve", "--host", "203.0.113.1", "--port", "0"), "Nothing can listen at 203.0.113.1 port 0", 1)
    refused(run("serve", "--host", "no such host", "--port", "0"), "Nothing can listen at no such host", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "--rows"),
        (["--port", "70000"], "--port"),
        (["--host-memory", "much"], "--host-memory much is no size"),
        (["--max-body", "-1"], "--max-body -1 is no size"),
        (["--api-key", ""], "--api-key is empty"),
        (["--api-key", "two\nlines"], "--api-key is empty or has letters"),
        (["--budget", "-1"], "budget"),
        (["--method", "nope"], "There is no method"),
        (["--prefill-chunk", "1"], "--prefill-chunk"),
    ],
)
def test_wrong_options(run: Run, unasked: None, arguments: list[str], message: str) -> None:
    refused(run("serve", "--port", "0", *arguments), message)


def test_too_little_memory_is_said_before_anything_is_served(run: Run) -> None:
    result = run("serve", "--port", "0", "--host-memory", "20M")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "A sequence of 8192 tokens needs" in result.stderr.splitlines()[-1]
    assert "--max-length" in result.stderr.splitlines()[-1]


def test_a_missing_extra_answers_with_its_pip_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    refused(run("serve"), "The server needs fastapi: pip install 'louiskv[serve]'")


def test_sizes() -> None:
    assert [size_of("x", text) for text in ("5", "2K", "1.5 MiB", "8g", "1TB")] == [5, 2048, 1572864, 2**33, 2**40]
    assert size_of("x", None) is None
    with pytest.raises(UsageError):
        size_of("x", "8 apples")
