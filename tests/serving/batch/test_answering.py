"""Answering lines: what is an answer, and what ends a run."""

import asyncio
import errno
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from louiskv.errors import EngineStoppedError
from louiskv.serving.batch.answering import NoAnswerError, answer_all
from louiskv.serving.batch.lines import Line
from louiskv.serving.calls import Call
from louiskv.serving.errors import ApiError, internal

BROKEN, STOPPED = internal(), ApiError(503, "The engine was stopped.")


def saying(*errors: ApiError | None) -> ASGIApp:
    """An app that ends one request after another so; all after that are answered."""
    left = iter(errors)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        error = next(left, None)
        await send({"type": "http.response.start", "status": error.status if error else 200})
        await send({"type": "http.response.body", "body": error.response.body if error else b"{}"})

    return app


def answered(app: ASGIApp, count: int, at_once: int = 1) -> Sequence[dict[str, Any]]:
    written: list[dict[str, Any]] = []
    lines = [Line(number, f"line {number}", Call("/v1/completions")) for number in range(1, count + 1)]
    try:
        asyncio.run(answer_all(app, lines, at_once, written.append))
    finally:
        assert all(each["response"]["status_code"] < 500 for each in written)
    return written


def test_an_error_of_the_server_is_asked_once_more() -> None:
    assert [each["custom_id"] for each in answered(saying(None, BROKEN), 3)] == ["line 1", "line 2", "line 3"]


def test_an_error_of_the_request_is_an_answer() -> None:
    (told,) = answered(saying(ApiError(400, "No.")), 1)
    assert told["response"]["status_code"] == 400


def test_a_second_error_of_the_server_ends_the_run_without_the_line() -> None:
    with pytest.raises(
        NoAnswerError, match=r"Line 1 \('line 1'\) ended twice with status 500: The server had an error"
    ):
        answered(saying(BROKEN, BROKEN), 3)


@pytest.mark.parametrize(
    ("errors", "at_once"),
    [((STOPPED,), 1), ((STOPPED, STOPPED), 2), ((BROKEN, STOPPED), 1), ((BROKEN, BROKEN, STOPPED, STOPPED), 2)],
)
def test_an_engine_that_has_stopped_ends_the_run_as_itself(errors: tuple[ApiError, ...], at_once: int) -> None:
    with pytest.raises(EngineStoppedError, match="The engine was stopped. The same call goes on"):
        answered(saying(*errors), 3, at_once)


def test_what_cannot_be_written_ends_the_run_as_itself() -> None:
    def write(_: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    lines = [Line(number, None, reason="wrong") for number in range(4)]
    with pytest.raises(OSError, match="No space left"):
        asyncio.run(answer_all(saying(), lines, 2, write))
