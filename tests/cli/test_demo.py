"""`louiskv demo`, on a document that is short enough for a test."""

import json

import pytest

from louiskv.cli.demo import FACT, document, first_sentence
from tests.cli.conftest import Loaded, Run


def test_both_find_the_fact(run: Run) -> None:
    result = run("demo", "--context", "400", "--budget", "300")
    assert result.exit_code == 0
    assert result.stdout.count("48213") == 2 and "time to the first token" in result.stdout
    assert "Full()" in result.stderr and "LouisKV(budget=300" in result.stderr


def test_json(run: Run) -> None:
    result = run("demo", "--context", "300", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 0 and told["same"]
    assert list(told["runs"]) == ["full attention", "louiskv"]
    assert told["runs"]["louiskv"]["report"]["settings"]["budget"] == 512
    assert all("48213" in each["text"] for each in told["runs"].values())


def test_different_answers_fail(run: Run) -> None:
    starved = "--budget", "5", "--sink", "1", "--window", "2", "--dense-layers", "0"
    result = run("demo", "--context", "300", *starved, "--json")
    assert result.exit_code == 1
    assert not json.loads(result.stdout)["same"]
    assert "error: The answers differ: full attention says " in result.stderr


@pytest.mark.parametrize("context", ["0", "9000", "100000000"])
def test_impossible_contexts_are_refused(run: Run, context: str) -> None:
    result = run("demo", "--context", context)
    assert result.exit_code == 2 and not result.stdout


@pytest.mark.parametrize("num_tokens", [100, 1000, 6000])
def test_the_fact_stands_in_the_middle_of_as_many_tokens_as_asked_for(loaded: Loaded, num_tokens: int) -> None:
    _, tokenizer = loaded
    text = document(tokenizer, num_tokens)
    count = len(tokenizer(text)["input_ids"])
    assert num_tokens <= count <= num_tokens + 400
    before = len(tokenizer(text[: text.index(FACT)])["input_ids"])
    assert abs(before - count / 2) < 400


def test_answers_are_compared_by_their_first_sentence() -> None:
    assert first_sentence(" It is 4.5. And more.") == "It is 4.5."
    assert first_sentence("It is\nmore.") == "It is"
    assert first_sentence("") == ""
