"""What stands before every endpoint: whether the server takes requests, the key, and that no error gets out raw."""

import hmac
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from louiskv.serving.errors import ApiError, internal, log
from louiskv.serving.life import Life

# What needs no key, and is answered while the server stops.
OPEN = frozenset({"/", "/health", "/ready"})


class Guard:
    """Lets requests through to an app, or answers for it."""

    def __init__(
        self, app: ASGIApp, life: Life, count: Callable[[str, str], None], api_key: str | None, paths: frozenset[str]
    ) -> None:
        """Stand before an app.

        Args:
            app: Answers.
            life: Says when no more requests are taken.
            count: Is told path and status of every request.
            api_key: What clients must give; None for nothing.
            paths: Those that the app knows.
        """
        self.app, self.life, self.paths, self._count = app, life, paths, count
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, sending)
        except ApiError as error:
            await error.response(scope, receive, sending)
        except Exception:
            log.exception("An error while answering %s %s", scope["method"], scope["path"])
            if not status:
                await internal().response(scope, receive, sending)
        finally:
            # 499 stands for a client that was gone before there was anything to send.
            self._count(self._known(scope["path"]), str(status or 499))

    def _check(self, scope: Scope) -> None:
        if scope["path"] in OPEN:
            return
        if self._key is not None:
            given = Request(scope).headers.get("authorization", "")
            kind, _, key = given.partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key):
                missing = "Give the key of this server: Authorization: Bearer KEY."
                message = "This is not the key of this server." if given else missing
                headers = {"WWW-Authenticate": "Bearer"}
                raise ApiError(401, message, code="invalid_api_key", headers=headers)
        if scope["method"] == "POST":
            self.life.check()

    def _known(self, path: str) -> str:
        """The path, or what stands for all that do not exist, so that nobody can make names without end."""
        answers = "/louiskv/v1/answers/"
        return answers + "{id}" if path.startswith(answers) else path if path in self.paths else "other"


def is_key(text: str) -> bool:
    """Whether a header can carry it as a key."""
    return bool(text) and text.isascii() and text.isprintable()
