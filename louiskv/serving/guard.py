"""What stands before every endpoint: whether the server takes requests, the key, and that no error gets out raw."""

import hmac
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from louiskv.serving.errors import GONE, ApiError, internal, log
from louiskv.serving.life import Life
from louiskv.serving.metrics import Metrics

# What needs no key, and is answered while the server stops.
OPEN = frozenset({"/", "/health", "/ready"})

# Names that nobody can have in the DNS, and point at this machine.
LOCAL = (".localhost", ".internal")


def is_local(host: str) -> bool:
    """Whether a Host header names an address, or a name that no web page can come from.

    A page of somebody else's name can have that name point at this machine, and then ask as if it were its own server
    (DNS rebinding). None at all is no browser's.
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.lower().rstrip(".")
    if not name or f".{name}".endswith(LOCAL):
        return True
    try:
        ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


class Guard:
    """Lets requests through to an app, or answers for it."""

    def __init__(
        self, app: ASGIApp, life: Life, metrics: Metrics, api_key: str | None, paths: frozenset[str], local: bool
    ) -> None:
        self.app, self.life, self.metrics, self.paths, self.local = app, life, metrics, paths, local
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
            self.metrics.requests.labels(self._known(scope["path"]), str(status or GONE)).inc()

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self.local and not is_local(headers.get("host", "")):
            message = (
                "Without a key this server answers to this machine's own names only, such as localhost. Start it with "
                "--api-key, or let what stands before it send Host: localhost."
            )
            raise ApiError(403, message, code="host_not_allowed")
        if scope["path"] in OPEN:
            return
        if self._key is not None:
            given = headers.get("authorization", "")
            kind, _, key = given.partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key):
                missing = "Give the key of this server: Authorization: Bearer KEY."
                message = "This is not the key of this server." if given else missing
                asked_for = {"WWW-Authenticate": "Bearer"}
                raise ApiError(401, message, code="invalid_api_key", headers=asked_for)
        if scope["method"] == "POST":
            self.life.check()

    def _known(self, path: str) -> str:
        """The path, or what stands for all that do not exist, so that nobody can make names without end."""
        answers = "/louiskv/v1/answers/"
        return answers + "{id}" if path.startswith(answers) else path if path in self.paths else "other"
