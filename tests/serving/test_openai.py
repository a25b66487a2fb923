"""The official client, unchanged, over a real socket."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from louiskv.engine import Request, Sampling
from tests.serving.serving import MODEL, Served, served

# The zero embedding of the padding would tie scores, and the random model ends where it likes.
PLAIN: dict[str, Any] = {
    "model": MODEL,
    "temperature": 0,
    "logit_bias": {"0": -100},
    "extra_body": {"ignore_eos": True},
}
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of the sea."}]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.fixture
def client(server: Served) -> openai.OpenAI:
    return server.client()


def answer_of(server: Served, messages: Any, max_tokens: int) -> str:
    prompt = server.prompts.of_chat(messages)
    sampling = Sampling(max_tokens=max_tokens, temperature=0, logit_bias={0: -100.0}, ignore_eos=True)
    return server.engine.submit(Request(prompt=prompt.token_ids, sampling=sampling)).text()


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "louiskv"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("other/model")


def test_a_chat_is_answered_as_the_engine_answers(server: Served, client: openai.OpenAI) -> None:
    made = client.chat.completions.create(messages=HELLO, max_completion_tokens=12, **PLAIN)
    (choice,) = made.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == answer_of(server, HELLO, 12)
    assert choice.finish_reason == "length"
    assert made.object == "chat.completion"
    assert made.id.startswith("chatcmpl-")
    assert made.usage is not None
    assert made.usage.completion_tokens == 12
    assert made.usage.total_tokens == made.usage.prompt_tokens + 12
    assert made.usage.prompt_tokens == len(server.prompts.of_chat(HELLO).token_ids)
    assert made.usage.prompt_tokens_details is not None
    assert made.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=HELLO, max_tokens=20, **PLAIN)
    chunks = list(
        client.chat.completions.create(
            messages=HELLO, max_tokens=20, stream=True, stream_options={"include_usage": True}, **PLAIN
        )
    )
    *parts, last = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason] == ["length"]
    assert all(part.usage is None for part in parts)
    assert last.choices == []
    assert last.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_completions_of_texts_and_of_tokens(server: Served, client: openai.OpenAI) -> None:
    text = "The sea is"
    made = client.completions.create(prompt=text, **PLAIN)
    assert made.usage is not None
    assert made.usage.completion_tokens == 16, "as OpenAI's unless said"
    ids = list(server.prompts.of_text(text).token_ids)
    assert client.completions.create(prompt=ids, **PLAIN).choices[0].text == made.choices[0].text
    several = client.completions.create(prompt=[text, "And the hills"], n=2, max_tokens=5, **PLAIN)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == made.choices[0].text[: len(several.choices[0].text)]
    assert several.choices[2].text == several.choices[3].text != several.choices[0].text
    assert several.usage is not None
    assert several.usage.completion_tokens == 20
    assert several.usage.prompt_tokens == len(ids) + len(server.prompts.of_text("And the hills").token_ids)
    streamed = list(client.completions.create(prompt=[text, "And the hills"], max_tokens=5, stream=True, **PLAIN))
    for index, choice in ((0, several.choices[0]), (1, several.choices[2])):
        texts = [part.choices[0].text for part in streamed if part.choices[0].index == index]
        assert "".join(texts) == choice.text


def test_seeds_and_several_answers(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> list[str | None]:
        made = client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=12, temperature=1.5, **{"seed": 3, **more}
        )
        return [choice.message.content for choice in made.choices]

    first = ask(n=3)
    assert ask(n=3) == first
    assert len(set(first)) == 3
    assert ask()[0] == first[0]
    assert ask(seed=-3) != ask(seed=4)
    streamed = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=12, temperature=1.5, seed=3, n=3, stream=True
    )
    texts = ["", "", ""]
    for part in streamed:
        texts[part.choices[0].index] += part.choices[0].delta.content or ""
    assert texts == first


def test_stop_texts_and_other_settings(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.chat.completions.create(messages=HELLO, max_tokens=30, **{**PLAIN, **more}).choices[0]

    whole = ask().message.content
    middle = whole[len(whole) // 2 :][:2]
    for stop in (middle, ["never at all", middle]):
        cut = ask(stop=stop)
        assert (cut.finish_reason, cut.message.content) == ("stop", whole[: whole.index(middle)])
    assert ask(frequency_penalty=2, presence_penalty=2).message.content != whole
    assert ask(temperature=1, top_p=1e-9, seed=1).message.content == whole
    assert ask(logit_bias={"100": 100, "0": -100}).message.content != whole
    top = ask(temperature=1, extra_body={"top_k": 1, "ignore_eos": True})
    assert top.message.content == whole


def test_a_tau_of_its_own(server: Served, client: openai.OpenAI) -> None:
    asked: Any = {"messages": HELLO, "max_tokens": 60, "stream": True}
    own: Any = {"watched": True, "kept": False}
    rates = []
    for tau in (-1.0, 1.0):
        more = {**PLAIN, "extra_body": {"ignore_eos": True, "louiskv": {**own, "tau": tau}}}
        told = [part.model_extra or {} for part in client.chat.completions.create(**asked, **more)]
        retrieved = [each["louiskv"]["retrieved"] for each in told if "louiskv" in each]
        rates.append(sum(retrieved[1:]) / len(retrieved[1:]))
    assert rates[0] < 0.1 < 0.9 < rates[1]


def test_logprobs(server: Served, client: openai.OpenAI) -> None:
    made = client.chat.completions.create(messages=HELLO, max_tokens=8, logprobs=True, top_logprobs=3, **PLAIN)
    logprobs = made.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 8
    for each in logprobs.content:
        assert each.logprob <= 0
        assert len(each.top_logprobs) == 3
        best = [one.logprob for one in each.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert each.bytes is None or bytes(each.bytes).decode() == each.token
    text = client.completions.create(prompt="The sea", max_tokens=6, logprobs=2, **PLAIN).choices[0].logprobs
    assert text is not None
    assert text.tokens is not None
    assert text.token_logprobs is not None
    assert text.top_logprobs is not None
    assert [len(part) for part in (text.tokens, text.token_logprobs, text.top_logprobs)] == [6, 6, 6]
    streamed = client.chat.completions.create(messages=HELLO, max_tokens=8, logprobs=True, stream=True, **PLAIN)
    told = [part.choices[0].logprobs for part in streamed]
    values = [each.logprob for part in told if part is not None for each in part.content or []]
    assert values == [each.logprob for each in logprobs.content]


def test_many_at_once_and_asynchronously(server: Served) -> None:
    async def main() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def ask(place: int) -> str:
                messages: Any = [{"role": "user", "content": f"Number {place}"}]
                made = await client.chat.completions.create(messages=messages, max_tokens=10, **PLAIN)
                return made.choices[0].message.content or ""

            async def stream(place: int) -> str:
                messages: Any = [{"role": "user", "content": f"Number {place}"}]
                parts = await client.chat.completions.create(messages=messages, max_tokens=10, stream=True, **PLAIN)
                return "".join([part.choices[0].delta.content or "" async for part in parts])

            got = await asyncio.gather(*(each(place) for place in range(6) for each in (ask, stream)))
            return list(got[::2]), list(got[1::2])

    whole, streamed = asyncio.run(main())
    assert whole == streamed
    assert whole == [answer_of(server, [{"role": "user", "content": f"Number {place}"}], 10) for place in range(6)]
    assert len(set(whole)) > 1


def test_the_endpoints_are_described(server: Served) -> None:
    told = server.ask("/openapi.json")[1]
    assert told["info"]["title"] == "louiskv"
    paths = {"/v1/chat/completions", "/v1/completions", "/louiskv/v1/figures", "/louiskv/v1/answers/{name}", "/metrics"}
    assert paths <= set(told["paths"])
    body = told["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "model", "louiskv", "top_k"} <= set(body["properties"])
    assert all(each["summary"] for path in told["paths"].values() for each in path.values())
