"""`louiskv serve --ray` as a process with a cluster of its own."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.cli.conftest import Run, haystack, head_scores, loaded, refused, run, unasked  # noqa: F401
from tests.serving.serving import MODEL


def test_it_serves_and_ends_with_zero(model_folder: Path) -> None:
    settings = ["--model", str(model_folder), "--budget", "256", "--dtype", "float32", "--device", "cpu"]
    # However slow the machine is.
    settings += ["--grace", "300"]
    command = [sys.executable, "-m", "louiskv", "serve", "--port", "0", "--ray", "--replicas", "1", *settings]
    # Whatever cluster another test has.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        address = re.search(rf"^Serving {MODEL} with LouisKV at (http://127.0.0.1:\d+) \(API at http", line)
        assert address is not None, line + process.stderr.read()
        client = openai.OpenAI(base_url=f"{address[1]}/v1", api_key="none", max_retries=0)
        asked: Any = [{"role": "user", "content": "Go on and on"}]
        stream = iter(
            client.chat.completions.create(
                model=MODEL, messages=asked, max_tokens=500, stream=True, extra_body={"ignore_eos": True}
            )
        )
        next(stream)
        process.send_signal(signal.SIGTERM)
        assert [part.choices[0].finish_reason for part in stream][-1] == "length", "what runs is finished"
        client.close()
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "2"], "--replicas are for replicas on a cluster: give --ray as well"),
        (["--ray", "--replicas", "2", "--max-replicas", "3"], "replicas=2 is a fixed number"),
        (["--ray", "--gpus-per-replica", "2"], "--gpus-per-replica"),
    ],
)
def test_wrong_options(run: Run, unasked: None, arguments: list[str], message: str) -> None:  # noqa: F811
    refused(run("serve", "--port", "0", *arguments), message)


def test_a_missing_extra_answers_with_its_pip_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(run("serve", "--ray"), "--ray needs ray: pip install 'louiskv[serve,ray]'")
