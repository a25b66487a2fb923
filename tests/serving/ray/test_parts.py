"""The parts of a fleet one by one, without a cluster."""

import asyncio
import json
from collections.abc import AsyncGenerator
from inspect import getdoc
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message

from louiskv import LouisKVPlus, SettingsError
from louiskv.serving import ray as fleet
from louiskv.serving.calls import Call
from louiskv.serving.conversations import Places, keys_of
from louiskv.serving.ray import Arguments, cluster
from louiskv.serving.ray.cluster import ClusterError, _reason
from louiskv.serving.ray.fleet import Fleet
from louiskv.serving.ray.passed import Passed
from louiskv.serving.ray.replica import SAID, Replica
from louiskv.serving.ray.replicas import lost
from louiskv.serving.ray.sums import labelled, summed
from tests.serving.serving import MODEL, served


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
