"""`louiskv bench` on the default model; no time is asserted."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from louiskv.bench import decode, ladder, memory, ops, prefill, roofline
from louiskv.ops import OPS
from tests.cli.conftest import Run, refused

TINY = "--context", "48", "--steps", "3"


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "results" / "bench.jsonl")


def measured_again(*_: Any) -> None:
    pytest.fail("measured again")


def test_decode_shows_tables_and_keeps_the_figures(run: Run, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = "bench", "decode", *TINY, "--batch", "1", "--batch", "2", "--output", output
    first = run(*ask)
    assert first.exit_code == 0 and first.stderr == ""
    assert "decode at 48 tokens (all real text), 3 steps" in first.stdout
    assert "decode at 2 x 48 tokens" in first.stdout
    assert re.search(r"sdpa +\d+\.\d +\d+\.\d - \d+\.\d +\d+\.\d +1\.00x +\d\.\d\dx", first.stdout)
    assert re.search(r"ms of a step +model +attention +selection .*all", first.stdout)
    assert re.search(r"louiskv +m+", first.stdout) and "m model  a attention" in first.stdout
    assert "louiskv: budget=512" in first.stdout and "torch" in first.stdout
    assert all(len(line) <= 80 for line in first.stdout.splitlines())
    monkeypatch.setattr(decode, "prefill", measured_again)
    assert run(*ask).stdout == first.stdout
    told = json.loads(run(*ask, "--json").stdout)
    assert [(each["batch"], each["method"]) for each in told] == [
        (batch, name) for batch in (1, 2) for name in ("sdpa", "full", "louiskv")
    ]
    assert told == [json.loads(line) for line in Path(output).read_text().splitlines()]


def test_prefill_shows_a_table_and_keeps_the_figures(run: Run, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = "bench", "prefill", "--context", "48", "--rounds", "1", "--method", "quest", "--output", output
    assert [each["method"] for each in json.loads(run(*ask, "--no-sdpa", "--json").stdout)] == ["quest"]
    first = run(*ask)
    assert first.exit_code == 0 and "time to first token at 48 tokens, median of 1" in first.stdout
    assert re.search(r"quest +\d+\.\d\d +\d+\.\d +[+-]\d+\.\d% +- +0\.\d\d s", first.stdout)
    monkeypatch.setattr(prefill, "text_ids", measured_again)
    assert run(*ask).stdout == first.stdout
    assert [each["kind"] for each in json.loads(run(*ask, "--json").stdout)] == ["prefill"] * 2


def test_ladders_show_every_rung_and_why_one_is_missing(run: Run, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "OPS", {})
    ask = "bench", "ladder", "--context", "150", "--steps", "2", "--budget", "128", "--output", output
    shown = run(*ask).stdout
    assert "part by part at 150 tokens" in shown
    assert "units (every step) at 150 tokens" in shown and "units (trigger) at 150 tokens" in shown
    for name in ("per token", r"\+ semantic trigger", r"\+ group selection", "pages, min/max", "clusters, segments"):
        assert re.search(rf"^ {name} +\d", shown, re.MULTILINE)
    assert re.search(r"^ \+ fast kernels +- +- +- +- +- *$", shown, re.MULTILINE)
    assert "+ fast kernels: cannot run here: " in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert len(json.loads(run(*ask, "--json").stdout)) == 12


@pytest.fixture
def few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many inputs as a test needs, and a machine that is soon measured."""
    monkeypatch.setattr(ops, "MAX_COPIES", 2)
    monkeypatch.setattr(ops, "QUICK", ops.Pace(0.0, 2))
    monkeypatch.setattr(roofline, "BEYOND", 1)
    monkeypatch.setattr(roofline, "PRODUCT_SIZES", (32, 32))


@pytest.mark.usefixtures("few_copies")
def test_operations_are_shown_and_kept(run: Run, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = "bench", "ops", "--quick", "--context", "256", "--budget", "96", "--output", output
    first = run(*ask)
    assert first.exit_code == 0 and first.stderr == ""
    assert "operations of one layer, 1 x 256 tokens, budget 96" in first.stdout
    for op in OPS:
        assert re.search(rf"^{op}\b", first.stdout, re.MULTILINE)
    assert re.search(
        r"torch +\d[\d.]* [um]s +\d+% +1\.00x +\d[\d.]* (GB|GFLOP)/s +(\d+% )?[a-z]+$", first.stdout, re.MULTILINE
    )
    line = r"machine: read \d.*, copied .* GB/s; products .* GFLOP/s; a call .*s; cache"
    assert re.search(line, " ".join(first.stdout.split()))
    assert "smollm2 shapes (float32)" in first.stdout and "launches" not in first.stdout
    assert all(len(line) <= 80 for line in first.stdout.splitlines())
    monkeypatch.setattr(ops, "Machine", measured_again)
    assert run(*ask).stdout == first.stdout
    told = [{**json.loads(line), "others": 0.25} for line in Path(output).read_text().splitlines()]
    Path(output).write_text("".join(f"{json.dumps(record)}\n" for record in told))
    assert "not quiet: others took 25% of the processors" in run(*ask).stdout
    told = json.loads(run(*ask, "--op", "agree", "--op", "kmeans", "--json").stdout)
    assert {each["class"] for each in told} == {"agree", "kmeans"}
    kept = [json.loads(line) for line in Path(output).read_text().splitlines()]
    assert [each for each in kept if each in told] == sorted(told, key=kept.index)


@pytest.mark.usefixtures("few_copies")
def test_operations_have_shapes_batches_and_types(run: Run, output: str) -> None:
    ask = "bench", "ops", "--quick", "--shape", "llama8b", "--budget", "96", "--op", "agree", "--output", output
    told = json.loads(run(*ask, "--batch", "1", "--batch", "2", "--context", "256", "--impl", "torch", "--json").stdout)
    assert [(each["method"], each["batch"], each["dtype"], each["impl"]) for each in told] == [
        (name, batch, "bfloat16", "torch") for batch in (1, 2) for name in ("agree softmax", "agree shares")
    ]
    assert told[2]["bytes"] == 2 * told[0]["bytes"]
    grouped = json.loads(
        run(*ask[:-4], "--op", "kmeans", "--dtype", "float32", *ask[-2:], "--impl", "torch", "--json").stdout
    )
    (short,) = (each for each in grouped if each["method"] == "kmeans")
    assert (short["context"], short["dtype"]) == (2048, "float32")


def test_what_is_quick_is_short(run: Run, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[decode.Sweep] = []

    def bench_decode(_: Any, sweep: decode.Sweep, *fields: Any) -> list[Any]:
        asked.append(sweep)
        return []

    monkeypatch.setattr("louiskv.cli.bench.bench_decode", bench_decode)
    for flags in (["decode"], ["ladder"], ["decode", "--quick"], ["ladder", "--quick", "--steps", "5"]):
        assert run("bench", *flags, "--output", output).exit_code == 0
    assert asked == [
        decode.Sweep((1024, 8192, 32768), (1,), 64),
        decode.Sweep((8192,), (1,), 64),
        decode.Sweep((1024,), (1,), 16),
        decode.Sweep((1024,), (1,), 5),
    ]


def test_what_does_not_fit_is_refused_before_anything_is_measured(
    run: Run, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_host_memory", lambda: 10**9)
    monkeypatch.setattr(decode, "prefill", measured_again)
    result = run("bench", "decode", *TINY, "--context", "131072", "--output", output)
    assert result.exit_code == 1 and not result.stdout and not Path(output).exists()
    wanted = r"error: sdpa needs \d\.\d\d GiB of host memory for 1 x 131072 tokens, but \d+\.\d MiB can be used"
    assert re.match(wanted, result.stderr) and result.stderr.count("\n") == 1
    assert "a smaller --batch, --no-sdpa or --dtype bfloat16." in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["decode", "--method", "nope"], "There is no method 'nope'"),
        (["decode", "--method", "full", "--tau", "0.5"], "None of the methods full has a setting tau"),
        (["decode", "--batch", "0"], "Invalid value for '--batch'"),
        (["decode", "--context", "many"], "Invalid value for '--context'"),
        (["decode", "--steps", "100000"], "--steps 100000 leaves no position for a context"),
        (["ladder", "--budget", "100"], "budget=100 is not a multiple of page_size=16"),
        (["ladder", "--impl", "nope"], "There is no implementation 'nope'"),
        (["ops", "--op", "nope"], "There is no operation 'nope'. There are: kmeans, query_cosines, append_token"),
        (["ops", "--shape", "nope"], "There is no shape 'nope'. There are: smollm2, llama8b."),
        (["ops", "--impl", "nope"], "There is no implementation 'nope'"),
        (["ops", "--dtype", "int8"], "Invalid value for '--dtype'"),
        (["ops", "--batch", "0"], "Invalid value for '--batch'"),
        (["ops", "--budget", "64"], "budget=64 leaves no unit to retrieve: give at least 96."),
        (["ops", "--context", "600"], "A context of 600 tokens is too short for budget=512"),
        (["prefill", "--context", "100000"], "Prefill is measured on real text: give a smaller --context."),
    ],
)
def test_bad_input_is_refused(run: Run, output: str, flags: list[str], message: str) -> None:
    result = run("bench", *flags, "--output", output)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert not Path(output).exists()


def test_a_file_of_another_format_is_kept_and_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    for line, why in (('{"format": 99, "key": "x"}', "has format 99"), ("time 3", "is no result of louiskv")):
        path.write_text(f"{line}\n")
        result = run("bench", "decode", *TINY, "--output", str(path))
        assert result.exit_code == 1 and why in result.stderr and "--output" in result.stderr
        assert path.read_text() == f"{line}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--impl", "cuda"], "cannot run as impl='cuda' on cpu"),
        (["--context", "100000000000"], "1 x 100000000000 tokens need"),
        (["--device", "nope"], "There is no device 'nope' here"),
    ],
)
def test_operations_that_cannot_run_are_refused(run: Run, output: str, flags: list[str], message: str) -> None:
    device = [] if "--device" in flags else ["--device", "cpu"]
    refused(run("bench", "ops", *flags, *device, "--output", output), message, code=1)
    assert not Path(output).exists()


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("what", ["decode", "prefill", "ladder", "ops"])
def test_where_nothing_can_be_written_is_found_out_at_once(run: Run, tmp_path: Path, what: str) -> None:
    (tmp_path / "results").write_text("a file in the place of a folder")
    told = run("bench", what, "--context", "1024", "--output", str(tmp_path / "results" / "bench.jsonl"))
    refused(told, "cannot be written: File exists. Give another --output", code=1)
