"""How answers end, and the engine: cancelled, refused, with an error, or stopped."""

import asyncio
import time
from typing import Any

import pytest
import torch

from louiskv import SettingsError, UnsupportedModelError
from louiskv.cache_layer import CacheLayer
from louiskv.engine import Request, Sampling
from louiskv.engine import engine as engine_module
from louiskv.engine.sequences import Prompt
from louiskv.engine.text import Text
from louiskv.engine.turns import Turns
from louiskv.errors import EngineStoppedError, HostMemoryError, QueueFullError, RequestError
from louiskv.shard import Shard
from tests.engine.asking import DEVICE, GREEDY, SMALL, a_model, alone, ended, engine, greedily, ids
from tests.families import tiny


@pytest.mark.parametrize("when", ["waiting", "prompt", "answer"])
def test_cancelled_at_any_time(when: str) -> None:
    with engine(rows=1) as running:
        first = running.submit(greedily(ids(40), 200))
        iterator = iter(first)
        next(iterator)
        if when == "answer":
            gone = first
        else:
            gone = running.submit(greedily(ids(900 if when == "prompt" else 30, 2), 10))
            if when == "prompt":
                first.cancel()
                while running.figures().taking_in == 0:
                    time.sleep(0.001)
        gone.cancel()
        last = list(iterator)[-1] if gone is first else ended(gone)[1]
        assert last.finish_reason == "cancelled"
        assert last.usage is not None
        after = running.submit(greedily(ids(20, 3), 5))
        if when == "waiting":
            first.cancel()
        assert ended(after)[0] == alone(SMALL, [ids(20, 3)], 5)[0]


def test_who_stops_listening_cancels() -> None:
    with engine() as running:
        for _ in running.run(greedily(ids(30), 500)):
            break

        async def listen() -> None:
            async for _ in running.stream(greedily(ids(30), 500)):
                break

        asyncio.run(listen())
        while running.figures().running:
            time.sleep(0.001)
        assert running.figures().output_tokens < 1000


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (Request(prompt=[]), RequestError, "The prompt is empty"),
        (Request(prompt=[3, 200]), RequestError, "has token 200, but the model knows 0 to 199"),
        (greedily(ids(90), 20), RequestError, "90 tokens of prompt and 20 of answer are more than the 100"),
        (Request(prompt=[3], sampling=Sampling(logit_bias={300: 1.0})), SettingsError, "logit_bias names token 300"),
    ],
)
def test_what_can_never_be_answered_is_refused_at_once(asked: Request, error: type[Exception], message: str) -> None:
    with engine(max_length=100) as running, pytest.raises(error, match=message):
        running.submit(asked)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2},
        {"logprobs": 21},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"repetition_penalty": 0},
        {"logit_bias": {3: 1000.0}},
    ],
)
def test_sampling_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"is not allowed"):
        Sampling(**wrong)


def test_a_full_queue_is_refused_at_once() -> None:
    with engine(rows=1, queue=2) as running:
        first = running.submit(greedily(ids(30), 300))
        next(iter(first))
        answers = [running.submit(greedily(ids(20), 5)) for _ in range(2)]
        with pytest.raises(QueueFullError, match="2 requests wait already"):
            running.submit(greedily(ids(20), 5))
        answers[0].cancel()
        answers.append(running.submit(greedily(ids(20), 5)))
        first.cancel()
        assert [ended(answer)[1].finish_reason for answer in answers] == ["cancelled", "length", "length"]


def test_a_queue_counts_those_for_whom_no_row_is_free() -> None:
    with engine(rows=3, queue=2) as running:
        # None of them is begun between the calls.
        with running._turns.changed:
            answers = [running.submit(greedily(ids(20), 5)) for _ in range(5)]
            with pytest.raises(QueueFullError, match="5 requests wait already"):
                running.submit(greedily(ids(20), 5))
        assert [ended(answer)[1].finish_reason for answer in answers] == ["length"] * 5


def test_an_error_of_one_request_disturbs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine() as running:
        good = running.submit(greedily(ids(30), 60))
        sampler_put = running._turns.batch.join

        def fails(prompt: Any, sampling: Sampling, token_ids: list[int]) -> int:
            if len(token_ids) == 25:
                raise MemoryError("no room")
            return sampler_put(prompt, sampling, token_ids)

        monkeypatch.setattr(running._turns.batch, "join", fails)
        last = ended(running.submit(greedily(ids(25), 5)))[1]
        assert last.finish_reason == "error"
        assert isinstance(last.error, MemoryError)
        assert ended(good)[0] == alone(SMALL, [ids(30)], 60)[0]


def test_a_device_that_is_lost_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> int:
        raise torch.AcceleratorError("an illegal access")

    with engine() as running:
        monkeypatch.setattr(running._turns.batch, "join", fails)
        last = ended(running.submit(greedily(ids(25), 5)))[1]
        assert (last.finish_reason, type(last.error)) == ("error", torch.AcceleratorError)
        running._loop._thread.join(30)
        assert not running.alive, "so that another one takes its place"
        with pytest.raises(EngineStoppedError, match="illegal access"):
            running.submit(greedily(ids(25), 5))


def test_no_row_is_free_while_its_prompt_is_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    with engine(rows=1) as running:
        take_in = Prompt.take_in

        def looks(self: Prompt, *given: Any) -> int:
            seen.append(running._turns.free_rows)
            return take_in(self, *given)

        monkeypatch.setattr(Prompt, "take_in", looks)
        ended(running.submit(greedily(ids(40), 5)))
    assert len(seen) > 1 and set(seen) == {0}


def test_what_cannot_be_made_text_of_ends_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    push = Text.push

    def fails(self: Text, token_id: int) -> str:
        if self.stop == ("never",):
            raise UnicodeError("no text")
        return push(self, token_id)

    monkeypatch.setattr(Text, "push", fails)
    with engine() as running:
        good = running.submit(greedily(ids(30), 60))
        bad = running.submit(Request(prompt=ids(25), sampling=Sampling(max_tokens=5, stop=("never",))))
        last = ended(bad)[1]
        assert last.finish_reason == "error"
        assert isinstance(last.error, UnicodeError)
        assert ended(good)[0] == alone(SMALL, [ids(30)], 60)[0]
        assert running.figures().running == 0


def test_a_row_that_could_not_be_filled_is_empty_in_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(rows=2) as running:
        good = running.submit(greedily(ids(30), 200))
        next(iter(good))
        cache = running._turns.batch.cache
        assert cache is not None
        last_layer = cache.managed[-1]

        def fails(*_: Any) -> None:
            raise MemoryError("no room")

        with monkeypatch.context() as patch:
            # The batch grows first, so that its layers are new: patch their class.
            patch.setattr(type(last_layer.state), "put", fails)
            assert ended(running.submit(greedily(ids(25), 5)))[1].finish_reason == "error"
        after = running.submit(greedily(ids(25), 5))
        assert ended(after)[0] == alone(SMALL, [ids(25)], 5)[0]


def test_rows_that_are_lost_end_all_that_run_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    respread = CacheLayer.spread

    def fails(self: CacheLayer, rows: list[int], batch_size: int) -> CacheLayer:
        if self.index == 1 and batch_size == 2:
            raise HostMemoryError("no room")
        return respread(self, rows, batch_size)

    with engine() as running:
        first = running.submit(greedily(ids(30), 500))
        next(iter(first))
        with monkeypatch.context() as patch:
            patch.setattr(CacheLayer, "spread", fails)
            lasts = [ended(running.submit(greedily(ids(20), 5)))[1], list(first)[-1]]
        assert all(isinstance(last.error, HostMemoryError) for last in lasts)
        assert ended(running.submit(greedily(ids(20), 5)))[0] == alone(SMALL, [ids(20)], 5)[0]


@pytest.mark.parametrize("cancelled", [False, True])
def test_an_answer_that_is_done_is_done_though_its_end_loses_the_rows(
    cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are given back are copied, for which there may be no memory."""
    with engine(SMALL, rows=4) as running:
        others = [running.submit(greedily(ids(30, seed), 500)) for seed in range(2)]
        done = running.submit(greedily(ids(30, 3), 500 if cancelled else 40))
        next(iter(done))
        for other in others:
            next(iter(other))
        batch = running._turns.batch
        release = type(batch)._release

        def fails(self: Any) -> None:
            if len(self._row_of) == 2:
                self.reset()
                raise HostMemoryError("no room")
            release(self)

        with monkeypatch.context() as patch:
            patch.setattr(type(batch), "_release", fails)
            if cancelled:
                done.cancel()
            last = list(done)[-1]
            lasts = [list(other)[-1] for other in others]
        assert last.finish_reason == ("cancelled" if cancelled else "length")
        assert all(isinstance(other.error, HostMemoryError) for other in lasts)
        assert ended(running.submit(greedily(ids(20), 5)))[0] == alone(SMALL, [ids(20)], 5)[0]
        assert running.figures().running == 0


def test_a_cancelled_answer_shows_what_was_held_back() -> None:
    with engine() as running:
        free = "".join(piece.text for piece in running.run(greedily(ids(30), 300)))
        # Begins to come with the last characters, and is never there.
        stop = tuple(f"{each}\0never" for each in set(free))
        answer = running.submit(Request(prompt=ids(30), sampling=Sampling(max_tokens=300, stop=stop, **GREEDY)))
        iterator = iter(answer)
        pieces = [next(iterator) for _ in range(40)]
        answer.cancel()
        pieces += list(iterator)
    assert pieces[-1].finish_reason == "cancelled"
    assert pieces[-1].text
    assert free.startswith("".join(piece.text for piece in pieces))


def test_a_model_that_is_split_over_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model()
    monkeypatch.setattr(engine_module, "shard_of", lambda model: Shard(rank=0, num_ranks=2))
    with pytest.raises(UnsupportedModelError, match="split over several processes"):
        engine(model=model)
    assert model.config._attn_implementation == "eager"


def test_a_graph_that_cannot_be_is_refused_at_once() -> None:
    if DEVICE.type != "cuda":
        with pytest.raises(SettingsError, match="graph=True is not possible: the model is on cpu"):
            engine(graph=True)


def test_an_error_of_a_step_ends_all_that_run_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine() as running:
        answers = [running.submit(greedily(ids(30, seed), 500)) for seed in range(2)]
        while running.figures().running < 2:
            time.sleep(0.001)
        with monkeypatch.context() as patch:

            def fails(*_: Any) -> None:
                raise RuntimeError("the device is lost")

            patch.setattr(running._turns.batch, "run", fails)
            lasts = [list(answer)[-1] for answer in answers]
        assert [last.finish_reason for last in lasts] == ["error"] * 2
        assert all("lost" in str(last.error) for last in lasts)
        assert running.alive
        assert ended(running.submit(greedily(ids(20), 5)))[0] == alone(SMALL, [ids(20)], 5)[0]


def test_an_error_of_the_loop_itself_ends_the_engine_which_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Turns) -> None:
        raise ZeroDivisionError("of the loop")

    model = a_model()
    running = engine(model=model)
    with monkeypatch.context() as patch:
        patch.setattr(Turns, "turn", fails)
        answer = running.submit(greedily(ids(20), 5))
        with pytest.raises(ZeroDivisionError):
            answer.text()
    with pytest.raises(EngineStoppedError, match=r"An error has ended the engine: ZeroDivisionError.*Make a new one"):
        running.submit(greedily(ids(20), 5))
    assert not running.alive
    assert running.figures().running == 0
    running.stop()
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("finish", [True, False])
def test_stopping_finishes_or_cancels_and_leaves_the_model_as_it_was(finish: bool) -> None:
    model = a_model()
    running = engine(model=model, rows=2)
    answers = [running.submit(greedily(ids(30, seed), 40)) for seed in range(5)]
    next(iter(answers[0]))
    running.stop(finish=finish)
    reasons = [list(answer)[-1].finish_reason for answer in answers]
    if finish:
        assert reasons == ["length"] * 5
    else:
        assert reasons[-1] == "cancelled"
    with pytest.raises(EngineStoppedError, match="The engine was stopped"):
        running.submit(greedily(ids(30), 4))
    assert model.config._attn_implementation == "eager"
    assert not model._forward_pre_hooks
    assert running.figures().rows == 0
    running.stop()


def test_without_work_the_loop_sleeps() -> None:
    with engine() as running:
        ended(running.submit(greedily(ids(20), 3)))
        before, process = running._turns.number, time.process_time()
        time.sleep(0.3)
        assert running._turns.number == before
        assert time.process_time() - process < 0.15


def test_models_whose_rows_cannot_differ_are_refused_and_left_as_they_were() -> None:
    model = tiny("gemma3_text")
    with pytest.raises(UnsupportedModelError, match=r"DynamicSlidingWindowLayer.*Use louiskv.attach"):
        engine(model=model)
    assert model.config._attn_implementation == "eager"
