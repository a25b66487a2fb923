"""Responses that end what they are for when the client goes away: whole, and as server-sent events."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from louiskv.engine import Piece
from louiskv.serving.asked import Asked
from louiskv.serving.errors import ApiError
from louiskv.serving.shapes import Shape

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Reply(Response, ABC):
    """Sends the answers to a request, and cancels them when nobody listens any more."""

    def __init__(self, asked: Asked, shape: Shape, done: Callable[[], None]) -> None:
        super().__init__()
        self.asked, self.shape, self._done = asked, shape, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, until all is sent or the client is gone."""
        try:
            await unless_gone(self._send(send), receive, self.asked.cancel)
        finally:
            self._done()

    @abstractmethod
    async def _send(self, send: Send) -> None:
        """Send all."""


class Whole(Reply):
    """One JSON object when all is said."""

    async def _send(self, send: Send) -> None:
        try:
            body = self.shape.whole(await self.asked.all()).model_dump_json(exclude_unset=True).encode()
        except ApiError as error:
            await send_error(error, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Events(Reply):
    """One event for each chunk, as it comes; errors before the first one have their status, later ones are events."""

    def __init__(
        self, asked: Asked, shape: Shape, done: Callable[[], None], *, include_usage: bool, watched: bool
    ) -> None:
        super().__init__(asked, shape, done)
        self._include_usage, self._watched, self._started = include_usage, watched, False

    async def _send(self, send: Send) -> None:
        try:
            async with aclosing(self.asked.pieces()) as pieces:
                async for index, piece in pieces:
                    await self._begin(send)
                    for chunk in self._chunks(index, piece):
                        await self._event(send, self._dumped(chunk))
            if self._include_usage:
                counted = self.shape.counted(self.asked.said).model_dump_json(exclude_unset=True)
                await self._event(send, counted)
        except ApiError as error:
            if not self._started:
                await send_error(error, send)
                return
            await self._event(send, json.dumps(error.body))
        await self._event(send, "[DONE]", more=False)

    def _chunks(self, index: int, piece: Piece) -> list[BaseModel]:
        said, chunks = self.asked.said[index], list[BaseModel | None]()
        if not said.token_ids:
            chunks.append(self.shape.opening(index))
        more: dict[str, Any] = {"louiskv": {"retrieved": round(piece.fired, 4)}} if self._watched else {}
        if piece.text or piece.logprobs or (more and piece.token_ids):
            chunks.append(self.shape.chunk(index, said, piece.text, piece.logprobs, **more))
        if piece.finish_reason is not None:
            chunks.append(self.shape.closing(index, piece.finish_reason))
        return [chunk for chunk in chunks if chunk is not None]

    def _dumped(self, chunk: BaseModel) -> str:
        text = chunk.model_dump_json(exclude_unset=True)
        # Where the last chunk brings the usage, the others say that they do not.
        return f'{text[:-1]},"usage":null}}' if self._include_usage else text

    async def _begin(self, send: Send) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": EVENTS})

    async def _event(self, send: Send, data: str, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": more})


async def unless_gone(sending: Coroutine[Any, Any, None], receive: Receive, leave: Callable[[], None]) -> None:
    """Send to a client, but no longer than it is there.

    Args:
        sending: Sends all.
        receive: Tells when the client goes away.
        leave: Called when all is sent or the client is gone.
    """
    at_work, gone = asyncio.create_task(sending), asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({at_work, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leave()
        gone.cancel()
        if not at_work.done():
            at_work.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(at_work, gone, return_exceptions=True)
    if not at_work.cancelled() and (error := at_work.exception()) is not None:
        raise error


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_error(error: ApiError, send: Send) -> None:
    """Send an error as a whole response."""
    response = error.response
    await send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})
