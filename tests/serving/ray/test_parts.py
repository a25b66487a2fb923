"""The parts of a fleet one by one, without a cluster."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from inspect import getdoc
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.serve.exceptions import RayServeException, ReplicaUnavailableError
from ray.serve.request_router import PendingRequest
from starlette.types import Message

from louiskv import LouisKVPlus, SettingsError
from louiskv.serving import ray as fleet
from louiskv.serving.calls import Call
from louiskv.serving.conversations import Course, Places, keys_of
from louiskv.serving.errors import ApiError
from louiskv.serving.ray import Arguments, cluster
from louiskv.serving.ray import replicas as replicas_module
from louiskv.serving.ray.cluster import ClusterError, _reason
from louiskv.serving.ray.fleet import Fleet
from louiskv.serving.ray.passed import Passed
from louiskv.serving.ray.replica import SAID, Replica
from louiskv.serving.ray.replicas import Replicas, lost
from louiskv.serving.ray.routing import ConversationRouter
from louiskv.serving.ray.sums import labelled, summed
from tests.serving.serving import MODEL, served


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


@pytest.mark.parametrize("stream", [False, True])
def test_where_a_conversation_is_is_known_before_its_client_can_go_on(stream: bool) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    asked = {"model": MODEL, "messages": messages, "max_tokens": 4, "seed": 3}
    with served() as server:
        said = server.client().chat.completions.create(**asked).choices[0].message.content  # type: ignore[call-overload]
        replica = Replica.__new__(Replica)
        replica.name, replica.app, replica.places = "here", server.app, Places()
        call = Call("/v1/chat/completions", json.dumps({**asked, "stream": stream}).encode())
        *before, told, last = sent_by(replica.answer(call))
    assert told["type"] == SAID and not last.get("more_body", False)
    assert all(each["type"] == "http.response.start" or each["more_body"] for each in before)
    turns = [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": "And you?"}]
    assert told["keys"] == keys_of(json.dumps({"messages": turns}).encode())[1]
    assert replica.places.find(told["keys"]) == "here"


def test_requests_of_one_moment_are_spread() -> None:
    made = router({"a": 0, "b": 0})
    replicas: Any = [SimpleNamespace(replica_id=_Name(name), routing_stats={}) for name in "ab"]
    first: list[Any] = [asyncio.run(made.choose_replicas(replicas))[0][0].replica_id for _ in range(4)]
    assert first.count("a") == first.count("b") == 2
    long_ago: Any = {_Name(name): deque([0.0] * 9) for name in "ab"}
    made._sent = long_ago
    assert made._load(replicas[0]) == 0, "what was sent long ago is in the replica's own count"


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


def statuses(asked: _Asked, place: str | None = None) -> list[int]:
    made = replicas_that()
    made._asked = asked  # type: ignore[assignment]
    if place is not None:
        made._places.keep(keys_of(GOES_ON)[1], place)

    async def all_of() -> list[int]:
        return [each["status"] async for each in made.answer(Call("/v1/chat/completions", GOES_ON))]

    return asyncio.run(all_of())


SPOKEN = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 40
GOES_ON = json.dumps({"messages": SPOKEN}).encode()


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


def test_figures_are_of_those_that_have_some() -> None:
    asked = replicas_that(_Told(0, ("a", 200, b"{}")), _Told(0, ("b", 500, b"oh")))
    call = Call("/louiskv/v1/figures", method="GET")
    assert asyncio.run(asked.all(call, only_good=True)) == [("a", 200, b"{}")]
    assert len(asyncio.run(asked.all(call))) == 2
    with pytest.raises(ApiError, match="No replica"):
        asyncio.run(replicas_that(_Told(0, ("b", 500, b"oh"))).all(call, only_good=True))


def test_a_key_that_is_none_is_refused_and_none_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, nothing = list[Any](), Arguments.model_validate({})
    monkeypatch.setattr("louiskv.serving.ray.builder.application", lambda *_, **given: made.append(given["api_key"]))
    for key in ("", "  ", "schl\u00fcssel"):
        with pytest.raises(SettingsError, match="api_key is empty or has letters"):
            fleet.build(Arguments.model_validate({"api_key": key}))
    monkeypatch.setenv("LOUISKV_API_KEY", "")
    with pytest.raises(SettingsError, match="api_key is empty"):
        fleet.build(nothing)
    monkeypatch.setenv("LOUISKV_API_KEY", "of the environment")
    fleet.build(nothing)
    fleet.build(Arguments.model_validate({"api_key": " given "}))
    assert not caplog.records
    monkeypatch.delenv("LOUISKV_API_KEY")
    fleet.build(nothing)
    assert made == ["of the environment", "given", None]
    assert "anyone may ask" in caplog.text


@pytest.mark.parametrize("ran", [False, True])
def test_serve_that_cannot_listen_does_not_stay(ran: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> None:
        raise RuntimeError("Traceback\n  RuntimeError: Failed to bind\n")

    ended = list[int]()
    module: Any = SimpleNamespace(start=fails, shutdown=lambda: ended.append(1))
    monkeypatch.setattr(cluster, "serve", module)
    monkeypatch.setattr(cluster, "_get_global_client", lambda **_: 1 if ran else None)
    with pytest.raises(ClusterError, match=r"^Serve does not start at h port 1: RuntimeError: Failed to bind$"):
        cluster._start_serve("h", 1)
    assert len(ended) == (not ran), "what somebody else has started stays"


def test_idle_replicas_take_turns() -> None:
    made = router({"a": 0, "b": 0, "c": 0})
    replicas: Any = [SimpleNamespace(replica_id=_Name(name), routing_stats={}) for name in "abc"]
    given = list[Any]()
    for _ in range(9):
        given.append(asyncio.run(made.choose_replicas(replicas))[0][0].replica_id)
        made._sent.clear()
    assert len(set(given[:3])) == 3 and given == given[:3] * 3


def sent_by(messages: AsyncGenerator[Message, None]) -> list[Message]:
    got: list[Message] = []

    async def send(message: Any) -> None:
        got.append(message)

    async def receive() -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    asyncio.run(Passed(messages)({"type": "http"}, receive, send))
    return got


async def breaking(kind: bytes, parts: int) -> AsyncGenerator[Message, None]:
    """A response that is lost after so many parts."""
    yield {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
    for _ in range(parts):
        yield {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}
    raise lost("a")


def test_a_loss_before_the_first_part_is_a_status() -> None:
    for kind in (b"text/event-stream; charset=utf-8", b"application/json"):
        start, body = sent_by(breaking(kind, 0))
        assert start["status"] == 502
        assert json.loads(body["body"])["error"]["code"] == "replica_lost"


def test_a_loss_in_a_stream_is_an_event_and_the_end() -> None:
    *_, last = sent_by(breaking(b"text/event-stream; charset=utf-8", 2))
    error, done, rest = last["body"].split(b"\n\n")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "replica_lost"
    assert (done, rest, last.get("more_body", False)) == (b"data: [DONE]", b"", False)


def test_a_loss_in_a_whole_answer_breaks_the_connection() -> None:
    with pytest.raises(type(lost("a"))):
        sent_by(breaking(b"application/json", 1))


def test_sums_and_labels() -> None:
    def told(tokens: int, rate: float) -> bytes:
        return json.dumps({"model": "m", "figures": {"output_tokens": tokens, "retrieval_rate": rate}}).encode()

    assert summed({"a": told(30, 0.5), "b": told(10, 0.1)}) == {
        "model": "m",
        "figures": {"output_tokens": 40, "retrieval_rate": 0.4},
        "replicas": {
            "a": {"output_tokens": 30, "retrieval_rate": 0.5},
            "b": {"output_tokens": 10, "retrieval_rate": 0.1},
        },
    }
    assert summed({"a": told(0, 0.0)})["figures"]["retrieval_rate"] == 0
    text = b'# HELP x_total Of x\n# TYPE x_total counter\nx_total{path="/"} 3.0\n'
    family = next(iter(text_string_to_metric_families(labelled({"a": text, "b": text}).decode())))
    assert [(sample.labels["replica"], sample.value) for sample in family.samples] == [("a", 3), ("b", 3)]


def test_names() -> None:
    assert sorted(fleet.__all__) == ["Arguments", "build"]
    assert all(getdoc(getattr(fleet, name)) for name in fleet.__all__)


def test_arguments_are_texts_or_what_yaml_has() -> None:
    given = Arguments.model_validate(
        {
            "model": "/models/tiny",
            "method": "louiskv_plus",
            "budget": "512",
            "tau": 0.8,
            "rows": "4",
            "host_memory": "2G",
        }
    )
    blueprint = given.blueprint()
    assert (blueprint.model, blueprint.name) == ("/models/tiny", "/models/tiny")
    assert blueprint.method == LouisKVPlus(budget=512, tau=0.8)
    assert dict(blueprint.engine)["rows"] == 4 and dict(blueprint.engine)["host_memory"] == 2**31
    assert given.fleet() == Fleet(1, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "nope"}, "There is no method 'nope'"),
        ({"bugdet": "5"}, "There is no argument bugdet; the settings of louiskv are budget"),
        ({"budget": "many"}, "A setting of louiskv is of the wrong type"),
        ({"host_memory": "much"}, "host_memory much is no size"),
        ({"replicas": 2, "max_replicas": 3}, "replicas=2 is a fixed number"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas=2 is below min_replicas=3"),
        ({"replicas": 0}, "min_replicas=0 is not allowed"),
        ({"gpus_per_replica": 2}, "gpus=2 is not allowed"),
    ],
)
def test_wrong_arguments(given: dict[str, Any], message: str) -> None:
    arguments = Arguments.model_validate(given)
    with pytest.raises(SettingsError, match=message.replace("(", "\\(")):
        arguments.fleet(), arguments.blueprint()


@pytest.mark.parametrize(
    ("num_nodes", "fronts", "spread"),
    [(None, None, (2, None)), (1, None, (1, 1)), (3, None, (3, 1)), (2, 3, (3, 2)), (2, 1, (1, 1))],
)
def test_fronts_are_spread_over_the_nodes(
    monkeypatch: pytest.MonkeyPatch, num_nodes: int | None, fronts: int | None, spread: tuple[int, int | None]
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: num_nodes is not None)
    monkeypatch.setattr("ray.nodes", lambda: [{"Resources": {}, "Alive": True}] * (num_nodes or 0))
    told = Fleet(fronts=fronts).fronting()
    assert (told["num_replicas"], told.get("max_replicas_per_node")) == spread


def test_replicas_come_when_there_are_more_requests_than_rows() -> None:
    assert Fleet(2, 2).scaling(8) == {"num_replicas": 2}
    config = Fleet(1, 4, upscale_delay=15, downscale_delay=100).scaling(8)["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas, config.target_ongoing_requests) == (1, 4, 8)
    assert (config.upscale_delay_s, config.downscale_delay_s, config.look_back_period_s) == (15, 100, 15)


def test_of_a_traceback_the_reason_is_told() -> None:
    message = "The replica failed: ray::Replica\n  File x\nlouiskv.errors.HostMemoryError: A sequence is too long.\n"
    assert _reason(message) == "A sequence is too long."
    assert _reason("Traceback\n  File x\nOSError: gone\n").startswith("A replica does not begin: OSError: gone")
