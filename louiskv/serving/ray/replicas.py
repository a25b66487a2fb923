"""The replicas as the front sees them: one is asked, or all are, and what goes wrong is an error of the API."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle
from starlette.concurrency import run_in_threadpool
from starlette.types import Message

from louiskv.serving.calls import Call
from louiskv.serving.conversations import Course, Places, keys_of
from louiskv.serving.errors import RETRY_AFTER, ApiError, as_api_error
from louiskv.serving.ray.replica import CHAT, SAID

# Seconds that a request waits for a replica that takes it, and in which a replica tells of itself.
PATIENCE = 10.0
# Of these, how many one replica is worth because it holds the conversation.
PATIENCE_WITH_ONE = 5.0
# Seconds in which a replica says whether it holds a conversation.
SOON = 2.0
# Of a conversation's answers, how many are looked for; the cache of one is seldom older than the last few.
MOST_KEYS = 32
# Statuses by which a replica has not taken a request: its queue is full, or it is on its way down.
ELSEWHERE = (429, 503)
Told = tuple[str, int, bytes]


class Replicas:
    """Asks the replicas of one deployment, and remembers which of them holds which conversation."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle, self._places = handle, Places()
        self._asked = handle.options(method_name="answer", stream=True)

    async def answer(self, call: Call) -> AsyncGenerator[Message, None]:
        """What the replica sends that takes a request, best the one that holds its conversation.

        Raises:
            ApiError: None has taken it, or the one that has is lost; then nobody knows what has become of the answer.
        """
        keys = (await run_in_threadpool(keys_of, call.body))[1][:MOST_KEYS] if call.path == CHAT else []
        tried, refusal = set[str](), list[Message]()
        while True:
            course = Course(tuple(keys), await self._place_of(keys), frozenset(tried))
            async with self._chosen(course) as chosen, aclosing(self._sent(chosen, call)) as messages:
                if chosen.replica_id in tried:
                    break
                tried.add(chosen.replica_id)
                try:
                    first = await anext(messages)
                except ReplicaUnavailableError:
                    # It is lost, but before it has had the request.
                    continue
                if first["status"] not in ELSEWHERE:
                    yield first
                    async for message in messages:
                        yield message
                    return
                refusal = [first, *[message async for message in messages]]
        if not refusal:
            raise unavailable()
        for message in refusal:
            yield message

    async def _place_of(self, keys: list[str]) -> str | None:
        """Which replica holds a conversation; they are asked only where it has come by another front."""
        if keys and self._places.find(keys[:1]) is None:
            told = [each for each in await self.every("holds", keys, patience=SOON) if each is not None]
            if told:
                first, name = min(told)
                self._places.keep(keys[first : first + 1], name)
        return self._places.find(keys)

    async def all(self, call: Call, only_good: bool = False) -> list[Told]:
        """What each of them answers that answers in time: its name, status and body.

        Args:
            call: What is asked.
            only_good: Whether those are left out that answer with an error.

        Raises:
            ApiError: There is none.
        """
        told = [each for each in await self.every("whole", call) if each[1] == 200 or not only_good]
        if not told:
            raise unavailable()
        return told

    async def every(self, method: str, *arguments: Any, patience: float = PATIENCE) -> list[Any]:
        """What a method of each of them returns; those that are lost or late are left out."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        try:
            async with asyncio.timeout_at(until):
                # Its own `results_async` gives up all of them when one is late.
                asked = await self._handle.broadcast(method, *arguments)._fetch_replica_results_async()
        except (DeploymentUnavailableError, TimeoutError):
            return []
        answers = [asyncio.ensure_future(each.get_async()) for each in asked]
        if not answers:
            return []
        done, late = await asyncio.wait(answers, timeout=max(0.0, until - loop.time()))
        for each in late:
            each.cancel()
        return [each.result() for each in answers if each in done and not each.cancelled() and not each.exception()]

    @asynccontextmanager
    async def _chosen(self, course: Course) -> AsyncGenerator[Any, None]:
        """The replica that takes a request, with a place for it."""
        async with AsyncExitStack() as stack:
            try:
                chosen = await self._choose(course, stack)
            except (TimeoutError, BackPressureError) as error:
                raise (full() if await self.every("name_of") else unavailable()) from error
            except (RayError, RayServeException) as error:
                raise unavailable() from error
            yield chosen

    async def _choose(self, course: Course, stack: AsyncExitStack) -> Any:
        """Best the one that holds the conversation, unless it says nothing."""
        if course.place is not None and course.place not in course.tried:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_WITH_ONE):
                    return await stack.enter_async_context(self._asked.choose_replica(course))
            course = Course(tried=course.tried | {course.place})
        async with asyncio.timeout(PATIENCE):
            return await stack.enter_async_context(self._asked.choose_replica(course))

    async def _sent(self, chosen: Any, call: Call) -> AsyncGenerator[Message, None]:
        """What a replica sends; who leaves early wants no more of it."""
        response: Any = self._asked.dispatch(chosen, call)
        begun = ended = False
        try:
            async for message in response:
                begun = True
                if message["type"] == SAID:
                    self._places.keep(message["keys"], chosen.replica_id)
                else:
                    yield message
            ended = True
        except (RayActorError, RayServeException) as error:
            if isinstance(error, ReplicaUnavailableError) and not begun:
                raise
            raise lost(chosen.replica_id) from error
        except RayError as error:
            raise as_api_error(error) from error
        finally:
            if not ended:
                response.cancel()


def full() -> ApiError:
    """Every replica has as many requests as it may have."""
    headers = {"Retry-After": str(RETRY_AFTER)}
    message = "All replicas have as many requests as they take. Ask again later."
    return ApiError(429, message, code="rate_limit_exceeded", kind="rate_limit_error", headers=headers)


def unavailable() -> ApiError:
    """There is no replica."""
    headers = {"Retry-After": str(RETRY_AFTER)}
    message = "No replica can answer now. Ask again later."
    return ApiError(503, message, code="no_replica", kind="server_error", headers=headers)


def lost(name: str) -> ApiError:
    """A replica was lost while it answered."""
    message = f"The replica {name} that was answering this request is lost. Ask again: another one will answer."
    return ApiError(502, message, code="replica_lost", kind="server_error")
