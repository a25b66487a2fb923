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
    guarded: ASGIApp = Guard(api, life, metrics, api_key, paths)
    if origins:
        guarded = CORSMiddleware(guarded, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    return guarded


def _openai(api: FastAPI, desk: Desk) -> None:
    """OpenAI's endpoints."""

    @api.post("/v1/chat/completions", openapi_extra=_body_of(ChatBody), tags=["OpenAI"])
    async def chat(request: Request) -> Response:
        """Answer a chat, whole or as server-sent events."""
        return await desk.chat(read(await _body(request, desk.limits), ChatBody))

    @api.post("/v1/completions", openapi_extra=_body_of(CompletionBody), tags=["OpenAI"])
    async def completion(request: Request) -> Response:
        """Go on from a text, or several."""
        return await desk.completion(read(await _body(request, desk.limits), CompletionBody))

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
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY, "X-Frame-Options": "DENY"}
        return HTMLResponse(files("louiskv.serving").joinpath("page.html").read_text("utf-8"), headers=headers)

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


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "louiskv"}


def _body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """The schema of a body that is read by hand, for OpenAPI."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}


async def _body(request: Request, limits: Limits) -> bytes:
    """The body, as long as it is not too large.

    Raises:
        ApiError: 413 if it is; 400 if it is not said to be JSON, which no web page may say without being asked for.
    """
    message = f"The body has more than the {limits.max_body} bytes that this server takes."
    too_large = ApiError(413, message, code="request_too_large")
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > limits.max_body:
        raise too_large
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "Send JSON, with the header Content-Type: application/json.", code="invalid_content_type")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limits.max_body:
            raise too_large
    return bytes(body)


def _no_such_place(request: Request, error: Exception) -> Response:
    """404 and 405, as error objects."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        message = f"{request.method} is not allowed for {request.url.path}."
    else:
        message = f"There is nothing at {request.url.path[:200]}."
    headers = dict(error.headers or {})
    return ApiError(error.status_code, message, code="unknown_url", headers=headers).response
