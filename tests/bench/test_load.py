"""A load test of a real server over a tiny random model; no time is asserted."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any, cast

import pytest
from openai import OpenAIError
from transformers import PreTrainedModel

from louiskv import Full
from louiskv.bench import clients, load
from louiskv.bench import served as serving
from louiskv.bench.clients import Job, Told, drive
from louiskv.bench.load import Asked, Load, LoadBench, Room
from louiskv.bench.load_figures import figures_of, spread
from louiskv.bench.runner import Bench, Entry, Record
from louiskv.bench.served import Clients, Peaks
from louiskv.contestants import Contestant
from louiskv.engine import Engine
from louiskv.errors import HostMemoryError, SettingsError
from louiskv.methods import Method
from louiskv.results import Results
from tests.engine.asking import SMALL
from tests.serving.serving import MODEL, VOCABULARY, Served, a_model, served, tokenizer

ASKED = Asked(prompts=(20, 90), output=6, requests=4)
TEXT = [token % 200 + 5 for token in range(0, 3000, 7)]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return a_model()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(rows=2) as running:
        yield running


def entry(name: str, method: Method) -> Entry:
    return Entry(Contestant(name, method))


def job(server: Served, **other: Any) -> Job:
    asked: Any = {"address": server.url, "model": MODEL, "prompts": [[number + 5] * 20 for number in range(5)]}
    return cast(Job, {**asked, "output": 4, "clients": 1, "arrivals": [], "timeout": 60.0, **other})


ONE = [[5] * 20]


def driven(asked: Job) -> list[Told]:
    told: list[Told] = []
    asyncio.run(drive(asked, told.append))
    return sorted(told, key=lambda each: each["number"])


def test_prompts_are_evenly_mixed_and_begin_differently() -> None:
    asked = Asked(prompts=(16, 700), requests=7)
    prompts = asked.cut(TEXT)
    assert sorted(map(len, prompts)) == [16] * 4 + [700] * 3
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 7
    assert prompts == asked.cut(TEXT) and prompts != Asked(prompts=(16, 700), requests=7, seed=1).cut(TEXT)
    endless = TEXT * 3
    assert all(any(endless[at : at + len(each)] == each for at in range(len(TEXT))) for each in prompts)
    with pytest.raises(SettingsError, match="The text has 6 tokens, too few for 7 prompts"):
        asked.cut(TEXT[:6])


def test_arrivals_come_at_their_rate() -> None:
    times = Asked(requests=2000).arrivals(4.0)
    assert times[0] == 0 and times == sorted(times) == Asked(requests=2000).arrivals(4.0)
    assert times[-1] / 1999 == pytest.approx(1 / 4, rel=0.1)


def test_figures_of_what_clients_have_noted() -> None:
    def one(number: int, status: str, prompt: int, first: float) -> Told:
        times = [first + 1, first + 1.5, first + 2.5]
        whole = status == "200"
        return Told(
            number=number, status=status, prompt_tokens=prompt, output_tokens=3 * whole, begin=1.0, times=times, end=5.0
        )

    told = [one(0, "200", 10, 1), one(1, "200", 10, 2), one(2, "200", 10, 6), one(3, "200", 50, 8)]
    told += [one(4, "429", 50, 0), one(5, "timeout", 50, 0), one(6, "429", 10, 0)]
    figures = figures_of(told, Peaks(100, 20, 300, 3), _figures(), 2.5)
    assert (figures["answered"], figures["failed"]) == (4, {"429": 2, "timeout": 1})
    assert (figures["prompt_tokens"], figures["output_tokens"], figures["seconds"]) == (80, 12, 4.0)
    assert (figures["tokens_per_second"], figures["all_tokens_per_second"]) == (3.0, 23.0)
    assert figures["first_token_seconds"]["p50"] == 4.0 and figures["first_token_seconds"]["most"] == 8.0
    assert figures["first_token_by_prompt"]["10"]["p50"] == 2.0 and figures["slowest_over_median"] == 3.0
    assert figures["between_seconds"]["p50"] == 0.75 and figures["answer_seconds"]["p99"] == 4.0
    assert (figures["peak_device_bytes"], figures["most_at_once"], figures["processor_seconds"]) == (120, 3, 2.5)
    nothing = figures_of(told[4:], Peaks(), _figures(), 0.0)
    assert nothing["answered"] == 0 and nothing["first_token_seconds"] is nothing["slowest_over_median"] is None
    assert spread([3.0]) == {"p50": 3.0, "p90": 3.0, "p99": 3.0, "most": 3.0} and spread([]) is None


def _figures() -> Any:
    with Engine(a_model(), tokenizer(), Full(), rows=1) as engine:
        return engine.figures()


def test_a_client_asks_one_request_after_another(server: Served) -> None:
    told = driven(job(server))
    assert [each["status"] for each in told] == ["200"] * 5
    assert all(each["output_tokens"] == 4 and each["prompt_tokens"] == 20 for each in told)
    assert all(earlier["end"] <= later["begin"] for earlier, later in itertools.pairwise(told))
    assert all(each["begin"] < each["times"][0] <= each["times"][-1] <= each["end"] for each in told if each["times"])
    assert server.engine.figures().kept == 0


def test_others_come_at_their_time_whatever_was_answered(server: Served) -> None:
    arrivals = [0.0, 0.1, 0.2, 0.3, 0.4]
    told = driven(job(server, clients=None, arrivals=arrivals))
    assert [each["status"] for each in told] == ["200"] * 5
    assert [each["begin"] for each in told] == arrivals


def test_what_comes_late_for_a_busy_client_has_waited_since_its_arrival(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def busy(_: Any, job: Job, number: int, came: Any) -> tuple[str, int]:
        time.sleep(0.3 if number == 0 else 0)
        return "200", job["output"]

    monkeypatch.setattr(clients, "_read", busy)
    _, late = driven(job(server, clients=None, arrivals=[0.0, 0.01], prompts=ONE * 2))
    assert late["begin"] == 0.01 and late["end"] - late["begin"] > 0.28


def test_what_is_not_answered_is_told_by_its_status(server: Served) -> None:
    with served(rows=1, queue=1) as narrow:
        told = driven(job(narrow, clients=5, output=50))
    statuses = [each["status"] for each in told]
    assert statuses.count("429") >= 1 and set(statuses) == {"200", "429"}
    assert all(each["output_tokens"] == 0 for each in told if each["status"] == "429")
    assert [each["status"] for each in driven(job(server, output=3000, timeout=0.05, prompts=ONE))] == ["timeout"]
    assert [each["status"] for each in driven(job(server, model="other", prompts=ONE))] == ["404"]
    nobody: Any = {**job(server), "address": "http://127.0.0.1:9"}
    assert {each["status"] for each in driven(nobody)} == {"connection"}


EVENT = b'data: {"id": "1", "object": "text_completion", "created": 1, "model": "tiny", "choices": []}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_connection_that_breaks_off_within_a_stream_is_told_by_its_status(server: Served) -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        await writer.drain()
        writer.close()

    async def ask() -> list[Told]:
        told: list[Told] = []
        async with await asyncio.start_server(broken, "127.0.0.1", 0) as listening:
            host, port = listening.sockets[0].getsockname()
            broken_off: Any = {**job(server), "address": f"http://{host}:{port}"}
            await drive(broken_off, told.append)
        return told

    assert [each["status"] for each in asyncio.run(ask())] == ["connection"] * 5


@pytest.mark.parametrize("transport", clients.TRANSPORTS)
def test_errors_of_the_transport_are_told_by_their_status(
    server: Served, monkeypatch: pytest.MonkeyPatch, transport: Any
) -> None:
    errors = iter([transport.ReadError("cut"), transport.ReadTimeout("late"), OpenAIError("wrong")])

    async def read(*_: Any) -> tuple[str, int]:
        raise next(errors)

    monkeypatch.setattr(clients, "_read", read)
    assert [each["status"] for each in driven(job(server, prompts=ONE * 3))] == ["connection", "timeout", "error"]


def test_each_method_is_measured_once(model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    field = [entry("full", Full()), entry("louiskv", SMALL)]

    def run(*loads: Load, **room: int) -> list[Record]:
        bench = Bench(model, tokenizer(), Results(tmp_path / "load.jsonl"), lambda what, *_: said.append(what))
        return list(LoadBench(bench, ASKED, Room(prefill_chunk=32, **room), TEXT, "text").run(loads, field))

    first = run(Load(clients=1), Load(clients=2))
    assert [(each["clients"], each["method"]) for each in first] == [
        (n, m) for n in (1, 2) for m in ("full", "louiskv")
    ]
    assert set(said) == {f"{n} clients: {m}" for n in (1, 2) for m in ("full", "louiskv")} and len(said) == 16
    for each in first:
        assert (each["kind"], each["answered"], each["failed"]) == ("serve", 4, {})
        assert (each["prompt_tokens"], each["output_tokens"], each["decoded_tokens"]) == (220, 24, 24)
        assert each["provenance"]["torch"] and each["seconds"] > 0 and each["prompts"] == [20, 90]
    full, ours = first[:2]
    assert full["fetched_bytes"] == full["peak_host_bytes"] == 0 and full["retrieval_rate"] == 0
    assert ours["fetched_bytes"] > 0 and 0 < ours["retrieval_rate"] <= 1
    # Time to look is not always there, but for what stays.
    (open_loop, _) = run(Load(rate=50.0))
    assert (open_loop["clients"], open_loop["rate"], open_loop["answered"]) == (None, 50.0, 4)
    monkeypatch.setattr(load, "served", _measured_again)
    assert run(Load(clients=1), Load(clients=2)) == first
    with pytest.raises(AssertionError, match="measured again"):
        run(Load(clients=1), rows=4)


def test_the_start_of_a_server_costs_no_processor_seconds(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, start = [0.0], serving.served

    def slow(*given: Any) -> Any:
        clock[0] += 1000
        return start(*given)

    monkeypatch.setattr(load, "served", slow)
    monkeypatch.setattr(time, "process_time", lambda: clock[0])
    bench = Bench(model, tokenizer(), Results(tmp_path / "load.jsonl"))
    made = LoadBench(bench, ASKED, Room(prefill_chunk=32), TEXT, "text")
    (told,) = made.run([Load(clients=1)], [entry("full", Full())])
    assert told["processor_seconds"] == 0


def _measured_again(*_: Any) -> None:
    raise AssertionError("measured again")


def test_what_has_no_memory_is_refused_before_anybody_asks(model: PreTrainedModel, tmp_path: Path) -> None:
    bench = Bench(model, tokenizer(), Results(tmp_path / "load.jsonl"))
    with pytest.raises(HostMemoryError, match="A sequence of 96 tokens needs"):
        list(
            LoadBench(bench, ASKED, Room(host_memory=1000), TEXT, "text").run(
                [Load(clients=1)], [entry("full", Full())]
            )
        )
    assert not list(bench.results)


@pytest.mark.parametrize(
    ("failed", "message"), [(OSError("No socket."), "No socket."), (None, "The server has ended before")]
)
def test_a_server_that_does_not_start_is_told(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, failed: Exception | None, message: str
) -> None:
    async def serve(*_: Any) -> None:
        if failed:
            raise failed

    monkeypatch.setattr(serving, "serve", serve)
    with (
        Engine(model, tokenizer(), Full(), rows=1) as engine,
        pytest.raises((OSError, RuntimeError), match=message),
        serving.served(engine, tokenizer(), MODEL, Full()),
    ):
        raise AssertionError("It was asked.")


def test_a_server_that_ends_too_early_is_told(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(*given: Any) -> None:
        loop = asyncio.get_running_loop()
        given[-1](lambda: loop.call_soon_threadsafe(print))
        raise OSError("No more.")

    monkeypatch.setattr(serving, "serve", serve)
    with (
        Engine(model, tokenizer(), Full(), rows=1) as engine,
        pytest.raises(OSError, match="No more."),
        serving.served(engine, tokenizer(), MODEL, Full()),
    ):
        time.sleep(0.05)


def test_peaks_that_could_not_be_looked_at_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        looked = Event()

        def figures(self) -> None:
            self.looked.set()
            raise OSError("No figures.")

    monkeypatch.setattr(serving, "EVERY", 0.001)
    broken: Any = Broken()
    with pytest.raises(OSError, match="No figures."), serving.watched(broken):
        assert broken.looked.wait(30)
    with pytest.raises(ValueError, match="Of its own."), serving.watched(broken):
        raise ValueError("Of its own.")


def test_clients_that_end_too_early_are_told(server: Served) -> None:
    with Clients() as clients:
        clients._process.kill()
        with pytest.raises(RuntimeError, match="The clients have ended before their work was done, with -9"):
            list(clients.drive(job(server)))


@pytest.mark.parametrize("wrong", [{"clients": 0}, {"rate": 0.0}])
def test_wrong_loads(wrong: Any) -> None:
    with pytest.raises(SettingsError, match="is not allowed"):
        Load(**wrong)


def test_the_text_has_tokens_of_the_model() -> None:
    assert max(TEXT) < VOCABULARY
