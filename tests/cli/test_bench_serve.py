"""`louiskv bench serve` on the default model; no time is asserted."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from louiskv.cli import bench_serve, load_tables
from tests.cli.conftest import Run, refused

SMALL = "--prompt", "24", "--prompt", "70", "--output-tokens", "12", "--requests", "3", "--clients", "2"


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "results" / "load.jsonl")


def test_tables_bars_and_a_page(run: Run, output: str, tmp_path: Path) -> None:
    methods = "--method", "full", "--method", "louiskv:window=32,sink=4", "--budget", "64"
    ask = "bench", "serve", *SMALL, *methods, "--device-memory", "1.5G", "--output", output
    first = run(*ask)
    assert first.exit_code == 0 and first.stderr == ""
    assert "2 clients: 3 requests of 24 and 70 tokens, 12 tokens each; 8 rows, 1.50 GiB of" in first.stdout
    assert re.search(r"full +\d+\.\d +\d+( +[\d.]+ m?s){3}", first.stdout) and "p99" in first.stdout
    assert re.search(r"louiskv:window=32,sink=4 +\d +\d\.\d\d +[\d.]+ MiB", first.stdout)
    assert re.search(r"2 clients +full +#+ +\d+\.\d", first.stdout)
    assert "not answered" not in first.stdout and "SmolLM2" in first.stdout
    assert run(*ask).stdout == first.stdout
    told = json.loads(run(*ask, "--json").stdout)
    assert [(each["clients"], each["class"]) for each in told] == [(2, "Full"), (2, "LouisKV")]
    assert (told[1]["settings"]["window"], told[1]["settings"]["budget"]) == (32, 64)
    assert told == [json.loads(line) for line in Path(output).read_text().splitlines()]
    page = json.loads(run("report", str(Path(output).parent), "--json").stdout)
    assert list(page["sections"].values()) == [["load"]]


def test_a_text_of_ones_own_and_what_is_not_answered(run: Run, output: str, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("One and two and three and four. " * 8)
    ask = "bench", "serve", *SMALL, "--text", str(text), "--method", "full", "--output", output
    shown = run(*ask, "--timeout", "0.01")
    assert shown.exit_code == 0 and "full: not answered: 3 with timeout" in shown.stdout
    (timed_out,) = json.loads(run(*ask, "--timeout", "0.01", "--json").stdout)
    assert timed_out["failed"] == {"timeout": 3} and timed_out["first_token_seconds"] is None


def test_quick_asks_for_little(run: Run, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_serve, "QUICK", ([16], 2, 2, [2]))
    (told,) = json.loads(run("bench", "serve", "--quick", "--method", "full", "--output", output, "--json").stdout)
    assert (told["prompts"], told["output"], told["requests"], told["clients"]) == ([16], 2, 2, 2)


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({"output_tokens": 10, "decoded_tokens": 40, "failed": {"timeout": 1}}, "1.0 KiB"),
        ({"output_tokens": 0, "decoded_tokens": 0, "failed": {"429": 1}}, "-"),
        # Of an earlier version, which has not written what was decoded.
        ({"output_tokens": 40, "failed": {}}, "1.0 KiB"),
        ({"output_tokens": 10, "failed": {"timeout": 1}}, "-"),
    ],
)
def test_fetched_bytes_are_told_by_all_tokens_that_were_decoded(figures: dict[str, Any], told: str) -> None:
    others = {"method": "louiskv", "most_at_once": 1, "slowest_over_median": None, "retrieval_rate": 0.5}
    memory = {"peak_device_bytes": 0, "peak_host_bytes": 0, "fetched_bytes": 40 * 1024}
    _, (row,) = load_tables._memory([{**others, **memory, **figures}])
    assert row[5] == told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "nope"], "There is no method 'nope'"),
        (["--method", "louiskv:tau=x"], "--method louiskv:tau=x: 'x' is no number"),
        (["--device-memory", "much"], "--device-memory much is no size"),
        (["--clients", "1", "--rate", "1"], "--clients and --rate are both given"),
        (["--rate", "0"], "rate=0.0 is not allowed"),
        (["--prompt", "0"], "--prompt"),
        (["--prefill-chunk", "2"], "--prefill-chunk"),
        (["--text", "no/such/file"], "no/such/file cannot be read"),
        (["--prompt", "8192"], "Give a smaller --prompt"),
        (["--device-memory", "1M"], "(device_memory)"),
    ],
)
def test_wrong_input_is_one_line(run: Run, unasked: None, output: str, arguments: list[str], message: str) -> None:
    refused(run("bench", "serve", *arguments, "--output", output), message, 1 if "1M" in arguments else 2)


def test_a_missing_extra_answers_with_its_pip_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    refused(run("bench", "serve"), "The server needs uvicorn: pip install 'louiskv[serve]'")
