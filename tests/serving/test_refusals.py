"""What is refused, and that everybody else is answered meanwhile."""

import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from louiskv import HostMemoryError
from louiskv.engine import EngineStoppedError
from louiskv.serving.desk import Limits
from louiskv.serving.errors import as_api_error
from tests.engine.asking import SMALL
from tests.serving.serving import MODEL, Served, connect, raw_post, served, tokenizer, until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
CONTINUED: dict[str, Any] = {"model": MODEL, "prompt": "Hello", "max_tokens": 3}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(limits=Limits(max_body=20_000, max_prompt=600), max_length=700) as running:
        yield running


def refused(server: Served, path: str, body: Any, status: int = 400, **expected: Any) -> str:
    """Assert how a request is refused; returns the message."""
    got, told, _ = server.ask(path, body)
    assert got == status, told
    assert set(told) == {"error"}
    error = told["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    for name, value in expected.items():
        assert error[name] == value, error
    return str(error["message"])


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"model": NaN}', b"[" * 5000, b'{"a": "\\ud800"}']
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_is_no_json_object(server: Served, path: str, raw: bytes) -> None:
    refused(server, path, raw, code="invalid_json", type="invalid_request_error")


@pytest.mark.parametrize(
    ("wrong", "param", "code"),
    [
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"top_p": 1.5}, "top_p", "invalid_value"),
        ({"top_k": -1}, "top_k", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": -5}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2.5}, "max_tokens", "invalid_type"),
        ({"max_tokens": True}, "max_tokens", "invalid_type"),
        ({"max_tokens": 10**30}, "max_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 10**6}, "n", "invalid_value"),
        ({"seed": 2**80}, "seed", "invalid_value"),
        ({"stop": ""}, "stop[0]", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": 3}, "stop", "invalid_type"),
        ({"stop": "x" * 2000}, "stop[0]", "invalid_value"),
        ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": []}, "frequency_penalty", "invalid_type"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"3": 101}}, "logit_bias.3", "invalid_value"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "invalid_value"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
        ({"louiskv": True}, "louiskv", "invalid_type"),
        ({"louiskv": {"watched": "yes"}}, "louiskv.watched", "invalid_type"),
        ({"louiskv": {"budget": 4096}}, "louiskv.budget", "unsupported_value"),
        ({"louiskv": {"method": "quest"}}, "louiskv.method", "unsupported_value"),
        ({"louiskv": {"colour": 1}}, "louiskv.colour", "unknown_parameter"),
        ({"louiskv": {"tau": "x"}}, "louiskv.tau", "invalid_type"),
        ({"louiskv": {"tau": 1.5}}, "louiskv.tau", "invalid_value"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"model": 3}, "model", "invalid_type"),
    ],
)
@pytest.mark.parametrize(("path", "good"), [(CHAT, ASKED), (TEXT, CONTINUED)], ids=["chat", "text"])
def test_wrong_fields_are_named(
    server: Served, path: str, good: dict[str, Any], wrong: dict[str, Any], param: str, code: str
) -> None:
    message = refused(server, path, {**good, **wrong}, param=param, code=code)
    assert param.partition("[")[0].partition(".")[0] in message


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("Hello", "messages"),
        (["Hello"], "messages[0]"),
        ([{"content": "Hello"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "king", "content": "Hello"}], "messages[0].role"),
        ([{"role": "tool", "content": "3"}], "messages[0].role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "messages[0].tool_calls"),
    ],
)
def test_wrong_messages_are_named(server: Served, messages: Any, param: str) -> None:
    refused(server, CHAT, {**ASKED, "messages": messages}, param=param)


def test_fields_of_the_other_kind_and_fields_that_ask_for_nothing(server: Served) -> None:
    assert "/v1/completions" in refused(server, CHAT, {**ASKED, "prompt": "Hello"}, param="prompt")
    refused(server, TEXT, {**CONTINUED, "messages": []}, param="messages")
    refused(server, TEXT, {**CONTINUED, "echo": True}, param="echo", code="unsupported_parameter")
    refused(server, TEXT, {"model": MODEL}, param="prompt", code="missing_required_parameter")
    refused(server, CHAT, {"messages": []}, param="model", code="missing_required_parameter")
    refused(server, CHAT, {**ASKED, "top_logprobs": 3}, param="top_logprobs")
    wrong: list[Any] = [[], [[]], "", [10**6], [-1], {}, [["a"]]]
    for prompt in wrong:
        refused(server, TEXT, {**CONTINUED, "prompt": prompt})
    idle: dict[str, Any] = {"user": "me", "metadata": {}, "tools": [], "tool_choice": "none"}
    idle |= {"response_format": {"type": "text"}}
    idle |= {"store": False, "stop": None, "temperature": None, "n": None, "logit_bias": None, "audio": None}
    own = {"louiskv": {"budget": SMALL.budget, "method": "louiskv", "watched": False, "tau": SMALL.tau}}
    assert server.ask(CHAT, {**ASKED, **idle, **own})[0] == 200
    parts = [{"type": "text", "text": "Good "}, {"type": "text", "text": "day"}]
    assert server.ask(CHAT, {**ASKED, "messages": [{"role": "developer", "content": parts}]})[0] == 200


def test_the_server_says_what_it_runs(server: Served) -> None:
    message = refused(server, CHAT, {**ASKED, "louiskv": {"budget": 4096}})
    assert "LouisKV(budget=40, " in message


def test_unknown_models_paths_and_methods(server: Served) -> None:
    refused(server, CHAT, {**ASKED, "model": "gpt-5"}, 404, param="model", code="model_not_found")
    refused(server, "/v1/models/gpt-5", None, 404, code="model_not_found")
    refused(server, "/v1/nothing", None, 404, code="unknown_url")
    refused(server, "/louiskv/v1/answers/none", None, 404, code="answer_not_found")
    assert server.ask(CHAT, None)[0] == 405
    status, told, headers = server.ask("/v1/models", {}, "DELETE")
    assert (status, headers["allow"], told["error"]["code"]) == (405, "GET", "unknown_url")


def test_too_long_prompts_are_refused_with_numbers(server: Served) -> None:
    long = {**ASKED, "messages": [{"role": "user", "content": "a " * 700}]}
    message = refused(server, CHAT, long, param="messages", code="context_length_exceeded")
    assert "takes prompts of 600 tokens; yours has 14" in message
    more = {**CONTINUED, "prompt": "a" * 500, "max_tokens": 300}
    message = refused(server, TEXT, more, code="context_length_exceeded", param="max_tokens")
    assert "maximum context length is 700 tokens" in message
    assert "you requested 800 tokens (500 in the prompt, 300 in the answer)" in message
    refused(server, TEXT, {**CONTINUED, "max_tokens": 10**18}, code="context_length_exceeded")
    refused(server, CHAT, {**ASKED, "max_completion_tokens": 10**18}, code="context_length_exceeded")


def test_texts_that_are_too_long_in_any_case_are_not_made_into_tokens(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.prompts, "of_text", None)
    monkeypatch.setattr(server.prompts, "of_chat", None)
    assert server.prompts.longest_token == len("<|im_start|>")
    for path, good in ((TEXT, {**CONTINUED, "prompt": ["a", "b" * 9000]}), (CHAT, {**ASKED, "messages": [
        {"role": "user", "content": "b" * 5000}, {"role": "user", "content": "b" * 4000}]})):  # fmt: skip
        message = refused(server, path, good, code="context_length_exceeded")
        assert "takes prompts of 600 tokens; yours has at least 750" in message


def test_more_answers_than_ever_fit_into_the_queue_are_refused_for_good(server: Served) -> None:
    message = refused(server, CHAT, {**ASKED, "n": 65}, param="n", code="invalid_value")
    assert "at most 64 answers to one request; yours asks for 65" in message
    refused(server, TEXT, {**CONTINUED, "prompt": ["a"] * 33, "n": 2}, param="prompt", code="invalid_value")
    refused(server, TEXT, {**CONTINUED, "prompt": [[3]] * 65}, param="prompt", code="invalid_value")


def test_what_a_client_made_up_is_not_told_back_at_length(server: Served) -> None:
    long = "9" * 5000
    for wrong in ({"logit_bias": {long: 1}}, {"logit_bias": {long: 1000}}, {long: 1}, {"louiskv": {long: 1}}):
        got, told, _ = server.ask(TEXT, {**CONTINUED, **wrong})
        assert got == 400
        assert len(str(told)) < 600
    refused(server, TEXT, f'{{"model":"tiny","prompt":"a","max_tokens":{"9" * 4300}}}'.encode(), param="max_tokens")


def test_bodies_too_large_are_refused_said_or_not(server: Served) -> None:
    refused(server, CHAT, b" " * 20_001, 413, code="request_too_large")
    with connect(server.port) as plain:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += "Transfer-Encoding: chunked\r\n\r\n"
        plain.sendall(head.encode() + b"3000\r\n" + b" " * 0x3000 + b"\r\n" + b"3000\r\n" + b" " * 0x3000 + b"\r\n")
        assert b"413" in plain.recv(1000).split(b"\r\n")[0]
    with connect(server.port) as plain:
        plain.sendall(raw_post(CHAT, b"{}", length=10**12))
        assert b"413" in plain.recv(1000).split(b"\r\n")[0]


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with served(body_seconds=0.2) as server, connect(server.port) as plain:
        plain.sendall(raw_post(CHAT, ASKED)[:-20])
        answer = b""
        # To its end: what came later would be taken for another request.
        while part := plain.recv(1000):
            answer += part
    assert b"408" in answer.split(b"\r\n")[0]
    assert b"request_timeout" in answer


def test_headers_have_a_limit(server: Served) -> None:
    with connect(server.port) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000)
        assert b"400" in plain.recv(1000).split(b"\r\n")[0]


def test_requests_one_behind_the_other(server: Served) -> None:
    asked = [
        raw_post(TEXT, CONTINUED),
        raw_post(TEXT, {**CONTINUED, "n": -1}),
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
    ]
    with connect(server.port) as plain:
        plain.sendall(b"".join(asked) + b"Connection: close\r\n\r\n")
        got = b""
        while part := plain.recv(4000):
            got += part
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"400", b"200"]


def test_only_json_is_taken_so_that_no_web_page_can_ask_behind_ones_back(server: Served) -> None:
    status, told, _ = server.ask(CHAT, ASKED, Content_Type="text/plain")
    assert (status, told["error"]["code"]) == (400, "invalid_content_type")
    assert server.ask(CHAT, ASKED, Content_Type="application/json; charset=utf-8")[0] == 200
    assert "access-control-allow-origin" not in server.ask("/health", None, Origin="https://example.org")[2]


def test_nobody_else_is_disturbed(server: Served) -> None:
    client = server.client()
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=60, stream=True, temperature=0, seed=1,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    parts = [next(iter(stream))]
    for body in (b"{", {**ASKED, "n": -1}, {**ASKED, "logit_bias": {"99999": 1}}, {**ASKED, "max_tokens": 10**9}):
        refused(server, CHAT, body)
    parts += list(stream)
    assert parts[-1].choices[0].finish_reason == "length"


def test_the_key() -> None:
    with served(api_key="secret") as server:
        for path in ("/v1/models", "/metrics", "/louiskv/v1/figures", "/openapi.json", "/v1/nothing"):
            assert server.ask(path)[1]["error"]["code"] == "invalid_api_key"
        for header in ("Bearer wrong", "secret", "Basic secret", "Bearer", "Bearer s\xe9cret"):
            status, told, headers = server.ask(CHAT, ASKED, Authorization=header)
            assert (status, told["error"]["code"]) == (401, "invalid_api_key")
            assert headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ready", "/"):
            assert server.ask(path)[0] == 200
        with pytest.raises(openai.AuthenticationError):
            server.client().models.list()
        assert server.client(api_key="secret").models.list().data[0].id == MODEL


def test_a_page_that_pretends_to_be_its_own_server_is_refused() -> None:
    """A name of somebody else that points at this machine: what a browser takes for the same origin."""
    with served() as server:
        for host in ("evil.org", "evil.org:8000", "localhost.evil.org", "127.0.0.1.evil.org:80", "notlocalhost"):
            for path in ("/", "/v1/models", "/louiskv/v1/figures"):
                status, told, _ = server.ask(path, None, Host=host)
                assert (status, told["error"]["code"]) == (403, "host_not_allowed")
        for host in (
            "localhost",
            "LOCALHOST:80",
            "me.localhost:8000",
            "127.0.0.1:8000",
            "[::1]:8000",
            "10.0.0.3",
            "[::1]",
        ):
            assert server.ask("/v1/models", None, Host=host)[0] == 200
        assert server.client().models.list().data[0].id == MODEL
    with served(api_key="secret") as server:
        named = {"Host": "louiskv.org", "Authorization": "Bearer secret"}
        assert server.ask("/v1/models", None, **named)[0] == 200, "a key is proof enough"


def test_other_web_pages_may_ask_where_it_was_said() -> None:
    with served(api_key="secret", origins=("https://example.org",)) as server:
        asking = {"Origin": "https://example.org", "Access_Control_Request_Method": "POST"}
        status, _, headers = server.ask(CHAT, None, "OPTIONS", **asking)
        assert (status, headers["access-control-allow-origin"]) == (200, "https://example.org")
        status, _, headers = server.ask("/v1/models", None, Origin="https://example.org")
        assert (status, headers["access-control-allow-origin"]) == (401, "https://example.org")
        assert "access-control-allow-origin" not in server.ask("/health", None, Origin="https://evil.org")[2]


def test_a_full_queue(server: Served) -> None:
    with served(rows=1, queue=2) as full, connect(full.port) as plain:
        plain.sendall(raw_post(CHAT, {**ASKED, "max_tokens": 2000, "ignore_eos": True}))
        until(lambda: full.engine.figures().running == 1)
        with connect(full.port) as waiting:
            waiting.sendall(raw_post(CHAT, ASKED))
            until(lambda: full.engine.figures().waiting == 1)
            status, told, headers = full.ask(CHAT, {**ASKED, "n": 2})
            assert (status, told["error"]["code"]) == (429, "rate_limit_exceeded")
            assert int(headers["retry-after"]) >= 1
            with pytest.raises(openai.RateLimitError, match="wait already"):
                full.client().chat.completions.create(**ASKED, n=2)
            until(lambda: full.engine.figures().waiting == 1)
        plain.close()
        assert full.ask(CHAT, ASKED)[0] == 200, "those that were withdrawn make room"


def test_a_model_without_a_template_and_one_that_refuses() -> None:
    with served(words=tokenizer(None)) as server:
        assert "/v1/completions" in refused(server, CHAT, ASKED, param="messages", code="no_chat_template")
    strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('The user begins') }}{% endif %}hello"
    with served(words=tokenizer(strict)) as server:
        wrong = {**ASKED, "messages": [{"role": "assistant", "content": "Hello"}]}
        assert "The user begins" in refused(server, CHAT, wrong, param="messages")
        assert server.ask(CHAT, ASKED)[0] == 200


def test_an_error_of_ours_is_500_and_says_nothing_of_the_inside(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with served() as server:
        batch = server.engine._turns.batch
        stream: Any = {**ASKED, "stream": True}
        with monkeypatch.context() as patch:

            def fails(*_: Any) -> None:
                raise ZeroDivisionError("deep inside")

            patch.setattr(batch, "join", fails)
            for body in (ASKED, stream):
                message = refused(server, CHAT, body, 500, code="internal_error", type="server_error")
                assert "deep inside" not in message
            assert caplog.text.count("An error while answering") == 2, "the log tells it"
            patch.setattr(batch, "run", fails)
        with monkeypatch.context() as patch:
            patch.setattr(batch, "run", fails)
            # The first token comes from the prompt: the response has begun.
            with pytest.raises(openai.APIError, match="The server had an error"):
                list(server.client().chat.completions.create(**stream))
        with monkeypatch.context() as patch:
            patch.setattr(server.prompts, "of_chat", fails)
            assert "deep inside" not in refused(server, CHAT, ASKED, 500, code="internal_error")
        until(lambda: caplog.text.count("An error while answering") == 4)
        assert server.ask(CHAT, ASKED)[0] == 200


def test_errors_of_the_engine() -> None:
    assert as_api_error(HostMemoryError("A sequence of 9 tokens needs more.")).code == "context_length_exceeded"
    assert as_api_error(EngineStoppedError("The engine was stopped.")).status == 503
    assert as_api_error(KeyError("x")).status == 500
