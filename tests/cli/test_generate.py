"""`louiskv generate`, with the real default model."""

import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from louiskv import METHODS
from louiskv.cli import generate
from louiskv.ops import dispatch, native
from tests.cli.conftest import Loaded, Run, interrupt_in_layer

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def test_the_answer_is_on_stdout_and_the_report_on_stderr(run: Run) -> None:
    result = run("generate", QUESTION, "--max-new-tokens", "16")
    assert result.exit_code == 0
    assert result.stdout == f"{ANSWER}\n"
    assert result.stderr.startswith("LouisKV(budget=1024")
    assert "7 output" in result.stderr and "to the first token, then" in result.stderr
    assert run("generate", QUESTION, "--max-new-tokens", "2", "--no-report").stderr == ""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_as_one_json_object(run: Run, name: str) -> None:
    result = run("generate", QUESTION, "--max-new-tokens", "16", "--method", name, "--json")
    assert result.exit_code == 0 and result.stderr == ""
    told = json.loads(result.stdout)
    assert (told["text"], told["interrupted"], told["output_tokens"]) == (ANSWER, False, 8)
    assert 30 < told["prompt_tokens"] == told["report"]["prompt_tokens"]
    assert 0 < told["seconds"]["per_output_token"] < told["seconds"]["first_token"] * 10
    assert (told["model"], told["method"], told["device"], told["dtype"]) == ("smollm2", name, "cpu", "float32")
    assert set(told["settings"]) == {setting.name for setting in METHODS[name].settings()}
    assert {"louiskv", "torch", "transformers", "python"} <= set(told["versions"])
    assert told["report"]["method"] == METHODS[name].__name__


def test_settings_reach_the_method(run: Run) -> None:
    flags = "--budget", "300", "--tau", "0.5", "--window", "32", "--dense-layers", "0", "--impl", "torch"
    told = json.loads(run("generate", QUESTION, "--max-new-tokens", "2", "--json", *flags).stdout)
    assert told["impl"] == "torch"
    assert told["settings"] == told["report"]["settings"]
    assert {key: told["settings"][key] for key in ("budget", "tau", "window", "dense_layers", "sink")} == {
        "budget": 300,
        "tau": 0.5,
        "window": 32,
        "dense_layers": 0,
        "sink": 16,
    }
    assert {layer["kind"] for layer in told["report"]["layers"]} == {"RetrievalLayer"}


def test_the_prompt_comes_from_where_the_user_put_it(run: Run, tmp_path: Path) -> None:
    short = "--max-new-tokens", "16", "--no-report"
    assert run("generate", *short, stdin=QUESTION).stdout.strip() == ANSWER
    file = tmp_path / "notes.txt"
    file.write_text("Zurla has a cat by the name of Mio.\n")
    asked = "--question", "What is the name of Zurla's cat?"
    for source, stdin in ((str(file), None), ("-", file.read_bytes())):
        assert "Mio" in run("generate", "--document", source, *asked, *short, stdin=stdin).stdout
    assert "Mio" in run("generate", asked[1], "--document", str(file), *short).stdout
    assert run("generate", "The capital of France is", "--raw", *short).stdout.startswith(" Paris")


def test_sampling_follows_the_seed(run: Run) -> None:
    def text(*flags: str) -> str:
        return run("generate", "Once", "--raw", "--max-new-tokens", "8", "--no-report", *flags).stdout

    warm = "--temperature", "1.5", "--top-p", "0.95"
    assert text(*warm, "--seed", "1") == text(*warm, "--seed", "1") != text(*warm, "--seed", "2")
    assert text("--seed", "1") == text("--seed", "2")


def test_a_prompt_in_chunks_gives_the_same_answer(run: Run) -> None:
    result = run("generate", QUESTION, "--max-new-tokens", "16", "--prefill-chunk", "8", "--no-report")
    assert result.stdout == f"{ANSWER}\n"


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "There is nothing to answer: give a prompt, or --document and --question"),
        ([" "], "There is nothing to answer"),
        (["--question", "Who?"], "--question asks about a document"),
        (["--document", "/nope", "--question", "Who?"], "/nope cannot be read: No such file or directory"),
        (["--document", "-", "--question", "Who?"], "standard input is empty"),
        (["One?", "--document", "-", "--question", "Two?"], "not both"),
        (["Hello", "--max-new-tokens", "9000"], "leaves no position for a prompt: the model has 8192"),
    ],
)
def test_what_cannot_be_answered_is_refused(run: Run, flags: list[str], message: str) -> None:
    result = run("generate", *flags)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1


def test_a_prompt_longer_than_the_positions_is_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("word " * 500)
    flags = "--document", str(file), "--question", "What?", "--max-new-tokens", "8000"
    result = run("generate", *flags)
    assert result.exit_code == 2
    assert "more than the 192 positions" in result.stderr and "--truncate" in result.stderr


def test_a_prompt_longer_than_the_positions_is_cut_on_demand(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Most of the positions are kept for an output that ends by itself after some tokens.
    file = tmp_path / "long.txt"
    file.write_text("The cat is called Mio. " + "word " * 500)
    asked = "--document", str(file), "--question", "What is the cat called?", "--max-new-tokens", "8000"
    told = run("generate", *asked, "--truncate", "--json", "--budget", "300")
    assert told.exit_code == 0
    figures = json.loads(told.stdout)
    assert "Mio" in figures["text"]
    assert figures["prompt_tokens"] <= 192 and figures["truncated_tokens"] > 300
    assert f"{figures['truncated_tokens']} tokens were cut" in told.stderr


def test_too_little_host_memory_is_said_before_the_prompt(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("louiskv.plan.available_host_memory", lambda: 2**20)
    result = run("generate", QUESTION, "--json")
    assert result.exit_code == 1 and not result.stdout
    assert "of host memory" in result.stderr and "1.0 MiB are available" in result.stderr


def test_too_little_device_memory_is_an_error_of_ours(
    run: Run, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines.")

    monkeypatch.setattr(loaded[0], "generate", generate)
    result = run("generate", QUESTION)
    assert result.exit_code == 1 and result.stdout == "\n"
    assert result.stderr.startswith("error: CUDA out of memory. Tried to allocate 2 GiB. Lower --budget")


@pytest.mark.parametrize("name", ["/nope", "nope.gguf", "no/such-model"])
def test_an_unknown_model_is_refused(run: Run, name: str) -> None:
    result = run("generate", QUESTION, "--model", name)
    assert result.exit_code == 1 and not result.stdout
    assert result.stderr.startswith("error: ") and name in result.stderr


class Impatient(io.StringIO):
    """A terminal whose user presses Ctrl-C on seeing a certain word."""

    def write(self, text: str) -> int:
        if "capital" in text:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_ctrl_c_keeps_what_was_generated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Impatient()
    monkeypatch.setattr(generate, "_write", screen.write)
    result = run("generate", QUESTION)
    assert result.exit_code == 130
    # transformers asks for the next stop once a token; which of two neighbours it is depends on its version.
    assert screen.getvalue() in ("The capital", "The capital of")
    assert "LouisKV(" in result.stderr and "a token" in result.stderr
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_prompt_reports_how_far_it_came(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_in_layer(monkeypatch, 7)
    result = run("generate", QUESTION, "--json")
    assert result.exit_code == 130
    told = json.loads(result.stdout)
    assert told["interrupted"] and told["text"] == "" and told["seconds"]["first_token"] is None
    assert len(told["report"]["layers"]) == 8
    result = run("generate", QUESTION)
    assert result.exit_code == 130 and "no token was generated" in result.stderr


def test_ctrl_c_in_json_gives_the_part_that_there_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "_ignore", Impatient().write)
    result = run("generate", QUESTION, "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 130
    assert told["interrupted"] and ANSWER.startswith(told["text"]) and 2 <= told["output_tokens"] <= 3


def test_without_a_compiler_it_says_so_before_the_answer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_FOUND", {})
    monkeypatch.setattr(native._Loaded, "tried", False)
    monkeypatch.setattr(native._Loaded, "reason", None)
    monkeypatch.setenv("CXX", "stone")
    answered = run("generate", QUESTION, "--max-new-tokens", "2")
    assert "louiskv runs in plain torch, not in C++: CXX=stone is not there" in answered.stderr
