"""What a request must do to be looked at: be meant for this server, and bring its body."""

import asyncio
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from louiskv.serving.errors import ApiError

# Names that nobody can have in the DNS, and point at this machine.
LOCAL = (".localhost", ".internal")
BODY_SECONDS = 60.0


class Door:
    """Lets requests through to an app that answers an `ApiError` of what it receives."""

    def __init__(self, app: ASGIApp, keyless: bool, body_seconds: float = BODY_SECONDS) -> None:
        """Stand before an app.

        Args:
            app: Answers.
            keyless: Whether it asks for no key. Then what comes by an address of this machine alone for a foreign host
                comes from a web page: its name was made to point here, so that it may ask as if it were its own server
                (DNS rebinding).
            body_seconds: In which a body must come.
        """
        self.app, self.keyless, self.body_seconds = app, keyless, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif self.keyless and _is_within(scope) and not is_local(Headers(scope=scope).get("host", "")):
            await _foreign().response(scope, receive, send)
        else:
            await self.app(scope, self._in_time(receive), send)

    def _in_time(self, receive: Receive) -> Receive:
        """Receive as before, but the body within its time."""
        until, whole = asyncio.get_running_loop().time() + self.body_seconds, False

        async def receive_in_time() -> Message:
            nonlocal whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError as error:
                raise _late(self.body_seconds) from error
            whole = not message.get("more_body", False)
            return message

        return receive_in_time


def _is_within(scope: Scope) -> bool:
    """Whether a request has come by an address that only this machine can reach."""
    try:
        return ip_address((scope.get("server") or ("",))[0]).is_loopback
    except ValueError:
        return False


def is_local(host: str) -> bool:
    """Whether a Host header names an address, or a name that no web page can come from; none is no browser's."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.lower().rstrip(".")
    if not name or f".{name}".endswith(LOCAL):
        return True
    try:
        ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _foreign() -> ApiError:
    message = (
        "Without a key this server answers to this machine's own names only, such as localhost. Start it with "
        "--api-key, or let what stands before it send Host: localhost."
    )
    return ApiError(403, message, code="host_not_allowed")


def _late(seconds: float) -> ApiError:
    headers = {"Connection": "close"}
    return ApiError(408, f"The body has not come within {seconds:g} seconds.", code="request_timeout", headers=headers)
