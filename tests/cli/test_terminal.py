"""What only a process of its own shows: signals from outside, broken pipes, a terminal."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

COMMAND = [sys.executable, "-m", "louiskv.cli", "generate"]
STORY = "Write a long story about a dog."


def start(*arguments: str) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, bufsize=1
    )


def test_ctrl_c_from_outside_ends_with_130_and_the_report() -> None:
    process = start(STORY, "--max-new-tokens", "4000")
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, report = process.communicate(timeout=30)
    assert process.returncode == 130
    assert first.strip() and rest.endswith("\n")
    assert report.startswith("LouisKV(") and "to the first token" in report and "Traceback" not in report


def test_ctrl_c_in_the_middle_of_a_long_prompt(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("A word is a word. " * 3000)
    process = start("--document", str(file), "--truncate", "--json")
    assert process.stderr is not None
    note = process.stderr.readline()
    assert "cut out of the middle" in note
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and not errors
    told = json.loads(out)
    assert told["interrupted"] and told["output_tokens"] == 0 and len(told["report"]["layers"]) < 30


def test_a_broken_pipe_is_no_error() -> None:
    process = start(STORY, "--max-new-tokens", "4000")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=30) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_terminal_shows_what_is_going_on() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*COMMAND, "Hello", "--max-new-tokens", "3"], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    # Where the other side has closed, reading fails on Linux and gives nothing elsewhere.
    with suppress(OSError):
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    assert process.wait(timeout=30) == 0
    assert all(text in shown.decode() for text in ("Loading smollm2", "prompt", "100%", "LouisKV("))
