"""What clients reach: an app that takes requests to the replicas, and knows no model.

What a replica answers is what a server of one process would send, and is passed on as it is. What concerns all of them
is asked of all: figures are summed up, metrics have a label, and the replica that knows a watched answer tells of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from louiskv.serving.app import for_origins, the_page
from louiskv.serving.bodies import body_of
from louiskv.serving.calls import Call
from louiskv.serving.door import Door
from louiskv.serving.errors import ApiError
from louiskv.serving.guard import Guard
from louiskv.serving.life import Life
from louiskv.serving.ray.passed import Passed
from louiskv.serving.ray.replicas import Replicas
from louiskv.serving.ray.sums import labelled, summed

FIGURES, ANSWERS, METRICS = "/louiskv/v1/figures", "/louiskv/v1/answers/{name}", "/metrics"
ASKED = ("/v1/chat/completions", "/v1/completions")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def make_front(
    replicas: Replicas,
    *,
    life: Life,
    max_body: int,
    count: Callable[[str, str], None],
    api_key: str | None = None,
    origins: Sequence[str] = (),
) -> ASGIApp:
    """Put replicas behind OpenAI's API.

    Args:
        replicas: Answer.
        life: Says when no more requests are taken.
        max_body: Bytes of a request's body.
        count: Is told path and status of every request.
        api_key: What clients must give; None for nothing.
        origins: Web pages that may ask from a browser, beside the server's own; "*" for all.
    """
    front = Front(replicas, life, max_body)
    routes = [
        Route("/", front.page),
        Route("/health", front.health),
        Route("/ready", front.ready),
        Route(FIGURES, front.figures),
        Route(ANSWERS, front.watched),
        Route(METRICS, front.metrics),
        *[Route(path, front.asked, methods=["POST"]) for path in ASKED],
    ]
    # What is none of these, a replica answers: the models, what there is, and that there is nothing else.
    app = Starlette(routes=[*routes, Route("/{path:path}", front.other, methods=METHODS)])
    app.add_exception_handler(ApiError, lambda _, error: error.response)
    app.add_exception_handler(HTTPException, front.wrong_way)
    guarded = for_origins(Guard(app, life, count, api_key, frozenset(route.path for route in routes)), origins)
    return _from_root(Door(guarded, keyless=api_key is None))


class Front:
    """The endpoints."""

    def __init__(self, replicas: Replicas, life: Life, max_body: int) -> None:
        self.replicas, self.life, self.max_body = replicas, life, max_body

    async def asked(self, request: Request) -> Response:
        """Pass a request on to a replica."""
        body = await body_of(request, self.max_body)
        return Passed(self.replicas.answer(Call(request.scope["path"], body)))

    async def other(self, request: Request) -> Response:
        """Let a replica say what there is."""
        return Passed(self.replicas.answer(Call(request.scope["path"], method=request.method)))

    async def page(self, _: Request) -> Response:
        """The page that shows what the cache does."""
        return the_page()

    async def health(self, _: Request) -> Response:
        """Whether the front is alive."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """Whether requests are taken: 503 if not."""
        if self.life.stopping:
            return JSONResponse({"status": "stopping"}, 503)
        told = await self.replicas.every("whole", Call("/ready", method="GET"))
        ready = any(status == 200 for _, status, _ in told)
        return JSONResponse({"status": "ready"}) if ready else JSONResponse({"status": "no replica"}, 503)

    async def figures(self, _: Request) -> Response:
        """The figures of all replicas together, and of each."""
        told = await self.replicas.all(Call(FIGURES, method="GET"), only_good=True)
        return JSONResponse(summed({name: body for name, _, body in told}))

    async def metrics(self, _: Request) -> Response:
        """The metrics of all replicas, each with its label."""
        told = await self.replicas.all(Call(METRICS, method="GET"), only_good=True)
        return Response(labelled({name: body for name, _, body in told}), media_type=CONTENT_TYPE_LATEST)

    async def watched(self, request: Request) -> Response:
        """What the replica that knows a watched answer tells of it."""
        told = await self.replicas.all(Call(request.scope["path"], method="GET"))
        _, status, body = min(told, key=lambda each: each[1])
        return Response(body, status, media_type="application/json")

    async def wrong_way(self, request: Request, _: Exception) -> Response:
        """405, as a replica says it."""
        return await self.other(request)


def _from_root(app: ASGIApp) -> ASGIApp:
    """An app that need not know behind which prefix it is."""

    async def rooted(scope: Scope, receive: Receive, send: Send) -> None:
        root: Any = scope.get("root_path", "")
        if scope["type"] == "http" and root:
            scope = {**scope, "path": scope["path"].removeprefix(root) or "/", "root_path": ""}
        await app(scope, receive, send)

    return rooted
