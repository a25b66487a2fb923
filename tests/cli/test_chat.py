"""`louiskv chat` and the conversation behind it, with the real default model."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from louiskv import LouisKV, SettingsError
from louiskv.cli.answering import speaker
from louiskv.cli.conversation import Conversation
from louiskv.cli.options import Sampling
from tests.cli.conftest import Loaded, Run, interrupt_in_layer

QUESTIONS = ["What is the capital of France?", "And the capital of Spain?", "Thank you."]
# Holds everything, so that how a token came into the cache makes no difference.
EVERYTHING = LouisKV(budget=2000)


def answers(loaded: Loaded, questions: list[str], max_new_tokens: int, document: str | None = None) -> list[str]:
    """The answers of the same talk with all of it rendered by the chat template, each turn on a fresh cache."""
    model, tokenizer = loaded
    messages: list[dict[str, str]] = []
    for place, question in enumerate(questions):
        content = f"{document}\n\n{question}" if document and place == 0 else question
        messages.append({"role": "user", "content": content})
        rendered: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        out = model.generate(**rendered, max_new_tokens=max_new_tokens, do_sample=False)  # type: ignore[operator]
        text = str(tokenizer.decode(out[0, rendered["input_ids"].shape[1] :], skip_special_tokens=True))
        messages.append({"role": "assistant", "content": text})
    return [message["content"] for message in messages if message["role"] == "assistant"]


# The first limit cuts answers short, with the second they end by themselves.
@pytest.mark.parametrize("max_new_tokens", [5, 24])
def test_three_turns_are_what_they_are_on_a_fresh_cache(loaded: Loaded, run: Run, max_new_tokens: int) -> None:
    flags = "--budget", "2000", "--max-new-tokens", str(max_new_tokens)
    result = run("chat", *flags, stdin="\n".join(QUESTIONS))
    assert result.exit_code == 0
    expected = answers(loaded, QUESTIONS, max_new_tokens)
    assert result.stdout == "".join(f"{text}\n" for text in expected)
    assert result.stderr.count("to the first token") == 3


def test_only_new_tokens_are_fed(loaded: Loaded) -> None:
    with speaker(*loaded, EVERYTHING, None, Console(stderr=True)) as talk:
        conversation = Conversation(talk)
        fed = 0
        for question in QUESTIONS:
            before = len(conversation.ids)
            answer = conversation.ask(question, Sampling(max_new_tokens=6), lambda text: None)
            fed += answer.prompt_tokens - before
            # The last token waits for the next turn, unless it ended the answer and is given by the template.
            assert len(conversation.ids) - talk.kv_cache.get_seq_length() in (0, 1)
            talk.kv_cache.check_integrity()
        report = talk.kv_cache.report()
        assert report.prompt_tokens + report.output_tokens == talk.kv_cache.get_seq_length()
        assert report.prompt_tokens <= fed + len(QUESTIONS)


@pytest.mark.parametrize("max_new_tokens", [3, 12])
def test_the_talk_is_what_the_template_makes_of_it(loaded: Loaded, max_new_tokens: int) -> None:
    _, tokenizer = loaded
    messages: list[dict[str, str]] = []
    with speaker(*loaded, EVERYTHING, None, Console(stderr=True)) as talk:
        conversation = Conversation(talk)
        for question in QUESTIONS[:2]:
            answer = conversation.ask(question, Sampling(max_new_tokens=max_new_tokens), lambda text: None)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}]
            rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
            assert f"{tokenizer.decode(conversation.ids)}<|im_end|>\n" == rendered


def test_the_document_stands_before_the_first_question_also_after_reset(
    loaded: Loaded, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Zurla has a cat by the name of Mio.")
    asked = ["What is the cat's name?", "Are you sure?"]
    script = "\n".join([*asked, "/reset", *asked])
    result = run("chat", "--document", str(file), "--budget", "2000", "--max-new-tokens", "12", stdin=script)
    expected = "".join(f"{text}\n" for text in answers(loaded, asked, 12, file.read_text()))
    assert "Mio" in expected
    assert result.stdout == expected * 2 and "Forgotten." in result.stderr


def test_commands(run: Run) -> None:
    script = "/report\n\nHello\n/report\n/nope\n/quit\nHello again\n"
    result = run("chat", "--max-new-tokens", "4", stdin=script)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert "0 prompt + 0 output" in result.stderr and "+ 3 output" in result.stderr
    assert "There is no command /nope: /report shows" in result.stderr


def test_raw_turns_follow_each_other(loaded: Loaded) -> None:
    with speaker(*loaded, EVERYTHING, None, Console(stderr=True)) as talk:
        conversation = Conversation(talk, raw=True)
        conversation.ask("One, two, three,", Sampling(max_new_tokens=3), lambda text: None)
        conversation.ask("A, B, C,", Sampling(max_new_tokens=3), lambda text: None)
        text = str(loaded[1].decode(conversation.ids))
    assert text.startswith("One, two, three, four,") and "\nA, B, C,\n" in text and "<|im_start|>" not in text


@pytest.mark.parametrize("turns_before", [0, 1])
def test_a_question_stopped_before_its_answer_is_as_if_never_asked(
    loaded: Loaded, turns_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(max_new_tokens=8)
    with speaker(*loaded, EVERYTHING, None, Console(stderr=True)) as talk:
        conversation = Conversation(talk)
        said = [conversation.ask(text, sampling, lambda _: None).text for text in QUESTIONS[:turns_before]]
        with monkeypatch.context() as patched:
            interrupt_in_layer(patched, 11)
            stopped = conversation.ask("Is this a question at all?", sampling, lambda text: None)
        assert stopped.interrupted and not stopped.tokens
        assert {layer.get_seq_length() for layer in talk.kv_cache.managed} == {talk.kv_cache.get_seq_length()}
        assert (talk.kv_cache.get_seq_length() > 0) == (turns_before > 0)
        talk.kv_cache.check_integrity()
        said += [conversation.ask(text, sampling, lambda _: None).text for text in QUESTIONS[turns_before:]]
    assert said == answers(loaded, QUESTIONS, 8)


def test_an_answer_stopped_by_ctrl_c_stays_in_the_talk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_in_layer(monkeypatch, 3)
    result = run("chat", "--max-new-tokens", "4", stdin="Hello\n/quit\n")
    assert result.exit_code == 0
    assert "no token was generated" in result.stderr and "the question is forgotten" in result.stderr


def test_a_question_too_long_for_the_positions_leaves_the_talk_as_it_was(loaded: Loaded) -> None:
    with speaker(*loaded, EVERYTHING, None, Console(stderr=True)) as talk:
        conversation = Conversation(talk)
        conversation.ask("Hello", Sampling(max_new_tokens=4), lambda text: None)
        held, ids = talk.kv_cache.get_seq_length(), list(conversation.ids)
        with pytest.raises(SettingsError, match="more than the 92 positions.*/reset"):
            conversation.ask("word " * 100, Sampling(max_new_tokens=8100), lambda text: None)
        assert talk.kv_cache.get_seq_length() == held and conversation.ids == ids


def test_errors_end_a_script(run: Run) -> None:
    result = run("chat", "--max-new-tokens", "8100", stdin="word " * 200 + "\nHello\n")
    assert result.exit_code == 2 and not result.stdout.strip()
    assert result.stderr.startswith("error: The prompt has")
