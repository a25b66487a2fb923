"""Two nodes with a replica each: what clients see of them, and what they see of it when one is killed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from ray.cluster_utils import Cluster

from tests.serving.ray.fleet import CHAT, QUEUE, ROWS, TEXT, Fleeted, lines, request, until
from tests.serving.serving import MODEL, connect, raw_post

LONG: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Go on and on"}],
    "max_tokens": 3000,
    "ignore_eos": True,
}


def test_a_second_replica_comes_under_load(fleet: Fleeted) -> None:
    assert len(fleet.replicas()) == 1
    busy = [fleet.begin(stream=True, max_tokens=3000, seed=seed) for seed in range(ROWS + 1)]

    def come() -> bool:
        if all(each.outcome for each in busy):
            busy.extend([fleet.begin(stream=True, max_tokens=3000, seed=seed) for seed in range(ROWS + 1)])
        return len(fleet.replicas()) == 2

    until(come, 60)
    for each in busy:
        each.leave()
    assert {each.end() for each in busy} <= {"length", "left"}
    assert fleet.ask("/ready")[:2] == (200, {"status": "ready"})


def test_a_file_of_requests(cluster: Cluster, model_folder: Path, tmp_path: Path) -> None:
    file, output = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    asked = [request(f"request {number}", f"The number {number}") for number in range(9)]
    file.write_bytes(lines(*asked[:4], b"{", *asked[4:], {**asked[0], "custom_id": "wrong", "body": {}}))
    settings = ["--model", str(model_folder), "--budget", "256", "--rows", "2", "--device", "cpu", "--json"]
    there = ["--ray", "--ray-address", cluster.address, "--replicas", "1", "--cpus-per-replica", "0.5"]
    command = [sys.executable, "-m", "louiskv", "batch", str(file), "--output", str(output), *settings, *there]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report, told = json.loads(done.stdout), [json.loads(line) for line in output.read_text().splitlines()]
    assert (report["answered"], report["refused"], report["skipped"]) == (9, 2, 0)
    good = {each["custom_id"]: each["response"] for each in told if each["response"]}
    assert {name: each["status_code"] for name, each in good.items()} == {
        **{each["custom_id"]: 200 for each in asked},
        "wrong": 400,
    }
    assert [each["error"]["line"] for each in told if each["error"]] == [5]


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on_where_its_cache_is(fleet: Fleeted, stream: bool) -> None:
    client = fleet.client()
    chats: list[list[dict[str, str]]] = [[] for _ in range(6)]
    held = [0] * len(chats)
    before = fleet.figures()["replicas"]
    for turn in range(3):
        for place, messages in enumerate(chats):
            # All begin alike: only their answers, longer than what they have in common, tell them apart.
            # Nobody else has asked this with the same seed.
            messages.append({"role": "user", "content": f"Talk on and on, turn {turn}"})
            asked: Any = {
                "model": MODEL,
                "messages": messages,
                "max_tokens": 60,
                "seed": 1000 * stream + 10 * place + turn,
            }
            asked |= {"extra_body": {"ignore_eos": True}}
            if stream:
                asked |= {"stream": True, "stream_options": {"include_usage": True}}
                parts = list(client.chat.completions.create(**asked))
                text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
                usage = parts[-1].usage
            else:
                made = client.chat.completions.create(**asked)
                text, usage = made.choices[0].message.content or "", made.usage
            assert usage is not None and usage.prompt_tokens_details is not None
            if turn:
                assert usage.prompt_tokens_details.cached_tokens == held[place]
            held[place] = usage.prompt_tokens + usage.completion_tokens - 1
            messages.append({"role": "assistant", "content": text})
    after = fleet.figures()["replicas"]
    given = [after[name]["output_tokens"] - before[name]["output_tokens"] for name in after]
    assert sum(given) == 6 * 3 * 60
    assert all(given), "they are spread over both"


def test_what_a_client_sees_is_what_one_server_answers(fleet: Fleeted) -> None:
    assert fleet.ask("/health")[:2] == (200, {"status": "ok"})
    assert "<title>" in fleet.ask("/")[1]
    assert fleet.ask("/v1/models", Host="evil.example")[1]["error"]["code"] == "host_not_allowed"
    assert [model["id"] for model in fleet.ask("/v1/models")[1]["data"]] == [MODEL]
    for path, body, status, code in (
        (CHAT, b"{", 400, "invalid_json"),
        (CHAT, {**LONG, "model": "other"}, 404, "model_not_found"),
        (CHAT, {**LONG, "max_tokens": 10**6}, 400, "context_length_exceeded"),
        (TEXT, {"model": MODEL, "prompt": 3}, 400, "invalid_type"),
        (CHAT, b" " * (16 * 2**20 + 1), 413, "request_too_large"),
        ("/nowhere", None, 404, "unknown_url"),
        (CHAT, None, 405, "unknown_url"),
    ):
        answered = fleet.ask(path, body)
        assert (answered[0], answered[1]["error"]["code"]) == (status, code)
    assert fleet.ask(TEXT, {"model": MODEL, "prompt": "Go", "max_tokens": 5})[1]["usage"]["completion_tokens"] <= 5


def test_figures_metrics_and_watched_answers_of_all(fleet: Fleeted) -> None:
    client = fleet.client()
    asked: Any = {"model": MODEL, "messages": LONG["messages"], "max_tokens": 5}
    names = [client.chat.completions.create(**asked, extra_body={"louiskv": {"watched": True}}).id for _ in range(4)]
    for name in names:
        assert fleet.ask(f"/louiskv/v1/answers/{name}")[1]["ended"]
    assert fleet.ask("/louiskv/v1/answers/other")[1]["error"]["code"] == "answer_not_found"
    figures = fleet.figures()
    assert figures["figures"]["output_tokens"] == sum(each["output_tokens"] for each in figures["replicas"].values())
    status, text, _ = fleet.ask("/metrics")
    assert status == 200
    for name in figures["replicas"]:
        assert (
            f'louiskv_output_tokens_total{{replica="{name}"}} {figures["replicas"][name]["output_tokens"]:.1f}' in text
        )
    assert text.count("# TYPE louiskv_output_tokens_total counter") == 1


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_frees_the_row(fleet: Fleeted, stream: bool) -> None:
    with connect(fleet.port) as plain:
        plain.sendall(raw_post(CHAT, {**LONG, "stream": stream}))
        if stream:
            assert plain.recv(4000).startswith(b"HTTP/1.1 200")
        until(lambda: fleet.figures()["figures"]["running"] == 1)
    until(fleet.idle)


def test_a_full_replica_leads_to_the_other_and_two_to_429(fleet: Fleeted) -> None:
    until(fleet.idle)
    busy = []
    for number in range(2 * (ROWS + QUEUE)):
        busy.append(fleet.begin(stream=True, max_tokens=3000, seed=number))
        # One after the other, so that rows are taken before anything waits.
        until(lambda: _held(fleet) == len(busy))
    told = fleet.figures()["replicas"]
    assert all((each["running"], each["waiting"]) == (ROWS, QUEUE) for each in told.values())
    status, body, headers = fleet.ask(CHAT, LONG)
    assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "retry-after" in headers
    for each in busy:
        each.leave()
    until(fleet.idle)


def _held(fleet: Fleeted) -> int:
    figures = fleet.figures()["figures"]
    return int(figures["running"] + figures["taking_in"] + figures["waiting"])


def test_a_node_is_killed_and_no_request_is_lost_in_silence(fleet: Fleeted) -> None:
    until(fleet.idle)
    busy = [fleet.begin(stream=number % 2 == 0, max_tokens=2000, seed=number) for number in range(2 * ROWS)]
    # Two fronts do not know of each other's requests: one replica may have more of them.
    until(lambda: _held(fleet) == 2 * ROWS)
    assert all(each["running"] for each in fleet.figures()["replicas"].values())
    fleet.cluster.remove_node(fleet.cluster.worker_nodes.copy().pop(), allow_graceful=False)
    outcomes = [each.end() for each in busy]
    lost = [each for each in outcomes if isinstance(each, openai.OpenAIError)]
    assert outcomes.count("length") == len(outcomes) - len(lost), outcomes
    assert 0 < len(lost) < len(outcomes)
    assert all("is lost" in str(each) for each in lost)
    # Those behind it are answered by what is left, and a conversation is taken in anew.
    later = [fleet.begin(stream=number % 2 == 0, max_tokens=20, seed=number) for number in range(ROWS + 1)]
    assert [each.end() for each in later] == ["length"] * len(later)
    assert len(fleet.replicas()) == 1
    assert fleet.ask("/ready")[:2] == (200, {"status": "ready"})
    status, _, _ = fleet.ask(CHAT, {**LONG, "max_tokens": 5})
    assert status == 200
