"""Chats of several turns: what was generated is gone on from, by whatever template."""

from itertools import pairwise
from typing import Any

import pytest

from louiskv import LouisKV
from louiskv.serving.prompts import Prompts
from louiskv.serving.transcripts import Transcripts, Turn
from tests.cli.conftest import Loaded, loaded  # noqa: F401
from tests.serving.serving import CHATML, MODEL, served, tokenizer

TEMPLATES = {
    "chatml": CHATML,
    # As Llama 3's: text is stripped, and there is a token that begins it all.
    "stripped": (
        "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n\n"
        "{{ message['content'] | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
    ),
    # As Mistral's: no tokens but spaces around what is said, and an end token behind it.
    "spaced": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
        " {{ message['content'] | trim }}{{ eos_token }}{% else %}[INST] {{ message['content'] }} [/INST]{% endif %}"
        "{% endfor %}"
    ),
    # As Gemma's: another name for who answers.
    "renamed": (
        "{{ bos_token }}{% for message in messages %}<|im_start|>"
        "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ message['content'] | trim }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
    ),
}
WHOLE = LouisKV(budget=1500, sink=3, window=10, unit_size=4, max_segment=6, dense_layers=0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_three_turns_of_a_chat_take_in_only_what_is_new(name: str, stream: bool) -> None:
    with served(WHOLE, words=tokenizer(TEMPLATES[name]), kept_memory=2**30) as server:
        client, messages = server.client(), list[dict[str, str]]()
        held = 0
        for turn, seed in enumerate((1, 2, 3)):
            messages.append({"role": "user", "content": f"The other one, number {turn}"})
            before = server.engine.figures().prompt_tokens
            asked: Any = {"model": MODEL, "messages": messages, "max_tokens": 20, "seed": seed}
            asked |= {"extra_body": {"ignore_eos": True}}
            if stream:
                asked |= {"stream": True, "stream_options": {"include_usage": True}}
                parts = list(client.chat.completions.create(**asked))
                text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
                usage = parts[-1].usage
            else:
                made = client.chat.completions.create(**asked)
                text, usage = made.choices[0].message.content or "", made.usage
            assert usage is not None
            assert usage.prompt_tokens_details is not None
            assert usage.prompt_tokens_details.cached_tokens == held
            assert server.engine.figures().prompt_tokens - before == usage.prompt_tokens - held
            # The last token of an answer was not fed before.
            held = usage.prompt_tokens + 20 - 1
            messages.append({"role": "assistant", "content": text})


def test_three_turns_with_the_real_model(loaded: Loaded) -> None:  # noqa: F811
    model, words = loaded
    with served(LouisKV(budget=2000), model=model, words=words, kept_memory=2**30, prefill_chunk=512) as server:
        client, messages, cached = server.client(), list[dict[str, str]](), []
        for question in ("What is the capital of France?", "And the capital of Spain?", "Thank you."):
            messages.append({"role": "user", "content": question})
            asked: Any = {"model": MODEL, "messages": messages, "max_tokens": 24, "temperature": 0}
            made = client.chat.completions.create(**asked)
            assert made.usage is not None
            assert made.usage.prompt_tokens_details is not None
            cached.append((made.usage.prompt_tokens_details.cached_tokens, made.usage.prompt_tokens))
            fresh = client.chat.completions.create(**asked, extra_body={"louiskv": {"kept": False}})
            assert fresh.choices[0].message.content == made.choices[0].message.content
            text = made.choices[0].message.content or ""
            assert made.choices[0].finish_reason == "stop"
            messages.append({"role": "assistant", "content": text})
            rendered = str(words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            ids = server.prompts.of_chat(messages).token_ids
            assert words.decode(list(ids)) == rendered
        assert cached[0][0] == 0
        for (_, before), (held, _) in pairwise(cached):
            # All of the last prompt, and of its answer all but the token that ended it.
            assert held > before
        assert "Paris" in messages[1]["content"]
        assert "Madrid" in messages[3]["content"]


def test_an_answer_is_told_from_one_that_was_changed() -> None:
    prompts = Prompts(tokenizer(), frozenset({2}))
    asked = [{"role": "user", "content": "Hello"}]
    prompt = prompts.of_chat(asked)
    # The same text in other tokens: each letter by itself, and a token that ended it.
    text = "the other"
    letters: list[Any] = [prompts.tokenizer.convert_tokens_to_ids(letter) for letter in text.replace(" ", "Ġ")]
    prompts.keep(prompt, text, [*letters, 2])
    own = [*prompt.token_ids, *letters]

    def ids(answer: str) -> list[int]:
        return list(prompts.of_chat([*asked, {"role": "assistant", "content": answer}, *asked]).token_ids)

    # Many clients and templates strip what was said.
    for same in (text, f"  {text}\n"):
        assert ids(same)[: len(own)] == own
    assert prompts.text(ids(text)) == prompts.text(prompts._ids(prompts._rendered(
        [*asked, {"role": "assistant", "content": text}, *asked])))  # fmt: skip
    changed = ids("the other one")
    assert changed[: len(own)] != own, "it was changed: its tokens are those of the text"
    assert changed == prompts._ids(prompts.text(changed))


def test_a_chat_of_its_own_is_made_of_its_text_whatever_was_said_before() -> None:
    """So that the same seed gives the same text on any server."""
    with served(WHOLE) as server:
        client, asked = server.client(), [{"role": "user", "content": "Hello"}]

        def ask(messages: Any, **own: Any) -> Any:
            extra = {"ignore_eos": True, "louiskv": own}
            return client.chat.completions.create(
                model=MODEL, messages=messages, max_tokens=40, seed=1, temperature=2, extra_body=extra
            )

        made = ask(asked)
        messages: Any = [*asked, {"role": "assistant", "content": made.choices[0].message.content}, *asked]
        fresh = len(server.prompts._ids(server.prompts._rendered(messages)))
        assert ask(messages, kept=False).usage.prompt_tokens == fresh
        assert ask(messages).usage.prompt_tokens == len(server.prompts.of_chat(messages).token_ids) != fresh


def test_a_stop_text_cuts_the_tokens_as_well() -> None:
    prompts = Prompts(tokenizer(), frozenset({2}))
    asked = [{"role": "user", "content": "Hello"}]
    prompt = prompts.of_chat(asked)
    ids = prompts._ids("here and there")
    prompts.keep(prompt, "here and t", ids)
    turn, rest = prompts.transcripts.find(
        prompts._rendered([*asked, {"role": "assistant", "content": "here and t"}]), ["here and t"]
    ) or (None, "")
    assert turn is not None
    # What was said ends within the token "th".
    assert (turn.answer, rest[0]) == ("here and ", "t")
    assert prompts.text(list(turn.token_ids)) == f"{prompt.text}here and "


def test_transcripts_are_forgotten_the_oldest_first() -> None:
    transcripts = Transcripts(limit=10)
    for place in range(4):
        transcripts.keep(Turn(f"prompt {place}:", "yes", "yes", [1, 2, 3, 4]))
    assert len(transcripts) == 2
    assert transcripts.find("prompt 1:yes!", ["yes"]) is None
    assert transcripts.find("prompt 3:yes!", ["no"]) is None
    found = transcripts.find("prompt 3:yes!", ["no", " yes"])
    assert found is not None
    assert (found[0].prompt, found[1]) == ("prompt 3:", "!")
    transcripts.keep(Turn("prompt 3:", "yes", "yes", [1, 2]))
    assert len(transcripts) == 2, "the same again takes its place"
    transcripts.keep(Turn("prompt 5:", " ", " ", [1]))
    assert len(transcripts) == 2, "an empty answer tells no turn from another"


def test_the_longest_turn_is_gone_on_from() -> None:
    transcripts = Transcripts()
    transcripts.keep(Turn("a:", "yes", "yes", [1, 2]))
    transcripts.keep(Turn("a:yes b:", " no", " no", [1, 2, 3, 4]))
    found = transcripts.find("a:yes b:no c:", ["yes", "no"])
    assert found is not None
    assert (list(found[0].token_ids), found[1]) == ([1, 2, 3, 4], " c:")
