"""Errors as OpenAI's API tells them: a status, and an object that says what is wrong and where."""

import logging
import re
from typing import Any

from starlette.responses import JSONResponse

from louiskv.errors import (
    DeviceMemoryError,
    EngineStoppedError,
    HostMemoryError,
    LouisKVError,
    QueueFullError,
    RequestError,
    SettingsError,
)

# Seconds after which a client that met a full queue, or a server on its way down, may ask again.
RETRY_AFTER = 2
log = logging.getLogger("louiskv.serving")


class ApiError(LouisKVError):
    """A request that is not answered.

    Attributes:
        status: Of HTTP.
        param: The field that is wrong, if one is.
        code: What a program may look at.
        kind: OpenAI's type of the error.
        headers: Of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.kind, self.headers = status, param, code, kind, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The object that the client gets."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The whole response."""
        return JSONResponse(self.body, self.status, self.headers)


def too_long(message: str, param: str | None) -> ApiError:
    """More tokens than fit."""
    return ApiError(400, message, param=param, code="context_length_exceeded")


def stopping() -> ApiError:
    """The server takes no more requests."""
    headers = {"Retry-After": str(RETRY_AFTER)}
    message = "The server is shutting down. Ask again later."
    return ApiError(503, message, code="shutting_down", kind="server_error", headers=headers)


def internal() -> ApiError:
    """Something went wrong that the client can do nothing about."""
    message = "The server had an error while answering this request. Its log says more."
    return ApiError(500, message, code="internal_error", kind="server_error")


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an error of the engine; of one that is not ours nothing more, but the log is."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        headers = {"Retry-After": str(RETRY_AFTER)}
        return ApiError(429, str(error), code="rate_limit_exceeded", kind="rate_limit_error", headers=headers)
    if isinstance(error, EngineStoppedError):
        return ApiError(503, str(error), code="engine_stopped", kind="server_error")
    if isinstance(error, SettingsError):
        named = re.match(r"\w+", str(error))
        return ApiError(400, str(error), param=named[0] if named else None, code="invalid_value")
    if isinstance(error, (HostMemoryError, DeviceMemoryError)):
        return too_long(str(error), None)
    if isinstance(error, RequestError):
        return ApiError(400, str(error), code="invalid_value")
    log.error("An error while answering", exc_info=error)
    return internal()
