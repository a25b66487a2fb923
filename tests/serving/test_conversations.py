"""How conversations are known again, by what their clients send."""

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message

from louiskv.serving.calls import Call, messages_of
from louiskv.serving.conversations import Heard, Places, following, keys_of
from tests.serving.serving import MODEL, served

HELLO = {"role": "user", "content": "Hello"}


def body(*messages: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": messages}).encode()


def test_a_client_that_goes_on_has_the_key_under_which_its_answer_was_remembered() -> None:
    asked, before = keys_of(body(HELLO))
    assert before == []
    key = following(asked, "assistant", "Good day")
    for said in ("Good day", "  Good day\n"):
        answer = {"role": "assistant", "content": said}
        _, keys = keys_of(body(HELLO, answer, {"role": "user", "content": "And you?"}))
        assert keys == [key]
    parts = [{"type": "text", "text": "Hell"}, {"type": "text", "text": "o"}]
    _, keys = keys_of(body({"role": "user", "content": parts}, {"role": "assistant", "content": "Good day"}))
    assert keys == [key]


def test_another_history_has_another_key() -> None:
    answer, more = {"role": "assistant", "content": "Good day"}, {"role": "user", "content": "And you?"}
    _, keys = keys_of(body(HELLO, answer, more, answer, more))
    assert len(set(keys)) == 2
    _, other = keys_of(body({"role": "system", "content": "Be kind"}, HELLO, answer, more))
    assert not set(keys) & set(other)
    _, changed = keys_of(body(HELLO, {"role": "assistant", "content": "Good night"}, more))
    assert not set(keys) & set(changed)
    # The newest answer stands first, the one before it is that of the earlier turn.
    assert keys_of(body(HELLO, answer, more))[1] == keys[1:]


@pytest.mark.parametrize("raw", [b"", b"{", b"3", b"{}", b'{"messages": 3}', b'{"messages": [{"role": "tool"}]}'])
def test_what_is_wrong_has_no_key(raw: bytes) -> None:
    assert keys_of(raw) == ("", [])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_what_an_answer_says_is_heard_as_the_client_hears_it(stream: bool, n: int) -> None:
    with served() as server:
        asked: Any = {"model": MODEL, "messages": [HELLO], "max_tokens": 12, "seed": 3, "n": n}
        made = server.client().chat.completions.create(**asked)
        heard = Heard()
        for message in asyncio.run(_sent(server.app, Call("/v1/chat/completions", _raw({**asked, "stream": stream})))):
            heard.hear(message)
        assert heard.texts == {choice.index: choice.message.content for choice in made.choices}
        wrong = Heard()
        for message in asyncio.run(_sent(server.app, Call("/v1/chat/completions", b"{"))):
            wrong.hear(message)
        assert wrong.texts == {}


async def _sent(app: Any, call: Call) -> list[Message]:
    return [message async for message in messages_of(app, call)]


def _raw(asked: dict[str, Any]) -> bytes:
    return json.dumps(asked).encode()


def test_places_forget_the_oldest() -> None:
    places = Places(limit=3)
    places.keep(["a", "b"], "one")
    places.keep(["c", "a"], "two")
    places.keep(["d"], "two")
    assert places.find(["b"]) is None, "it was the oldest"
    assert places.find(["x", "a", "c"]) == "two"
    assert places.newest(2) == ["a", "d"]
