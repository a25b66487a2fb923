"""A response that a replica gives and the front passes on, with an end that can be told from a loss."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from louiskv.serving.calls import header
from louiskv.serving.errors import ApiError
from louiskv.serving.reply import send_error, unless_gone


class Passed(Response):
    """Sends messages as they come: what goes wrong before the first part has its status, later on it is an event."""

    def __init__(self, messages: AsyncGenerator[Message, None]) -> None:
        super().__init__()
        self._messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, until all is sent or the client is gone."""
        await unless_gone(self._send(send), receive, lambda: None)

    async def _send(self, send: Send) -> None:
        begun: Message | None = None
        started = False
        try:
            async with aclosing(self._messages) as messages:
                async for message in messages:
                    if begun is None:
                        begun = message
                        continue
                    if not started:
                        started = True
                        await send(begun)
                    await send(message)
        except ApiError as error:
            if begun is None or not started:
                await send_error(error, send)
            elif header(begun, b"content-type").startswith(b"text/event-stream"):
                events = f"data: {json.dumps(error.body)}\n\ndata: [DONE]\n\n"
                await send({"type": "http.response.body", "body": events.encode()})
            else:
                raise
