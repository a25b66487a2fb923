"""Text from tokens as they come, against decoding them at once."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from louiskv.engine.text import Text
from louiskv.models import load_tokenizer

PROMPT = [504, 253]


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer()


def spoken(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], Text]:
    """The parts that are shown, until a stop text or the end."""
    text, parts = Text(tokenizer(), PROMPT, stop), []
    for token in ids:
        parts.append(text.push(token))
        if text.stopped:
            break
    parts.append(text.finish())
    return parts, text


@settings(deadline=None, max_examples=80)
@given(st.text(max_size=30))
def test_whole_characters_come_one_after_the_other(said: str) -> None:
    ids = tokenizer().encode(said, add_special_tokens=False)
    parts, _ = spoken(ids)
    assert "".join(parts) == tokenizer().decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_no_part_ends_within_a_character() -> None:
    ids = tokenizer().encode("Grüße 你好 🤗👍🏽!", add_special_tokens=False)
    parts, _ = spoken(ids)
    assert len(ids) > len([part for part in parts if part])
    assert all("\ufffd" not in part for part in parts)
    assert "".join(parts) == "Grüße 你好 🤗👍🏽!"


def test_bytes_that_are_no_character_are_shown_in_the_end() -> None:
    ids = tokenizer().encode("🤗", add_special_tokens=False)[:-1]
    parts, _ = spoken(ids)
    assert set("".join(parts)) == {"\ufffd"}


def test_what_never_becomes_a_character_is_shown_as_it_comes() -> None:
    """Otherwise each token would take longer than the one before."""
    part, *rest = tokenizer().encode("\U0001f917", add_special_tokens=False)
    ids = [*[part] * 200, *rest, *tokenizer().encode(" and", add_special_tokens=False)]
    text = Text(tokenizer(), PROMPT, ())
    parts = [text.push(token) for token in ids]
    assert len(text._ids[text._begun :]) < 40
    assert sum(map(bool, parts)) > 10
    shown = "".join(parts) + text.finish()
    assert shown == tokenizer().decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert shown.endswith("\ufffd\U0001f917 and")


@settings(deadline=None, max_examples=80)
@given(
    said=st.text("ab ", max_size=40),
    stop=st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_nothing_of_a_stop_text_is_ever_shown(said: str, stop: tuple[str, ...]) -> None:
    ids = tokenizer().encode(said, add_special_tokens=False)
    parts, text = spoken(ids, stop)
    places = [said.find(each) for each in stop if each in said]
    assert text.stopped == bool(places)
    shown = "".join(parts)
    assert said.startswith(shown)
    # Tokens may hold more than one stop text; the first of those that were seen together ends it.
    assert all(each not in shown for each in stop)
    if not places:
        assert shown == said


def test_what_may_become_a_stop_text_is_held_back() -> None:
    ids = [tokenizer().encode(each, add_special_tokens=False)[0] for each in ("x", "<", "/", "s", ">", "y")]
    text = Text(tokenizer(), PROMPT, ("</end>",))
    assert [text.push(token) for token in ids[:3]] == ["x", "", ""]
    assert text.push(ids[3]) == "</s"
    assert not text.stopped


@pytest.mark.parametrize("special", [0, 1, 2])
def test_special_tokens_have_no_text(special: int) -> None:
    parts, _ = spoken([special, *tokenizer().encode("and", add_special_tokens=False)])
    assert "".join(parts) == "and"
