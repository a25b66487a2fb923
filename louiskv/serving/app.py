"""The endpoints, as an ASGI app."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp

from louiskv import __version__
from louiskv.engine import Engine
from louiskv.methods import Method
from louiskv.serving.bodies import body_of
from louiskv.serving.desk import Desk, Limits
from louiskv.serving.errors import ApiError, internal
from louiskv.serving.fields import ChatBody, CompletionBody, read
from louiskv.serving.guard import Guard
from louiskv.serving.life import Life
from louiskv.serving.metrics import Metrics
from louiskv.serving.prompts import Prompts


def make_app(
    engine: Engine,
    prompts: Prompts,
    model: str,
    method: Method,
    *,
    life: Life,
    limits: Limits,
    api_key: str | None = None,
    origins: Sequence[str] = (),
) -> ASGIApp:
    """Put an engine behind OpenAI's API.

    Args:
        engine: Answers.
        prompts: Its tokenizer.
        model: The name by which clients know the model.
        method: What the engine runs.
        life: Says when no more requests are taken.
        limits: What one request may be.
        api_key: What clients must give; None for nothing.
        origins: Web pages that may ask from a browser, beside the server's own; "*" for all.
    """
    metrics = Metrics(engine)
    desk = Desk(engine, prompts, metrics, life, limits, model, method)
    api = FastAPI(title="louiskv", version=__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    _openai(api, desk)
    _own(api, desk)
    _watching(api, desk)
    api.add_exception_handler(HTTPException, _no_such_place)
    api.add_exception_handler(ApiError, lambda _, error: error.response)
    # It went away while its body came: as Guard counts it.
    api.add_exception_handler(ClientDisconnect, lambda *_: Response(status_code=499))
    api.add_exception_handler(Exception, lambda *_: internal().response)
    paths = frozenset(route.path for route in api.routes)  # type: ignore[attr-defined]
    return for_origins(Guard(api, life, metrics.count, api_key, paths), origins)


def for_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Let other web pages ask."""
    return CORSMiddleware(app, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]) if origins else app


def _openai(api: FastAPI, desk: Desk) -> None:
    """OpenAI's endpoints."""

    @api.post("/v1/chat/completions", openapi_extra=_body_of(ChatBody), tags=["OpenAI"])
    async def chat(request: Request) -> Response:
        """Answer a chat, whole or as server-sent events."""
        return await desk.chat(read(await body_of(request, desk.limits.max_body), ChatBody))

    @api.post("/v1/completions", openapi_extra=_body_of(CompletionBody), tags=["OpenAI"])
    async def completion(request: Request) -> Response:
        """Go on from a text, or several."""
        return await desk.completion(read(await body_of(request, desk.limits.max_body), CompletionBody))

    @api.get("/v1/models", tags=["OpenAI"])
    async def models() -> dict[str, Any]:
        """The one model that there is."""
        return {"object": "list", "data": [_model(desk.model)]}

    @api.get("/v1/models/{name:path}", tags=["OpenAI"])
    async def model(name: str) -> dict[str, Any]:
        """The model, by its name."""
        if name != desk.model:
            message = f"The model '{name[:100]}' does not exist: this server has '{desk.model}'."
            raise ApiError(404, message, param="model", code="model_not_found")
        return _model(name)


def _own(api: FastAPI, desk: Desk) -> None:
    """Endpoints of this server alone."""

    @api.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return the_page()

    @api.get("/louiskv/v1/figures", tags=["louiskv"])
    async def figures() -> dict[str, Any]:
        """What the engine is doing now, what it runs, and its limits."""
        told = await run_in_threadpool(desk.engine.figures)
        settings = {"name": type(desk.method).__name__, "settings": desk.method.values()}
        limits = {"max_length": desk.engine.max_length, "max_prompt": desk.limits.max_prompt}
        return {"model": desk.model, "method": settings, **limits, "figures": asdict(told)}

    @api.get("/louiskv/v1/answers/{name}", tags=["louiskv"])
    async def answer(name: str) -> dict[str, Any]:
        """Where in its prompt a watched answer has looked, also while it is being given."""
        return await run_in_threadpool(desk.watched, name)


def _watching(api: FastAPI, desk: Desk) -> None:
    """Endpoints for who runs the server."""

    @api.get("/health", tags=["operation"])
    async def health() -> dict[str, str]:
        """Whether the server is alive."""
        return {"status": "ok"}

    @api.get("/ready", tags=["operation"])
    async def ready() -> JSONResponse:
        """Whether requests are taken: 503 if not."""
        reason = "stopping" if desk.life.stopping else None if desk.engine.alive else "engine stopped"
        return JSONResponse({"status": reason or "ready"}, 503 if reason else 200)

    @api.get("/metrics", tags=["operation"])
    async def metrics() -> Response:
        """All figures, for Prometheus."""
        return Response(await run_in_threadpool(desk.metrics.text), media_type=CONTENT_TYPE_LATEST)


# The page may talk to its own server, and nobody else.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def the_page() -> HTMLResponse:
    """The page that shows what the cache does."""
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY, "X-Frame-Options": "DENY"}
    return HTMLResponse(files("louiskv.serving").joinpath("page.html").read_text("utf-8"), headers=headers)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "louiskv"}


def _body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """The schema of a body that is read by hand, for OpenAPI."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}


def _no_such_place(request: Request, error: Exception) -> Response:
    """404 and 405, as error objects."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        message = f"{request.method} is not allowed for {request.url.path}."
    else:
        message = f"There is nothing at {request.url.path[:200]}."
    headers = dict(error.headers or {})
    return ApiError(error.status_code, message, code="unknown_url", headers=headers).response
