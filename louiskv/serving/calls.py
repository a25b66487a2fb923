"""A request to an app in the same process, without a socket between them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Scope

JSON = (b"content-type", b"application/json")


@dataclass(frozen=True)
class Call:
    """What is asked of an app, in plain values that another machine can be sent.

    Attributes:
        path: Where.
        body: What is sent there.
        method: Of HTTP.
        headers: Names in small letters, and values.
    """

    path: str
    body: bytes = b""
    method: str = "POST"
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)

    @property
    def scope(self) -> Scope:
        """As ASGI has it."""
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": list(self.headers),
            "client": None,
            "server": None,
        }


async def messages_of(app: ASGIApp, call: Call) -> AsyncGenerator[Message, None]:
    """What the app sends, as it comes; who leaves early is a client that has gone away, and is waited for."""
    come: asyncio.Queue[Message | None] = asyncio.Queue()
    gone, sent = asyncio.Event(), False

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": call.body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        come.put_nowait(message)

    async def answer() -> None:
        try:
            await app(call.scope, receive, send)
        finally:
            come.put_nowait(None)

    answering = asyncio.create_task(answer())
    try:
        while (message := await come.get()) is not None:
            yield message
    finally:
        gone.set()
        await answering


async def whole(app: ASGIApp, call: Call) -> tuple[int, bytes]:
    """Status and body of an answer, when all of it has come."""
    status, body = 0, bytearray()
    async with aclosing(messages_of(app, call)) as messages:
        async for message in messages:
            status = message.get("status", status)
            body += message.get("body", b"")
    return status, bytes(body)


def header(message: Message, name: bytes) -> bytes:
    """A header of the message that begins a response; empty without it."""
    return next((value for each, value in message.get("headers", ()) if each.lower() == name), b"")
