"""Where an answer has looked, beside the text of its prompt."""

from typing import Any

import pytest
import torch

from louiskv import LouisKV
from louiskv.engine import Attended
from louiskv.serving.desk import MAX_WATCHED
from louiskv.serving.heat import LEVELS, heat_of
from tests.serving.serving import MODEL, served, tokenizer, until

METHOD = LouisKV(budget=40, sink=3, window=12, unit_size=4, max_segment=8, dense_layers=1, tau=0.3)
TEXT = "Caf\xe9s \N{CROISSANT} of the old town open before the sun, and bakers rise earlier than that. "
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}], "max_tokens": 20}


@pytest.mark.parametrize("stream", [True, False])
def test_runs_make_up_the_whole_prompt(stream: bool) -> None:
    with served(METHOD) as server:
        asked = {**ASKED, "ignore_eos": True, "louiskv": {"watched": True}, "stream": stream}
        status, told, _ = server.ask("/v1/chat/completions", asked)
        assert status == 200
        name = told.split('"id":"')[1].split('"')[0] if stream else told["id"]
        seen = server.ask(f"/louiskv/v1/answers/{name}")[1]
        prompt = server.prompts.of_chat(ASKED["messages"])
    assert seen["ended"] is True
    assert len(seen["steps"]) == 19
    if stream:
        assert told.count('"louiskv":{"retrieved":') == 20
    runs = seen["heat"]["runs"]
    assert "".join(text for text, _, _ in runs) == prompt.text
    assert seen["heat"]["layers"] == 1, "the dense layer attends to everything and tells nothing"
    total = seen["heat"]["total"]
    assert total == 2 * 19
    assert all(0 <= count <= total for _, count, _ in runs)
    assert runs[0][1:] == [total, len(LEVELS)], "sinks are always attended to"
    assert len({level for _, _, level in runs}) > 2
    assert len(runs) < len(prompt.token_ids)


def test_an_answer_that_is_not_watched_tells_nothing_and_plain_chunks_are_plain() -> None:
    with served(METHOD) as server:
        _, told, _ = server.ask("/v1/chat/completions", {**ASKED, "stream": True})
        assert "louiskv" not in told.replace("chatcmpl", "")
        name = server.ask("/v1/chat/completions", ASKED)[1]["id"]
        assert server.ask(f"/louiskv/v1/answers/{name}")[0] == 404


def test_it_can_be_seen_while_the_answer_is_being_given_and_the_oldest_are_forgotten() -> None:
    with served(METHOD) as server:
        watched: dict[str, Any] = {"extra_body": {"ignore_eos": True, "louiskv": {"watched": True}}}
        stream = server.client().chat.completions.create(**{**ASKED, "max_tokens": 1000}, stream=True, **watched)
        iterator = iter(stream)
        name = next(iterator).id
        until(lambda: len(server.ask(f"/louiskv/v1/answers/{name}")[1]["steps"]) > 5)
        seen = server.ask(f"/louiskv/v1/answers/{name}")[1]
        assert not seen["ended"]
        assert seen["heat"]["total"] == 2 * len(seen["steps"])
        stream.close()
        until(lambda: server.engine.figures().running == 0)
        assert server.ask(f"/louiskv/v1/answers/{name}")[1]["ended"]
        for _ in range(MAX_WATCHED):
            server.ask("/v1/chat/completions", {**ASKED, "max_tokens": 1, "louiskv": {"watched": True}})
        assert server.ask(f"/louiskv/v1/answers/{name}")[0] == 404


def test_a_budget_for_everything_has_nothing_to_choose() -> None:
    attended = Attended((0, 1), (2, 2), torch.ones(2, 5), torch.full((2, 5), 6), (0.0, 0.0, 0.0))
    heat = heat_of([90, 91, 92, 93], attended, lambda ids: "x" * len(ids))
    assert heat.to_dict() == {"runs": [["xxxx", 0.0, 0]], "total": 0, "layers": 0, "levels": LEVELS}


def test_no_run_ends_within_a_character() -> None:
    words = tokenizer()
    ids = words("ab\N{CROISSANT}cd", add_special_tokens=False)["input_ids"]
    assert len(ids) == 8
    counts = torch.tensor([[0, 0, 9, 9, 0, 0, 5, 5]])
    attended = Attended((0,), (10,), counts, counts, (0.0,))
    heat = heat_of(ids, attended, lambda part: str(words.decode(part)))
    assert [run.text for run in heat.runs] == ["ab", "\N{CROISSANT}", "cd"]
    assert [run.count for run in heat.runs] == [0, 4.5, 5]
