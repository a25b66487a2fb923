"""Which replica a request goes to, without a cluster."""

import asyncio
from collections import deque
from types import SimpleNamespace
from typing import Any

from ray.serve.request_router import PendingRequest

from louiskv.serving.conversations import Course
from louiskv.serving.ray.routing import ConversationRouter


def router(loads: dict[str, int]) -> ConversationRouter:
    """A router over replicas with so many requests, each decoding two at once."""
    made = ConversationRouter.__new__(ConversationRouter)
    made.initialize_state(rows=2)
    made._replica_queue_len_cache = SimpleNamespace(get=lambda name: loads[name.unique_id])  # type: ignore[assignment]
    return made


def chosen(loads: dict[str, int], course: Course, holds: dict[str, tuple[str, ...]] | None = None) -> list[str]:
    """Names in the order in which they are tried."""
    replicas: Any = [
        SimpleNamespace(
            replica_id=_Name(name), routing_stats={"conversations": (holds or {}).get(name, ())}, max_ongoing_requests=9
        )
        for name in loads
    ]
    context, metadata = SimpleNamespace(should_backoff=False), SimpleNamespace()
    asked: Any = SimpleNamespace(args=[course], kwargs={}, metadata=metadata, routing_context=context)
    pending: PendingRequest = asked
    ranks = asyncio.run(router(loads).choose_replicas(replicas, pending))
    return [each.replica_id.unique_id for rank in ranks for each in rank]


class _Name(str):
    __slots__ = ()

    @property
    def unique_id(self) -> str:
        return str(self)


def test_who_holds_the_conversation_comes_first_and_then_who_has_least_to_do() -> None:
    assert chosen({"a": 1, "b": 0}, Course(place="a")) == ["a", "b", "a"]
    assert chosen({"a": 1, "b": 0}, Course(place="gone")) == ["b", "a"]
    assert chosen({"a": 1, "b": 0}, Course(keys=("new", "old")), {"a": ("old",)}) == ["a", "b", "a"]
    assert chosen({"a": 1, "b": 0}, Course(keys=("new", "old")), {"a": ("old",), "b": ("new",)})[0] == "b"


def test_it_is_waited_for_only_while_no_other_has_a_free_row() -> None:
    assert chosen({"a": 2, "b": 1}, Course(place="a")) == ["b", "a"]
    assert chosen({"a": 3, "b": 2}, Course(place="a"))[0] == "a"


def test_one_that_had_no_room_is_not_asked_again() -> None:
    assert chosen({"a": 0, "b": 1}, Course(place="a", tried=frozenset("a"))) == ["b"]
    assert set(chosen({"a": 0, "b": 1}, Course(tried=frozenset("ab")))) == {"a", "b"}, "the front sees that it is over"


def test_requests_of_one_moment_are_spread() -> None:
    made = router({"a": 0, "b": 0})
    replicas: Any = [SimpleNamespace(replica_id=_Name(name), routing_stats={}) for name in "ab"]
    first: list[Any] = [asyncio.run(made.choose_replicas(replicas))[0][0].replica_id for _ in range(4)]
    assert first.count("a") == first.count("b") == 2
    long_ago: Any = {_Name(name): deque([0.0] * 9) for name in "ab"}
    made._sent = long_ago
    assert made._load(replicas[0]) == 0, "what was sent long ago is in the replica's own count"


def test_idle_replicas_take_turns() -> None:
    made = router({"a": 0, "b": 0, "c": 0})
    replicas: Any = [SimpleNamespace(replica_id=_Name(name), routing_stats={}) for name in "abc"]
    given = list[Any]()
    for _ in range(9):
        given.append(asyncio.run(made.choose_replicas(replicas))[0][0].replica_id)
        made._sent.clear()
    assert len(set(given[:3])) == 3 and given == given[:3] * 3


def test_one_of_whom_nothing_is_known_is_asked_and_without_an_answer_has_no_row() -> None:
    made = router({})
    loads: dict[str, int | None] = {"a": None, "b": 1, "c": None}
    made._replica_queue_len_cache = SimpleNamespace(get=lambda name: loads[name.unique_id])  # type: ignore[assignment]
    replicas: Any = [SimpleNamespace(replica_id=_Name(name), routing_stats={}) for name in loads]
    asked = list[str]()

    async def probe(silent: Any, _: int) -> None:
        asked.extend(each.replica_id for each in silent)
        loads["c"] = 0

    made._probe_queue_lens = probe  # type: ignore[method-assign, assignment]
    ranks = asyncio.run(made.choose_replicas(replicas))
    assert asked == ["a", "c"]
    assert [rank[0].replica_id.unique_id for rank in ranks] == ["c", "b", "a"]
