"""Answers the lines of a batch, as many at a time as keep the rows full."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from louiskv.errors import EngineStoppedError
from louiskv.serving.batch.lines import Line
from louiskv.serving.calls import whole

# Requests that may wait in an engine that nobody else asks: each line may be several.
QUEUE = 2**20


def lines_at_once(rows: int) -> int:
    """Lines that are asked together, so that one is ready when a row is free."""
    return 2 * rows


async def answer(app: ASGIApp, line: Line) -> dict[str, Any]:
    """The line of the output.

    Raises:
        EngineStoppedError: Nothing more can be answered.
    """
    if line.call is None:
        return line.refused
    status, body = await whole(app, line.call)
    if status == 503:
        raise EngineStoppedError(body.decode())
    return line.answered(status, body)


async def answer_all(
    app: ASGIApp, lines: Iterable[Line], at_once: int, write: Callable[[dict[str, Any]], None]
) -> None:
    """Answer lines, and write each answer when it is there."""
    waiting = iter(lines)

    async def work() -> None:
        for line in waiting:
            write(await answer(app, line))

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())


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
