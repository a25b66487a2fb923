"""Answers of the engine, against the same asked alone."""

import asyncio
import threading
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from louiskv import LouisKV, StreamingLLM
from louiskv.engine import Request, Sampling
from louiskv.engine.memory import Memory
from louiskv.errors import HostMemoryError, RequestError
from tests.engine.asking import CHUNK, GREEDY, SMALL, WHOLE, a_model, alone, ended, engine, greedily, ids
from tests.methods.test_contract import CASES, NAMES


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_each_request_alone(name: str) -> None:
    method = CASES[name][1]
    lengths, wanted = (50, 7, 33, 90, 21, 64), (12, 25, 9, 18, 30, 5)
    with engine(method, rows=3) as running:
        answers = [
            running.submit(greedily(ids(length, length), number))
            for length, number in zip(lengths, wanted, strict=True)
        ]
        got = [ended(answer) for answer in answers]
    for length, number, (answer, last) in zip(lengths, wanted, got, strict=True):
        assert answer == alone(method, [ids(length, length)], number)[0], f"the prompt of {length}"
        assert last.finish_reason == "length"
        assert last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.cached_tokens) == (length, 0)
        assert last.usage.completion_tokens == number


def test_the_same_seed_gives_the_same_text_whatever_else_runs() -> None:
    asked = Request(prompt=ids(40), sampling=Sampling(max_tokens=40, temperature=1.2, top_p=0.95, seed=7))
    with engine() as running:
        (first, _) = ended(running.submit(asked))
        others = [
            running.submit(Request(prompt=ids(9 + seed, seed), sampling=Sampling(max_tokens=30, seed=seed)))
            for seed in range(5)
        ]
        again = running.submit(asked)
        assert ended(again)[0] == first
        assert len({tuple(ended(answer)[0]) for answer in others}) == 5
        other = Request(prompt=ids(40), sampling=Sampling(max_tokens=40, temperature=1.2, top_p=0.95, seed=8))
        assert ended(running.submit(other))[0] != first


@pytest.mark.parametrize("name", NAMES)
def test_the_second_turn_takes_in_only_what_is_new(name: str) -> None:
    method = CASES[name][0]
    first, more = ids(50), ids(20, 1)
    expected = alone(method, [first, more], 12)
    with engine(method, kept_memory=2**30) as running:
        (answer, _) = ended(running.submit(greedily(first, 12)))
        assert answer == expected[0]
        assert running.figures().kept == 1
        before = running.figures().prompt_tokens
        second, last = ended(running.submit(greedily([*first, *answer, *more], 12)))
        figures = running.figures()
    assert second == expected[1]
    # The last token of the answer was not fed before.
    assert figures.prompt_tokens - before == len(more) + 1
    assert last.usage is not None
    assert last.usage.cached_tokens == figures.cached_tokens == len(first) + len(answer) - 1
    fresh = alone(method, [[*first, *answer, *more]], 12)
    assert second == fresh[0], "with a budget for everything it does not matter how it came in"


def test_an_answer_is_asked_for_again_and_one_is_told_apart_from_somebody_elses() -> None:
    prompt = ids(60)
    with engine(WHOLE, kept_memory=2**30) as running:
        first = ended(running.submit(greedily(prompt, 10)))[0]
        again, last = ended(running.submit(greedily(prompt, 10)))
        assert again == first
        assert last.usage is not None
        assert last.usage.cached_tokens == 58, "what came behind is cropped, and two tokens are fed"
        other = [*prompt[:20], *ids(30, 5)]
        got, last = ended(running.submit(greedily(other, 10)))
        assert got == alone(WHOLE, [other], 10)[0]
        assert last.usage is not None
        assert last.usage.cached_tokens == 0, "less than half of what is kept would be used"
        assert running.figures().kept == 2


def test_what_was_dropped_for_good_is_not_gone_on_from_halfway() -> None:
    prompt, method = ids(60), StreamingLLM(budget=24, sink=2)
    with engine(method, kept_memory=2**30) as running:
        first = ended(running.submit(greedily(prompt, 10)))[0]
        again, last = ended(running.submit(greedily(prompt, 10)))
        assert again == first
        assert last.usage is not None
        assert last.usage.cached_tokens == 0


def test_a_conversation_is_handed_back_and_gone_on_from() -> None:
    first, more = ids(50), ids(20, 1)
    expected = alone(WHOLE, [first, more], 12)
    with engine(WHOLE) as running:
        answer = running.submit(greedily(first, 12, hand_back=True))
        assert ended(answer)[0] == expected[0]
        assert answer.conversation is not None
        answer.conversation.cache.check_integrity()
        prompt = [*first, *expected[0], *more]
        second, last = ended(running.submit(greedily(prompt, 12, conversation=answer.conversation)))
    assert second == expected[1]
    assert last.usage is not None
    assert last.usage.cached_tokens == 61


def test_a_conversation_is_gone_on_from_by_one_at_a_time() -> None:
    first = ids(50)
    with engine(WHOLE) as running:
        answer = running.submit(greedily(first, 12, hand_back=True))
        got = ended(answer)[0]
        prompts = [[*first, *got, *ids(20, seed)] for seed in (1, 2)]
        # Both are begun in the same turn.
        with running._turns.changed:
            both = [running.submit(greedily(prompt, 12, conversation=answer.conversation)) for prompt in prompts]
        assert ended(both[0])[0] == alone(WHOLE, [first, ids(20, 1)], 12)[1]
        last = ended(both[1])[1]
        assert last.finish_reason == "error"
        with pytest.raises(RequestError, match="Another request goes on from this conversation"):
            raise last.error or AssertionError


def test_a_request_of_its_own_finds_nothing_kept_and_leaves_nothing() -> None:
    prompt = ids(60)
    with engine(WHOLE, kept_memory=2**30) as running:
        first = ended(running.submit(greedily(prompt, 10, kept=False)))[0]
        assert running.figures().kept == 0
        ended(running.submit(greedily(prompt, 10)))
        again, last = ended(running.submit(greedily(prompt, 10, kept=False)))
        assert again == first
        assert last.usage is not None
        assert last.usage.cached_tokens == 0
        assert running.figures().kept == 1


def test_the_kept_stay_within_their_limit() -> None:
    with engine(kept_memory=2**30) as running:
        ended(running.submit(greedily(ids(40), 10)))
        size = running.figures().kept_bytes
    assert size > 0
    with engine(kept_memory=int(2.5 * size)) as running:
        for seed in range(4):
            ended(running.submit(greedily(ids(40, seed), 10)))
        assert running.figures().kept == 2
        # The newest ones are there, the others are gone.
        lasts = [ended(running.submit(greedily(ids(40, seed), 3)))[1] for seed in (3, 0)]
        assert [last.usage.cached_tokens for last in lasts if last.usage] == [38, 0]


def test_what_was_taken_in_of_a_prompt_is_kept_when_it_is_cancelled() -> None:
    prompt = ids(600)
    with engine(SMALL, kept_memory=2**30) as running:
        gone = running.submit(greedily(prompt, 5))
        while running.figures().prompt_tokens < 10 * CHUNK:
            time.sleep(0.001)
        gone.cancel()
        assert ended(gone)[1].finish_reason == "cancelled"
        taken = running.figures().prompt_tokens
        assert running.figures().kept == 1
        assert running.figures().kept_bytes <= running._turns.room.memory.of_sequence(taken), "and no room for the rest"
        answer, last = ended(running.submit(greedily(prompt, 5)))
        assert last.usage is not None
        assert last.usage.cached_tokens == min(taken, 598)
        assert answer == alone(SMALL, [prompt], 5)[0], "as if it had not been interrupted"


def test_what_is_kept_leaves_room_for_all_that_runs() -> None:
    """Kept conversations have no memory of their own, though their limit is as much as there is."""
    long = [greedily(ids(400, seed), 60) for seed in range(3)]
    with engine(WHOLE) as running:
        need = running._turns.room.memory.needed(1, 460, [460]).host
    with engine(WHOLE, host_memory=need, kept_memory=need) as running:
        room, most = running._turns.room, 0
        for asked in long:
            answer = running.submit(asked)
            while not answer.ended:
                figures = running.figures()
                most = max(most, figures.kept_bytes + figures.host_bytes + figures.resident_bytes + figures.index_bytes)
            assert ended(answer)[1].finish_reason == "length"
            assert running.figures().kept == 1, "the one before has made room"
        assert most <= need
        # Its own conversation is no obstacle: it becomes the prompt.
        kept = room.kept.find(long[2].prompt)
        assert kept is not None
        _, last = ended(running.submit(greedily([*kept.token_ids, 5, 6], 3)))
        assert last.usage is not None
        assert last.usage.cached_tokens == len(kept.token_ids)


def test_what_would_not_fit_in_any_case_takes_nothing_from_what_is_kept() -> None:
    with engine(WHOLE) as running:
        need = running._turns.room.memory.needed(1, 800, [800]).host
    with engine(WHOLE, host_memory=need, kept_memory=need) as running:
        ended(running.submit(greedily(ids(30), 10)))
        first = running.submit(greedily(ids(100, 1), 200))
        next(iter(first))
        second = running.submit(greedily(ids(700, 2), 100))
        while running.figures().waiting == 0:
            time.sleep(0.001)
        assert running.figures().kept == 1
        assert ended(first)[1].finish_reason == "length"
        assert ended(second)[1].finish_reason == "length"


def test_stop_texts_tokens_and_the_end_of_the_model() -> None:
    prompt = ids(30)
    with engine() as running:
        free, _ = ended(running.submit(greedily(prompt, 20)))
        whole = "".join(piece.text for piece in running.run(greedily(prompt, 20)))

        def ask(**more: Any) -> tuple[str, list[int], str | None]:
            sampling = Sampling(**{**GREEDY, "max_tokens": 20, **more})
            pieces = list(running.submit(Request(prompt=prompt, sampling=sampling)))
            text = "".join(piece.text for piece in pieces)
            return text, [token for piece in pieces for token in piece.token_ids], pieces[-1].finish_reason

        assert ask()[1:] == (free, "length")
        end = next(token for token in free if free.index(token) > 3)
        text, got, reason = ask(stop_token_ids=(end,))
        assert (got, reason) == (free[: free.index(end) + 1], "stop")
        assert whole.startswith(text)
        middle = whole[len(whole) // 2 :][:3]
        text, got, reason = ask(stop=(middle,))
        assert reason == "stop"
        assert text == whole[: whole.index(middle)]
        assert len(got) < len(free)


def test_many_listen_in_one_event_loop() -> None:
    async def listen(running: Any, seed: int) -> list[int]:
        got: list[int] = []
        async for piece in running.stream(greedily(ids(20 + seed, seed), 15)):
            got += piece.token_ids
        return got

    async def main() -> list[list[int]]:
        with engine() as running:
            return await asyncio.gather(*(listen(running, seed) for seed in range(6)))

    assert asyncio.run(main()) == [alone(SMALL, [ids(20 + seed, seed)], 15)[0] for seed in range(6)]


def test_more_memory_than_there_is_is_refused_and_what_does_not_fit_yet_waits() -> None:
    for_one = Memory.of(a_model(), WHOLE, None, None).needed(1, 260, [260]).host
    with engine(WHOLE, host_memory=for_one, rows=4) as running:
        with pytest.raises(HostMemoryError, match="A sequence of 1000 tokens needs .* of host memory"):
            running.submit(greedily(ids(900), 100))
        answers = [running.submit(greedily(ids(200, seed), 60)) for seed in range(3)]
        most = 0
        while not all(answer.ended for answer in answers):
            figures = running.figures()
            most = max(most, figures.running + figures.taking_in)
        got = [ended(answer)[0] for answer in answers]
    assert most == 1, "two do not fit beside each other"
    assert got == [alone(WHOLE, [ids(200, seed)], 60)[0] for seed in range(3)]


def test_a_short_prompt_does_not_wait_behind_a_long_one() -> None:
    with engine(SMALL) as running:
        long = running.submit(greedily(ids(900), 5))
        short = running.submit(greedily(ids(20, 1), 5))
        ended(short)
        assert short.turns is not None
        ended(long)
        assert long.turns is not None
        assert short.turns < 10 < 50 < long.turns


def test_with_equal_lengths_nobody_waits_much_longer_than_the_others() -> None:
    with engine(rows=8) as running:
        answers = [running.submit(greedily(ids(60, seed), 10)) for seed in range(8)]
        for answer in answers:
            ended(answer)
    turns = sorted(answer.turns or 0 for answer in answers)
    assert turns[-1] <= 3 * (turns[3] + turns[4]) / 2


def test_two_hundred_requests_and_nothing_is_left() -> None:
    generator = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    with engine(rows=8, queue=200) as running:
        begin = running.figures()
        answers = []
        for seed in range(200):
            kind = number(0, 3)
            sampling = Sampling(max_tokens=number(1, 12), temperature=float(kind), seed=seed, top_k=5 * (kind == 2))
            answers.append(running.submit(Request(prompt=ids(number(1, 60), seed), sampling=sampling)))
        gone = [answer for answer in answers if number(0, 4) == 0]

        def cancel() -> None:
            for answer in gone:
                answer.cancel()
                time.sleep(0.005)

        cancelling = threading.Thread(target=cancel)
        cancelling.start()
        lasts = [list(answer)[-1] for answer in answers]
        cancelling.join()
        end = running.figures()
    reasons = [last.finish_reason for last in lasts]
    assert set(reasons) <= {"length", "stop", "cancelled"}
    assert 0 < reasons.count("cancelled") <= len(gone)
    for name in (
        "running",
        "waiting",
        "taking_in",
        "kept",
        "kept_bytes",
        "resident_bytes",
        "host_bytes",
        "index_bytes",
    ):
        assert getattr(end, name) == getattr(begin, name) == 0
    counted = sum(last.usage.completion_tokens for last in lasts if last.usage)
    assert end.output_tokens == counted


def test_figures_and_what_an_answer_attends_to() -> None:
    method = LouisKV(budget=40, sink=3, window=12, unit_size=4, max_segment=8, dense_layers=1, tau=0.3)
    with engine(method) as running:
        watched, other = (running.submit(greedily(ids(60, seed), 400, watched=seed == 0)) for seed in range(2))
        for answer in (watched, other):
            iterator = iter(answer)
            for _ in range(20):
                next(iterator)
        seen, unseen, figures = running.attended(watched), running.attended(other), running.figures()
        watched.cancel()
        other.cancel()
    assert seen is not None
    assert unseen is not None
    assert seen.layers == (0, 1, 2)
    assert seen.heads == (2, 2, 2)
    length = seen.now.shape[1]
    assert length >= 79
    assert seen.now.shape[0] == 3
    assert seen.now[0].tolist() == [2] * length, "a dense layer attends to everything with both KV heads"
    assert (seen.now[1:].sum(1) <= 2 * 40).all()
    assert seen.since is not None
    assert (seen.since >= seen.now).all()
    assert seen.since[0, 0] == 2 * len(seen.fired)
    assert unseen.since is None
    assert all(0 <= share <= 1 for share in seen.fired)
    assert figures.running == 2
    assert figures.rows == 2
    assert figures.resident_bytes > 0 < figures.host_bytes
    assert figures.kv_heads == 6
    assert 0 < figures.resident_tokens < figures.seen_tokens >= figures.host_tokens > 0
    assert figures.seen_bytes == figures.seen_tokens * 2 * 8 * 4, "keys and values of 8 channels in float32"
    assert figures.fetched_bytes > 0
    assert 0 < figures.retrieval_rate <= 1


def test_what_a_watched_answer_has_attended_to_is_known_when_it_has_ended() -> None:
    with engine() as running:
        watched, other = (running.submit(greedily(ids(60, seed), 20, watched=seed == 0)) for seed in range(2))
        pieces = list(watched)
        ended(other)
        assert running.attended(watched) is None
    assert other.attended is None
    seen = watched.attended
    assert seen is not None
    assert seen.since is not None
    # The first token comes from the prompt, without a step; the last one was not fed.
    assert (len(seen.fired), seen.since.shape[1]) == (19, 79)
    assert [piece.fired for piece in pieces] == [0.0, *seen.fired]
    assert 0 < max(seen.fired) <= 1


def test_the_batch_grows_and_shrinks_and_an_answer_does_not_see_it() -> None:
    with engine(rows=8) as running:
        long = running.submit(greedily(ids(40), 150))
        iterator = iter(long)
        next(iterator)
        assert running.figures().rows == 1
        others = [running.submit(greedily(ids(200, seed), 8)) for seed in range(1, 7)]
        rows = set()
        while not all(other.ended for other in others):
            rows.add(running.figures().rows)
        host = running.figures().host_bytes
        got = [token for piece in iterator for token in piece.token_ids]
        assert max(rows) >= 4
        assert host > 0
    assert got == alone(SMALL, [ids(40)], 150)[0][1:]


@settings(deadline=None, max_examples=15)
@given(
    asked=st.lists(
        st.tuples(st.integers(1, 70), st.integers(1, 25), st.integers(0, 3), st.booleans()), min_size=1, max_size=8
    ),
    rows=st.integers(1, 4),
)
def test_whatever_is_asked_answers_are_those_alone(asked: list[tuple[int, int, int, bool]], rows: int) -> None:
    with engine(rows=rows) as running:
        answers = []
        for length, number, pause, cancel in asked:
            answers.append(running.submit(greedily(ids(length, length), number)))
            time.sleep(pause / 500)
            if cancel:
                answers[0].cancel()
        got = [ended(answer) for answer in answers]
    for (length, number, _, _), (answer, last) in zip(asked, got, strict=True):
        expected = alone(SMALL, [ids(length, length)], number)[0]
        assert answer == expected[: len(answer)]
        assert len(answer) == number or last.finish_reason == "cancelled"
