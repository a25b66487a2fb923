"""How a conversation is known again without the client's help: by all that was said in it so far.

The key of a place in a conversation is a digest of every role and text up to there. A client that goes on from an
answer sends all of them back, so the key behind its last answer is the one under which that answer was remembered.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from starlette.types import Message

from louiskv.serving.calls import header
from louiskv.serving.errors import ApiError
from louiskv.serving.messages import read_messages

KEY_SIZE = 12
MAX_KEYS = 100_000


@dataclass(frozen=True)
class Course:
    """What is known of where a request should go.

    Attributes:
        keys: Of its conversation, the newest first.
        place: The replica that has answered it before.
        tried: Replicas that had no room for it.
    """

    keys: tuple[str, ...] = ()
    place: str | None = None
    tried: frozenset[str] = frozenset()


def following(key: str, role: str, text: str) -> str:
    """The key one message later; what stands around a text is not looked at, for many clients strip it."""
    told = json.dumps([key, role, text.strip()]).encode()
    return hashlib.blake2b(told, digest_size=KEY_SIZE).hexdigest()


def keys_of(body: bytes) -> tuple[str, list[str]]:
    """The key behind the last message of a chat, and those behind its answers, the newest first; "" without messages.

    What is wrong with a body is not said here, but by who answers it.
    """
    try:
        given = from_json(body, allow_inf_nan=False)
        messages = read_messages(given["messages"]) if isinstance(given, dict) else []
    except (ValueError, KeyError, TypeError, AttributeError, ApiError):
        return "", []
    key, answers = "", list[str]()
    for message in messages:
        key = following(key, message["role"], message["content"])
        if message["role"] == "assistant":
            answers.append(key)
    return key, answers[::-1]


class Heard:
    """The texts of a chat's answers, read off the messages by which they are sent.

    Attributes:
        texts: By the number of the answer.
    """

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self._body, self._streamed, self._good = bytearray(), False, False

    def hear(self, message: Message) -> None:
        """Note what a message says."""
        if message["type"] == "http.response.start":
            self._good = message["status"] == 200
            self._streamed = header(message, b"content-type").startswith(b"text/event-stream")
        elif self._good and self._streamed:
            # One event is one message.
            data = message.get("body", b"").removeprefix(b"data: ")
            if data.startswith(b"{"):
                self._note(json.loads(data), "delta")
        elif self._good:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                self._note(json.loads(self._body), "message")

    def _note(self, told: dict[str, Any], kind: str) -> None:
        for choice in told.get("choices", ()):
            text = choice.get(kind, {}).get("content") or ""
            self.texts[choice["index"]] = self.texts.get(choice["index"], "") + text


class Places:
    """Where conversations are, the newest ones by their keys."""

    def __init__(self, limit: int = MAX_KEYS) -> None:
        self.limit = limit
        self._places: OrderedDict[str, str] = OrderedDict()

    def keep(self, keys: Iterable[str], place: str) -> None:
        """Remember where conversations are."""
        for key in keys:
            self._places.pop(key, None)
            self._places[key] = place
        while len(self._places) > self.limit:
            self._places.popitem(last=False)

    def find(self, keys: Iterable[str]) -> str | None:
        """Where the first one is that is known."""
        return next((self._places[key] for key in keys if key in self._places), None)

    def first(self, keys: Sequence[str]) -> int | None:
        """The place of the first key that is known."""
        return next((place for place, key in enumerate(keys) if key in self._places), None)

    def newest(self, count: int) -> list[str]:
        """Keys of the newest ones."""
        return list(self._places)[-count:]
