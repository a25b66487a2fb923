"""Answers the lines of a batch, as many at a time as keep the rows full."""

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from louiskv.errors import EngineStoppedError, LouisKVError
from louiskv.serving.batch.lines import Line
from louiskv.serving.calls import Call, whole

# Requests that may wait in an engine that nobody else asks: each line may be several.
QUEUE = 2**20


def lines_at_once(rows: int) -> int:
    """Lines that are asked together, so that one is ready when a row is free."""
    return 2 * rows


class NoAnswerError(LouisKVError):
    """A line has no answer although the engine goes on."""


async def answer(app: ASGIApp, line: Line) -> dict[str, Any]:
    """The line of the output; an error of the server is no answer, and is asked once more.

    Raises:
        EngineStoppedError: Nothing more can be answered.
        NoAnswerError: The second time it was an error of the server again.
    """
    if line.call is None:
        return line.refused
    status, body = await _asked(app, line.call)
    if status >= 500:
        # What a broken engine was answering ends so; its next answer says that it has stopped.
        status, body = await _asked(app, line.call)
    if status >= 500:
        raise NoAnswerError(
            f"Line {line.number} ({line.custom_id!r}) ended twice with status {status}: {_message(body)} It is not in "
            "the output: the same call asks it again. If it always ends so, take it out of the input."
        )
    return line.answered(status, body)


async def _asked(app: ASGIApp, call: Call) -> tuple[int, bytes]:
    """Status and body; an engine that takes nothing more is not asked again."""
    status, body = await whole(app, call)
    if status == 503:
        raise EngineStoppedError(f"{_message(body)} The same call goes on with the lines that are left.")
    return status, body


def _message(body: bytes) -> str:
    return str(json.loads(body)["error"]["message"])


async def answer_all(
    app: ASGIApp, lines: Iterable[Line], at_once: int, write: Callable[[dict[str, Any]], None]
) -> None:
    """Answer lines, and write each answer when it is there.

    Raises:
        EngineStoppedError: As `answer` does; the first error ends all, whoever raises it.
        NoAnswerError: The same.
    """
    waiting = iter(lines)

    async def work() -> None:
        for line in waiting:
            write(await answer(app, line))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


@dataclass
class Count:
    """What a run has come to.

    Attributes:
        answered: Lines with an answer.
        refused: Lines with an error.
        prompt_tokens: Tokens of prompts.
        cached_tokens: Those of them that were there from other requests.
        completion_tokens: Tokens of answers.
    """

    answered: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def lines(self) -> int:
        """All of them."""
        return self.answered + self.refused

    def add(self, told: dict[str, Any]) -> None:
        """Count a line of the output."""
        response = told["response"]
        if response is None or response["status_code"] != 200:
            self.refused += 1
            return
        usage = response["body"]["usage"]
        self.answered += 1
        self.prompt_tokens += usage["prompt_tokens"]
        self.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]
        self.completion_tokens += usage["completion_tokens"]
