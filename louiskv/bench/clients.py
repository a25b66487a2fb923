"""Clients of a server, in a process of their own: they ask, and note on their own clock when tokens come.

It is run by its path and imports nothing of louiskv, so that it begins at once and takes little of the machine whose
server is measured. Jobs come as lines of JSON; each request that has ended is answered with a line, each job with an
empty one.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict

import openai

# What openai speaks through is another library in later versions; in earlier ones its errors pass through a stream.
TRANSPORTS = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
TIMED_OUT = (TimeoutError, openai.APITimeoutError, *(each.TimeoutException for each in TRANSPORTS))
CUT_OFF = (openai.APIConnectionError, *(each.HTTPError for each in TRANSPORTS))


class Job(TypedDict):
    """What is to be asked.

    Attributes:
        address: Of the server.
        model: Its name there.
        prompts: Token ids of each request.
        output: Tokens of each answer.
        clients: Clients, each of which asks one request after another; None where `arrivals` say when each is asked.
        arrivals: Seconds from the beginning.
        timeout: Seconds that a request may take.
    """

    address: str
    model: str
    prompts: list[list[int]]
    output: int
    clients: int | None
    arrivals: list[float]
    timeout: float


class Told(TypedDict):
    """What has become of one request; times are seconds from the beginning.

    Attributes:
        number: Its place among the prompts.
        status: "200" for a whole answer; else the status of the refusal, "timeout", "connection", or how it ended.
        prompt_tokens: Tokens of its prompt.
        output_tokens: Tokens of the answer, as the server has counted them; 0 where it was not whole.
        begin: When it was asked; where it has an arrival, that: what comes late for a busy client has waited as well.
        times: When each event with text came.
        end: When all was over.
    """

    number: int
    status: str
    prompt_tokens: int
    output_tokens: int
    begin: float
    times: list[float]
    end: float


async def drive(job: Job, tell: Callable[[Told], None]) -> None:
    """Ask all that a job says, and tell of each request when it has ended."""
    began = time.perf_counter()
    async with openai.AsyncOpenAI(
        base_url=f"{job['address']}/v1", api_key="none", max_retries=0, timeout=job["timeout"]
    ) as client:

        async def ask(number: int, begin: float) -> None:
            tell(await _asked(client, job, number, began, begin))

        async with asyncio.TaskGroup() as group:
            for task in _tasks(job, ask, began):
                group.create_task(task)


def _tasks(job: Job, ask: Callable[[int, float], Awaitable[None]], began: float) -> list[Any]:
    """As many coroutines as there are clients, or one for each request that comes at its time."""
    numbers = iter(range(len(job["prompts"])))

    async def client() -> None:
        for number in numbers:
            await ask(number, time.perf_counter() - began)

    async def arrival(number: int, at: float) -> None:
        await asyncio.sleep(began + at - time.perf_counter())
        await ask(number, at)

    if job["clients"] is None:
        return [arrival(*each) for each in enumerate(job["arrivals"])]
    return [client() for _ in range(job["clients"])]


async def _asked(client: openai.AsyncOpenAI, job: Job, number: int, began: float, begin: float) -> Told:
    times: list[float] = []
    output_tokens = 0
    try:
        async with asyncio.timeout(job["timeout"]):
            status, output_tokens = await _read(client, job, number, lambda: times.append(time.perf_counter() - began))
    except TIMED_OUT:
        status = "timeout"
    except openai.APIStatusError as error:
        status = str(error.status_code)
    except CUT_OFF:
        status = "connection"
    except openai.APIError as error:
        status = str(error.code or "error")
    except openai.OpenAIError:
        status = "error"
    return Told(
        number=number,
        status=status,
        prompt_tokens=len(job["prompts"][number]),
        output_tokens=output_tokens if status == "200" else 0,
        begin=begin,
        times=times,
        end=time.perf_counter() - began,
    )


async def _read(client: openai.AsyncOpenAI, job: Job, number: int, came: Callable[[], None]) -> tuple[str, int]:
    """Read an answer to its end: its status, and its tokens as the server has counted them."""
    # What is asked is new to the server, and nobody comes back to it.
    own = {"ignore_eos": True, "louiskv": {"kept": False}}
    stream = await client.completions.create(
        model=job["model"],
        prompt=job["prompts"][number],
        max_tokens=job["output"],
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=own,
    )
    reason: str | None = None
    output_tokens = 0
    async with stream as chunks:
        async for chunk in chunks:
            for choice in chunk.choices:
                if choice.text:
                    came()
                reason = choice.finish_reason
            if chunk.usage is not None:
                output_tokens = chunk.usage.completion_tokens
    return ("200" if reason == "length" else str(reason)), output_tokens


def main() -> None:
    """Do the jobs that come by standard input."""
    for line in sys.stdin:
        asyncio.run(drive(json.loads(line), lambda told: print(json.dumps(told), flush=True)))
        print(flush=True)


if __name__ == "__main__":
    main()
