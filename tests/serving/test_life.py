"""Clients that go away, servers that stop, figures, and five hundred requests of all kinds."""

import asyncio
import re
import socket
import threading
import time
from typing import Any

import openai
import pytest
import torch

from louiskv.engine import Engine
from louiskv.serving import server as server_module
from louiskv.serving.life import Life
from tests.serving.serving import MODEL, Served, connect, raw_post, served, until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Go on and on and on and on and on, and then some more."}],
    "max_tokens": 2000,
    "ignore_eos": True,
}
EMPTY = ("running", "taking_in", "waiting", "kept", "kept_bytes", "resident_bytes", "index_bytes", "host_bytes")


def empty(engine: Engine) -> bool:
    figures = engine.figures()
    return all(getattr(figures, name) == 0 for name in EMPTY)


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_frees_the_row(stream: bool) -> None:
    with served() as server:
        with connect(server.port) as plain:
            plain.sendall(raw_post(CHAT, {**LONG, "stream": stream, "n": 2}))
            if stream:
                assert plain.recv(4000).startswith(b"HTTP/1.1 200")
            until(lambda: server.engine.figures().running == 2)
        until(lambda: empty(server.engine))
        assert server.engine.figures().output_tokens < 2000
        # The event loop hears of it a moment later.
        until(lambda: not server.life.open)
        assert 'louiskv_answers_total{finish_reason="cancelled"} 2.0' in server.ask("/metrics")[1]


def test_who_goes_away_while_waiting_or_in_the_prompt() -> None:
    with served(rows=1, max_length=4000) as server:
        first = connect(server.port)
        first.sendall(raw_post(TEXT, {"model": MODEL, "prompt": "a" * 3500, "max_tokens": 5}))
        until(lambda: server.engine.figures().taking_in == 1)
        second = connect(server.port)
        second.sendall(raw_post(CHAT, LONG))
        until(lambda: server.engine.figures().waiting == 1)
        second.close()
        until(lambda: server.engine.figures().waiting == 0)
        first.close()
        until(lambda: empty(server.engine))
        assert server.engine.figures().prompt_tokens < 3500


def test_who_goes_away_while_the_body_comes_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with served() as server:
        with connect(server.port) as plain:
            plain.sendall(raw_post(CHAT, LONG)[:-20])
            time.sleep(0.1)
        gone = 'louiskv_requests_total{path="/v1/chat/completions",status="499"} 1.0'
        until(lambda: gone in server.ask("/metrics")[1])
    assert "error" not in caplog.text


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system cannot tell")
def test_who_reads_nothing_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "UNREAD_SECONDS", 0.5)
    with served() as server, socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect(("127.0.0.1", server.port))
        plain.sendall(raw_post(CHAT, {**LONG, "stream": True, "logprobs": True, "top_logprobs": 20}))
        until(lambda: server.life.open)
        until(lambda: not server.life.open)
        until(lambda: empty(server.engine))
        assert server.engine.figures().output_tokens < 2000


def test_health_and_readiness() -> None:
    with served() as server:
        assert server.ask("/health")[:2] == (200, {"status": "ok"})
        assert server.ask("/ready")[:2] == (200, {"status": "ready"})
        server.engine.stop(finish=False)
        assert server.ask("/ready")[:2] == (503, {"status": "engine stopped"})
        assert server.ask("/health")[0] == 200
        status, told, _ = server.ask(CHAT, LONG)
        assert (status, told["error"]["code"]) == (503, "engine_stopped")


def test_a_stop_lets_answers_end_and_takes_no_more() -> None:
    with served(grace=60) as server:
        client = server.client()
        stream = client.chat.completions.create(**{**_typed(LONG), "max_tokens": 300}, stream=True)
        iterator = iter(stream)
        next(iterator)
        server.stop()
        until(lambda: server.life.stopping)
        status, told, headers = server.ask(CHAT, LONG)
        assert (status, told["error"]["code"]) == (503, "shutting_down")
        assert "retry-after" in headers
        assert server.ask("/ready")[:2] == (503, {"status": "stopping"})
        assert server.ask("/health")[0] == 200
        reasons = [part.choices[0].finish_reason for part in iterator]
        assert reasons[-1] == "length"
        until(lambda: _refused(server.port))


def test_what_has_not_ended_in_time_is_ended_and_says_so() -> None:
    with served(grace=0.2) as server:
        client = server.client()
        got: list[Any] = []
        asking = threading.Thread(target=lambda: got.append(client.chat.completions.create(**_typed(LONG))))
        asking.start()
        stream = iter(client.chat.completions.create(**_typed(LONG), stream=True))
        next(stream)
        until(lambda: server.engine.figures().running == 2)
        server.stop()
        assert [part.choices[0].finish_reason for part in stream][-1] == "cancelled"
        asking.join(20)
        assert got[0].choices[0].finish_reason == "cancelled"
        assert got[0].usage.completion_tokens > 0


def test_a_second_stop_does_not_wait() -> None:
    with served(grace=600) as server:
        stream = iter(server.client().chat.completions.create(**_typed(LONG), stream=True))
        next(stream)
        server.stop()
        server.stop()
        assert [part.choices[0].finish_reason for part in stream][-1] == "cancelled"


def test_what_is_idle_ends_at_once() -> None:
    asyncio.run(asyncio.wait_for(Life().end(600, asyncio.Event()), 5))


def test_a_long_text_of_somebody_else_holds_up_nobody() -> None:
    """What makes tokens of it has a lock, for which the event loop may not wait."""
    with served() as server, connect(server.port) as plain:
        plain.sendall(raw_post(CHAT, {**LONG, "max_tokens": 200, "stream": True}))
        got = plain.recv(4000)
        with server.prompts._lock:
            while b'"finish_reason":"length"' not in got:
                got += plain.recv(4000)
            assert server.ask("/health")[0] == 200
            assert b"[DONE]" not in got
        while b"[DONE]" not in got:
            got += plain.recv(4000)


def test_metrics() -> None:
    with served(kept_memory=2**30) as server, served() as other:
        client = server.client()
        client.chat.completions.create(**{**_typed(LONG), "max_tokens": 30})
        list(client.chat.completions.create(**{**_typed(LONG), "max_tokens": 5}, stream=True))
        assert server.ask(CHAT, b"{")[0] == 400
        for path in ("/nothing", "/nowhere", "/louiskv/v1/answers/x"):
            assert server.ask(path)[0] == 404
        status, text, headers = server.ask("/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain")
        told = dict(re.findall(r"^louiskv_(\S+) (\S+)$", text, re.MULTILINE))
        number = {name: float(value) for name, value in told.items()}
        assert number['requests_total{path="/v1/chat/completions",status="200"}'] == 2
        assert number['requests_total{path="/v1/chat/completions",status="400"}'] == 1
        assert number['requests_total{path="other",status="404"}'] == 2
        assert number['requests_total{path="/louiskv/v1/answers/{id}",status="404"}'] == 1
        assert number['answers_total{finish_reason="length"}'] == 2
        assert number["output_tokens_total"] == 35
        assert number["time_to_first_token_seconds_count"] == 2
        assert number["time_between_tokens_seconds_count"] == 33
        assert number["answer_seconds_count"] == 2
        assert number["answer_seconds_sum"] > number["time_between_tokens_seconds_sum"] > 0
        # The second chat is the first one asked again: it goes on from what was kept.
        assert number["cached_prompt_tokens_total"] > 0 < number["prompt_tokens_total"]
        assert number["kept_conversations"] == 1
        assert number["kept_bytes"] > 0 == number["queue_length"] == number["running_rows"]
        assert 0 < number["retrieval_rate"] <= 1
        assert number["fetched_bytes_total"] > 0
        for name in ("resident_bytes", "index_bytes", "host_bytes", "rows", "prompts_taken_in"):
            assert number[name] == 0
        assert "louiskv_answers_total{" not in other.ask("/metrics")[1], "two servers in one process share nothing"


def test_five_hundred_requests_of_all_kinds_and_nothing_is_left() -> None:
    generator = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    with served(rows=8, queue=600) as server:
        assert empty(server.engine)
        before = threading.active_count()
        kinds = [number(0, 8) for _ in range(500)]
        plans = [(kind, number(1, 120), number(1, 12), number(0, 30) / 1000) for kind in kinds]
        got = asyncio.run(_all(server, plans))
        until(lambda: empty(server.engine))
        until(lambda: not server.life.open)
        assert server.engine.alive
        assert server.ask("/ready")[0] == 200
        assert threading.active_count() <= before + 45, "those of one thread pool"
    for (kind, _, wanted, _), outcome in zip(plans, got, strict=True):
        if kind < 3:
            assert outcome[0] in ("stop", "length") and 0 < outcome[1] <= wanted
        elif kind in (3, 4):
            assert outcome == (400, 0)
        else:
            assert outcome == ("gone", 0)
    assert {kinds.count(kind) > 30 for kind in range(8)} == {True}


async def _all(server: Served, plans: list[tuple[int, int, int, float]]) -> list[tuple[Any, int]]:
    limit = asyncio.Semaphore(40)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        async def one(kind: int, length: int, wanted: int, pause: float) -> tuple[Any, int]:
            async with limit:
                return await _one(server, client, kind, length, wanted, pause)

        return await asyncio.gather(*(one(*plan) for plan in plans))


async def _one(
    server: Served, client: openai.AsyncOpenAI, kind: int, length: int, wanted: int, pause: float
) -> tuple[Any, int]:
    """One request: whole, streamed, sampled; malformed or wrong; or left early."""
    messages: Any = [{"role": "user", "content": "x" * length}]
    if kind == 0:
        made = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=wanted, seed=length)
        assert made.usage is not None
        return made.choices[0].finish_reason, made.usage.completion_tokens
    if kind in (1, 2):
        parts = await client.completions.create(
            model=MODEL, prompt="y" * length, max_tokens=wanted, stream=True, stream_options={"include_usage": True},
            presence_penalty=kind - 1,
        )  # fmt: skip
        reason, tokens = "", 0
        async for part in parts:
            reason = (part.choices[0].finish_reason if part.choices else None) or reason
            tokens = part.usage.completion_tokens if part.usage else tokens
        return reason, tokens
    if kind in (3, 4):
        body: Any = b'{"model": ' if kind == 3 else {"model": MODEL, "messages": messages, "max_tokens": -wanted}
        return (await asyncio.to_thread(server.ask, CHAT, body))[0], 0
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    raw = raw_post(CHAT, {**LONG, "messages": messages, "stream": kind == 5})
    # A part of a body, too.
    writer.write(raw[: len(raw) - 20] if kind == 7 else raw)
    await writer.drain()
    if kind == 5:
        await reader.read(200)
    await asyncio.sleep(pause)
    writer.close()
    return "gone", 0


def _typed(body: dict[str, Any]) -> dict[str, Any]:
    """What the client takes by name; the rest beside it."""
    return {**{name: value for name, value in body.items() if name != "ignore_eos"}, "extra_body": {"ignore_eos": True}}


def _refused(port: int) -> bool:
    try:
        connect(port).close()
    except ConnectionRefusedError:
        return True
    return False
