"""Replicas as the front sees them: late, gone, silent, without a cluster."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.exceptions import RayServeException, ReplicaUnavailableError
from starlette.types import Message

from louiskv.serving.calls import Call
from louiskv.serving.conversations import Course, keys_of
from louiskv.serving.errors import ApiError
from louiskv.serving.ray import replicas as replicas_module
from louiskv.serving.ray.replicas import Replicas


class _Told:
    """A replica that answers after some seconds, if it answers."""

    def __init__(self, seconds: float, answer: Any) -> None:
        self.seconds, self.answer = seconds, answer

    async def get_async(self) -> Any:
        await asyncio.sleep(self.seconds)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def replicas_that(*told: _Told) -> Replicas:
    async def fetched() -> list[_Told]:
        return list(told)

    handle: Any = SimpleNamespace(
        options=lambda **_: None, broadcast=lambda *_: SimpleNamespace(_fetch_replica_results_async=fetched)
    )
    return Replicas(handle)


def test_who_is_late_or_lost_is_left_out_and_no_other() -> None:
    asked = replicas_that(_Told(0, 1), _Told(60, 2), _Told(0, RuntimeError("lost")), _Told(0.01, 3))
    assert asyncio.run(asked.every("name_of", patience=0.2)) == [1, 3]
    assert asyncio.run(replicas_that().every("name_of")) == []


def test_figures_are_of_those_that_have_some() -> None:
    asked = replicas_that(_Told(0, ("a", 200, b"{}")), _Told(0, ("b", 500, b"oh")))
    call = Call("/louiskv/v1/figures", method="GET")
    assert asyncio.run(asked.all(call, only_good=True)) == [("a", 200, b"{}")]
    assert len(asyncio.run(asked.all(call))) == 2
    with pytest.raises(ApiError, match="No replica"):
        asyncio.run(replicas_that(_Told(0, ("b", 500, b"oh"))).all(call, only_good=True))


class _Asked:
    """Replicas by name, each with the statuses of its answers or what it raises; "silent" has no place for anybody."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.courses = answers, list[Course]()

    @asynccontextmanager
    async def choose_replica(self, course: Course) -> AsyncGenerator[Any, None]:
        self.courses.append(course)
        free = [name for name in self.answers if name not in course.tried]
        name = course.place if course.place in free else next(iter(free), next(iter(self.answers)))
        if self.answers[name] == "silent":
            await asyncio.sleep(60)
        yield SimpleNamespace(replica_id=name)

    def dispatch(self, chosen: Any, _: Call) -> Any:
        return _Sent(self.answers[chosen.replica_id])


class _Sent:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def __aiter__(self) -> AsyncGenerator[Message, None]:
        if isinstance(self.answer, Exception):
            raise self.answer
        yield {"type": "http.response.start", "status": self.answer}

    def cancel(self) -> None:
        pass


SPOKEN = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 40
GOES_ON = json.dumps({"messages": SPOKEN}).encode()


def statuses(asked: _Asked, place: str | None = None) -> list[int]:
    made = replicas_that()
    made._asked = asked  # type: ignore[assignment]
    if place is not None:
        made._places.keep(keys_of(GOES_ON)[1], place)

    async def all_of() -> list[int]:
        return [each["status"] async for each in made.answer(Call("/v1/chat/completions", GOES_ON))]

    return asyncio.run(all_of())


def test_one_that_was_lost_before_it_had_the_request_is_not_told_of() -> None:
    gone = ReplicaUnavailableError("gone")
    assert statuses(_Asked(a=gone, b=200)) == [200]
    assert statuses(_Asked(a=429, b=gone)) == [429], "the refusal is the best there is"
    with pytest.raises(ApiError, match="No replica"):
        statuses(_Asked(a=gone))
    with pytest.raises(ApiError, match="is lost"):
        statuses(_Asked(a=RayServeException("another")))


def test_a_holder_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "PATIENCE_WITH_ONE", 0.05)
    asked = _Asked(b=200, a="silent")
    assert statuses(asked, place="a") == [200]
    first, second = asked.courses
    assert (first.place, second.place, second.tried) == ("a", None, frozenset("a"))
    assert len(first.keys) == replicas_module.MOST_KEYS < 40, "of very many answers the newest are looked for"
