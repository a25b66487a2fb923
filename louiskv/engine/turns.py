"""What the engine does in each turn: a chunk of one prompt, then a step of all answers."""

from collections import deque
from collections.abc import Callable
from threading import Condition
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv.cache import LouisKVCache
from louiskv.engine.answer import Answer
from louiskv.engine.batch import Batch, fetched_bytes
from louiskv.engine.figures import Attended, Counters, Figures, attended_by, held_by
from louiskv.engine.kept import usable
from louiskv.engine.memory import Need
from louiskv.engine.request import Conversation, Logprob, Piece, Request, Usage
from louiskv.engine.room import Room
from louiskv.engine.sequences import Prompt, Running
from louiskv.engine.text import Text
from louiskv.errors import RequestError

# Prompts that are taken in by turns: a short one need not wait until a long one before it is in.
MAX_PROMPTS = 2


class Turns:
    """The requests of one engine, and all that its thread owns.

    Attributes:
        waiting: Answers whose prompt is not begun, in order of arrival; guarded by `changed`.
        changed: Told of what comes.
        number: Turns so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch: Batch,
        room: Room,
        new_cache: Callable[[Request], LouisKVCache],
        *,
        max_length: int,
        prefill_chunk: int,
        end_tokens: frozenset[int],
    ) -> None:
        self.model, self.tokenizer, self.batch, self.room = model, tokenizer, batch, room
        self.new_cache, self.max_length, self.prefill_chunk = new_cache, max_length, prefill_chunk
        self.end_tokens = end_tokens
        self.waiting: deque[Answer] = deque()
        self.changed = Condition()
        self.prompts: list[Prompt] = []
        self.running: list[Running] = []
        self.counters = Counters()
        self.number = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.waiting or self.prompts or self.running)

    @property
    def free_rows(self) -> int:
        """Rows that no answer has and no prompt is taken in for."""
        return self.batch.max_rows - len(self.running) - len(self.prompts)

    def turn(self) -> None:
        """Drop what is no longer wanted, begin what fits, take in one chunk, and decode one step."""
        self.number += 1
        self._drop_cancelled()
        self._admit()
        if self.prompts:
            self._take_in()
        if self.running:
            self._step()

    def end_all(self, finish_reason: str, error: BaseException | None = None) -> None:
        """End all requests, whatever they have come to."""
        with self.changed:
            waiting, self.waiting = list(self.waiting), deque()
        for answer in (*waiting, *(prompt.answer for prompt in self.prompts)):
            self._give_up(answer, finish_reason, error)
        self.prompts = []
        self._end_running(finish_reason, error)

    def _end_running(self, finish_reason: str, error: BaseException | None) -> None:
        running, self.running = self.running, []
        self.batch.reset()
        for each in running:
            each.answer.give(each.piece("", finish_reason, error=error))

    @staticmethod
    def _give_up(answer: Answer, finish_reason: str, error: BaseException | None = None) -> None:
        usage = Usage(len(answer.request.prompt), 0, 0)
        answer.give(Piece(finish_reason=finish_reason, usage=usage, error=error))

    def _fail_alone(self, answer: Answer, error: Exception) -> None:
        """End an answer that has no row yet with an error, and no other."""
        self._give_up(answer, "error", error)
        _check_device(error)

    def _fail(self, running: Running, error: BaseException) -> None:
        """End one answer with an error, and no other."""
        if running in self.running:
            self.running.remove(running)
            self._leave(running.number)
        if not running.answer.ended:
            running.answer.give(running.piece("", "error", error=error))

    def _leave(self, number: int) -> None:
        """Free a row; the others end where they are lost with it."""
        try:
            self.batch.leave(number)
        except Exception as error:
            self._end_running("error", error)

    def _drop_cancelled(self) -> None:
        with self.changed:
            gone = [answer for answer in self.waiting if answer.cancelled]
            self.waiting = deque(answer for answer in self.waiting if not answer.cancelled)
        for answer in gone:
            self._give_up(answer, "cancelled")
        for prompt in [prompt for prompt in self.prompts if prompt.answer.cancelled]:
            self._put_back(prompt)
            self.prompts.remove(prompt)
            self._give_up(prompt.answer, "cancelled")
        for each in [each for each in self.running if each.answer.cancelled]:
            self._cancel(each)

    def _put_back(self, prompt: Prompt) -> None:
        """Keep what was taken in of a prompt, if there is room for a copy: its own cache has room for all of it."""
        known = prompt.token_ids[: prompt.known]
        if not known or not prompt.answer.request.kept or not self.room.make_for_copy(self._needed(), len(known)):
            return
        try:
            self.room.kept.keep(Conversation(tuple(known), prompt.cache.take(0)))
        except Exception as error:
            _check_device(error)

    def _admit(self) -> None:
        """Begin the oldest requests, as far as there are rows and memory."""
        # Others only append: nobody need wait while it is looked whether the oldest one fits.
        while len(self.prompts) < MAX_PROMPTS and self.waiting and self._fits(self.waiting[0]):
            answer = self.waiting[0]
            try:
                begun = [self._begin(answer)]
            except Exception as error:
                begun = []
                self._fail_alone(answer, error)
            # It waits until it is begun, so that who counts both counts it once.
            with self.changed:
                self.waiting.popleft()
                self.prompts += begun

    def _fits(self, answer: Answer) -> bool:
        """Whether a request can begin; kept conversations make room for it, and its own one becomes its prompt."""
        request = answer.request
        if not self.free_rows:
            return False
        wanted = self.room.kept.find(request.prompt) if request.kept and request.conversation is None else None
        return self.room.make(self._needed(request.longest(self.max_length)), wanted)

    def _needed(self, *more: int) -> Need:
        """What all that is begun needs, beside prompts of these lengths."""
        prompts = [*(prompt.longest for prompt in self.prompts), *more]
        rows = max(self.batch.rows_for(len(self.running) + len(prompts)), self.batch.num_rows)
        longest = max(*prompts, *(each.longest for each in self.running), self.batch.longest, 0)
        return self.room.memory.needed(rows, longest, prompts)

    def _begin(self, answer: Answer) -> Prompt:
        """Go on from an earlier turn if there is one, else from nothing."""
        token_ids, length = list(answer.request.prompt), answer.request.longest(self.max_length)
        conversation, known = answer.request.conversation, 0
        if conversation is None and answer.request.kept:
            conversation = self.room.kept.take(token_ids)
        if conversation is not None:
            known = usable(conversation, token_ids)
        if not known or conversation is None:
            return Prompt(answer, self.new_cache(answer.request), token_ids, 0, 0, length)
        kv_cache = conversation.cache
        if kv_cache.get_seq_length() != len(conversation.token_ids):
            raise RequestError(
                f"The conversation has {len(conversation.token_ids)} token ids, but its cache holds "
                f"{kv_cache.get_seq_length()} tokens. Give those that it holds."
            )
        if any(prompt.cache is kv_cache for prompt in self.prompts):
            raise RequestError("Another request goes on from this conversation, which is the engine's then.")
        if known < len(conversation.token_ids):
            kv_cache.crop(known - len(conversation.token_ids))
        kv_cache.follow(self.new_cache(answer.request))
        self.counters.cached_tokens += known
        return Prompt(answer, kv_cache, token_ids, known, known, length)

    def _take_in(self) -> None:
        """Take in a chunk of the prompt whose turn it is; one that is whole joins the others."""
        prompt = self.prompts[0]
        try:
            self.counters.prompt_tokens += prompt.take_in(self.model, self.prefill_chunk)
            if prompt.logits is None:
                self.prompts = [*self.prompts[1:], prompt]
            else:
                self._join(prompt, prompt.logits)
        except Exception as error:
            if prompt in self.prompts:
                self.prompts.remove(prompt)
            self._fail_alone(prompt.answer, error)
            if self.running and self.batch.cache is None:
                # There was no memory for more rows, and those that there were are lost.
                self._end_running("error", error)

    def _join(self, prompt: Prompt, logits: Tensor) -> None:
        request = prompt.answer.request
        number = self.batch.join(prompt.cache, request.sampling, prompt.token_ids)
        try:
            text = Text(self.tokenizer, prompt.token_ids, request.sampling.stop)
            known = len(prompt.token_ids)
            running = Running(prompt.answer, number, prompt.token_ids, known, prompt.cached, prompt.longest, text)
            chosen = self.batch.first(logits, number)
        except Exception:
            self._leave(number)
            raise
        self.prompts.remove(prompt)
        self.running.append(running)
        prompt.answer.turns = self.number
        self._hear(running, chosen.tokens[0], chosen.logprobs[0])

    def _step(self) -> None:
        """Decode one token of each answer."""
        stepping = list(self.running)
        try:
            step = self.batch.run({each.number: each.token_ids[-1] for each in stepping})
            self._watch(stepping)
        except Exception as error:
            self._end_running("error", error)
            _check_device(error)
            return
        for each, token, logprob, fired in zip(stepping, step.tokens, step.logprobs, step.fired, strict=True):
            if each.answer.ended:
                # The end of another one has lost its row.
                continue
            each.fired.append(fired)
            self.counters.steps += 1
            self.counters.fired += fired
            self._hear(each, token, logprob)

    def _watch(self, stepping: list[Running]) -> None:
        assert self.batch.cache is not None
        for each in stepping:
            if each.answer.request.watched:
                each.watch(attended_by(self.batch.cache, self.batch.row(each.number)))

    def _hear(self, running: Running, token: int, logprob: Logprob | None) -> None:
        """Pass a token on; what goes wrong with it concerns this answer alone."""
        try:
            self._pass_on(running, token, logprob)
        except Exception as error:
            self._fail(running, error)

    def _pass_on(self, running: Running, token: int, logprob: Logprob | None) -> None:
        """Pass a token on, and end the answer where it ends."""
        settings = running.answer.request.sampling
        running.token_ids.append(token)
        self.counters.output_tokens += 1
        ends = token in settings.stop_token_ids or (token in self.end_tokens and not settings.ignore_eos)
        full = len(running.token_ids) >= running.longest
        text = "" if ends else running.text.push(token)
        if ends or full:
            text += running.text.finish()
        reason = "stop" if ends or running.text.stopped else "length" if full else None
        more: dict[str, Any] = {"token_ids": (token,), "logprobs": () if logprob is None else (logprob,)}
        if reason is None:
            running.answer.give(running.piece(text, None, **more))
        else:
            self._finish(running, text, reason, **more)

    def _cancel(self, running: Running) -> None:
        try:
            self._finish(running, running.text.finish(), "cancelled")
        except Exception as error:
            self._fail(running, error)

    def _finish(self, running: Running, text: str, reason: str, **more: Any) -> None:
        """Free the row of an answer, and keep its conversation."""
        error = None
        try:
            running.answer.attended = self._attended(running) if running.attended is not None else None
            self._put_away(running)
        except Exception as failed:
            reason, error = "error", failed
        self.running.remove(running)
        self._leave(running.number)
        running.answer.give(running.piece(text, reason, error=error, **more))

    def _put_away(self, running: Running) -> None:
        """Keep the conversation if there is room for a copy of it, or hand it back."""
        token_ids, request = tuple(running.token_ids[:-1]), running.answer.request
        if request.hand_back:
            running.answer.conversation = Conversation(token_ids, self.batch.take(running.number))
        elif request.kept and self.room.make_for_copy(self._needed(), len(token_ids)):
            self.room.kept.keep(Conversation(token_ids, self.batch.take(running.number)))

    def figures(self) -> Figures:
        """The figures; this waits for the device."""
        caches = [prompt.cache for prompt in self.prompts]
        if self.batch.cache is not None:
            caches.append(self.batch.cache)
        counters = self.counters
        return Figures(
            running=len(self.running),
            taking_in=len(self.prompts),
            waiting=len(self.waiting),
            kept=len(self.room.kept),
            kept_bytes=sum(self.room.kept.sizes()),
            rows=self.batch.num_rows,
            **held_by(caches),
            fetched_bytes=self.batch.fetched_bytes + sum(map(fetched_bytes, caches)),
            prompt_tokens=counters.prompt_tokens,
            cached_tokens=counters.cached_tokens,
            output_tokens=counters.output_tokens,
            retrieval_rate=counters.retrieval_rate,
            captured=self.batch.num_captured,
        )

    def attended(self, answer: Answer) -> Attended | None:
        """What an answer attends to now; None if it is not being decoded."""
        running = next((each for each in self.running if each.answer is answer), None)
        return None if running is None else self._attended(running)

    def _attended(self, running: Running) -> Attended:
        assert self.batch.cache is not None
        row, since = self.batch.row(running.number), running.attended
        return Attended.of(self.batch.cache, row, None if since is None else since.clone(), tuple(running.fired))


def _check_device(error: Exception) -> None:
    """Raise an error of the device itself, which ends the engine: whatever comes next would fail as well."""
    if isinstance(error, torch.AcceleratorError):
        raise error
