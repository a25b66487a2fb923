"""`louiskv bench large`, with a tiny model in the place of a large one; no time is asserted."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from louiskv.bench import large_models
from louiskv.bench.large import LargeBench
from louiskv.bench.runner import Entry, Record
from louiskv.cli import bench_large
from louiskv.contestants import named
from louiskv.errors import DeviceFailedError
from tests.cli.conftest import Run, refused

SIZES = LlamaConfig(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=128,
    vocab_size=90,
)


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setitem(large_models.MODELS, "tiny", lambda: SIZES)
    monkeypatch.setattr(bench_large, "RECORDED", (150, 6))
    return "bench", "large", "--shape", "tiny", "--output", str(tmp_path / "large.jsonl")


def test_tables_of_steps_and_first_tokens(run: Run, ask: tuple[str, ...]) -> None:
    methods = "--method", "full", "--method", "louiskv:tau=0.7,window=32"
    ask = *ask, "--context", "300", "--prefill", "200", "--steps", "4", "--budget", "128", *methods
    first = run(*ask)
    assert first.exit_code == 0
    assert "tiny: decode of 1 x 300 tokens" in first.stdout and "tiny: prefill of 1 x 200 tokens" in first.stdout
    names = re.findall(r"^ (louiskv\S+) ", first.stdout, re.MULTILINE)
    assert len(names) > 2 and set(names) == {"louiskv:tau=0.7,window=32"}, "whole in each part of a table"
    told = json.loads(run(*ask, "--json").stdout)
    assert [(each["kind"], each["method"]) for each in told] == [
        (kind, name)
        for kind in ("large decode", "large prefill")
        for name in ("sdpa", "full", "louiskv:tau=0.7,window=32")
    ]
    assert (told[2]["settings"]["tau"], told[2]["settings"]["window"]) == (0.7, 32)


def test_the_first_methods_are_measured_everywhere_before_the_others() -> None:
    cells = bench_large._cells([], [], [], [], None, 64, 1, True)
    entries = [Entry(), *(Entry(each) for each in named(bench_large.METHODS, 1024))]
    parts = bench_large._in_order(cells, entries)
    done = [(cell, each.name) for some, these in parts for cell in some for each in these]
    assert len(done) == len(set(done)) == len(cells) * len(entries)
    names = [each.name for each in entries]
    assert [name for _, name in done[:9]] == [name for name in names if name not in bench_large.SLOW]
    assert {name for cell, name in done[9 : 9 + 6 * (len(cells) - 1)]} == set(bench_large.FIRST)
    assert [cell.context for cell in cells if cell.phases] == [32768] * 3, "in others no step is captured once more"


def test_first_tokens_need_no_real_model(run: Run, ask: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("nothing is recorded")

    monkeypatch.setattr(bench_large, "load", loaded)
    options = "--dtype", "float32", "--no-sdpa", "--method", "full", "--json"
    (told,) = json.loads(run(*ask, "--prefill", "200", *options).stdout)
    assert told["kind"] == "large prefill" and told["dtype"] == "float32"
    chunks = run(*ask, "--prefill", "200", "--chunk", "64", "--chunk", "150", *options[:-1])
    assert chunks.exit_code == 0
    titles = re.findall(r"tiny: prefill of 1 x 200 tokens(?:, (\d+) at once)?\n", chunks.stdout)
    assert titles == ["", "64", "150"]
    refused(run(*ask, "--prefill", "200", *options, "--impl", "fast"), "There is no implementation 'fast'")
    refused(run(*ask, "--context", "300", "--chunk", "64"), "name one with --prefill")
    refused(run(*ask, "--grow", "64", "--chunk", "64"), "name one with --prefill")


def test_where_the_device_fails_what_was_measured_is_shown(
    run: Run, ask: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = LargeBench.run

    def fails(bench: LargeBench, *others: Any) -> Iterator[Record]:
        yield next(measure(bench, *others))
        raise DeviceFailedError("the device failed (CUDA error)")

    monkeypatch.setattr(LargeBench, "run", fails)
    shown = run(*ask, "--prefill", "200", "--dtype", "float32", "--no-sdpa", "--method", "full")
    assert shown.exit_code == 1
    assert "prefill of 1 x 200 tokens" in shown.stdout and "the device failed (CUDA error)" in shown.stderr


def test_what_there_is_no_time_for_is_said(run: Run, ask: tuple[str, ...]) -> None:
    shown = run(*ask, "--prefill", "200", "--no-sdpa", "--method", "full", "--minutes", "0")
    assert shown.exit_code == 0 and "full is left out: there was no time left." in shown.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--method", "louiskv:tau=x"), "--method louiskv:tau=x: 'x' is no number"),
        (("--method", "louiskv:depth=1"), "has a setting depth"),
        (("--layers", "4"), "--layers 4 is not allowed: tiny has 1 to 3"),
    ],
)
def test_wrong_input_is_one_line(run: Run, ask: tuple[str, ...], flags: tuple[str, ...], message: str) -> None:
    refused(run(*ask, *flags), message)
