"""The engine: one thread owns a model and answers requests as they come, many at a time."""

from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv.attach import attach, shard_of
from louiskv.cache import LouisKVCache
from louiskv.engine.answer import Answer
from louiskv.engine.batch import Batch
from louiskv.engine.figures import Attended, Figures
from louiskv.engine.kept import Kept
from louiskv.engine.loop import Loop
from louiskv.engine.memory import Memory
from louiskv.engine.request import Piece, Request
from louiskv.engine.room import Room
from louiskv.engine.turns import Turns
from louiskv.errors import QueueFullError, UnsupportedModelError, check_count
from louiskv.methods.base import Method

# Tokens of a prompt between two steps, by the kind of device. On a GPU to launch a short chunk takes longer than to
# compute it, and chunks behind the first attend to what is on the host.
CHUNKS = {"cpu": 512, "cuda": 8192}


class Engine:
    """Continuous batching: sequences of any length decode together, and join and leave at every step.

    Its thread takes in one chunk of a prompt, then decodes one token of every answer, and so on; prompts begin in the
    order in which they come, two by turns. It sleeps when there is nothing to do.

    Args:
        model: As `louiskv.attach` takes it; nobody else may use it until the engine is stopped.
        tokenizer: Makes text of tokens.
        method: What to keep where.
        rows: Sequences that decode together at the most.
        max_length: Tokens of prompt and answer at the most; None for what the model has positions for.
        host_memory: Bytes of host memory for keys and values; None for nine tenths of what is free.
        device_memory: Bytes of device memory for them; None for nine tenths of what is free.
        kept_memory: Bytes for conversations that may go on; None for a quarter of the host memory.
        prefill_chunk: Tokens of a prompt that are taken in between two steps; None for 512, on a GPU 8192.
        queue: Requests that may wait beside those for whom a row is free.
        impl: Implementation of the operations; None takes the best that can run.
        graph: Whether to replay steps from a CUDA graph; None where it is possible.

    Attributes:
        max_length: Tokens of prompt and answer at the most.
        queue: Requests that may wait beside those for whom a row is free.
        end_tokens: Tokens by which the model says that it has said all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        method: Method,
        *,
        rows: int = 8,
        max_length: int | None = None,
        host_memory: int | None = None,
        device_memory: int | None = None,
        kept_memory: int | None = None,
        prefill_chunk: int | None = None,
        queue: int = 64,
        impl: str | None = None,
        graph: bool | None = None,
    ) -> None:
        """Attach a model and begin.

        Raises:
            SettingsError: A setting is outside its range, there can be no graph, or the model is attached already.
            UnsupportedModelError: The model cannot be attached, has layers whose rows cannot differ in length, or is
                split over processes.
        """
        check_count("rows", rows, 1)
        if prefill_chunk is None:
            prefill_chunk = CHUNKS.get(model.device.type, CHUNKS["cpu"])
        check_count("prefill_chunk", prefill_chunk, 3)
        check_count("queue", queue, 1)
        config = model.config.get_text_config(decoder=True)
        self.max_length, self.queue = _max_length(config, max_length), queue
        self.end_tokens = _end_tokens(model, tokenizer)
        self._vocabulary = config.vocab_size
        with ExitStack() as stack:
            kv_cache = stack.enter_context(attach(model, method, impl=impl))
            _check_model(model, kv_cache)
            self._method = kv_cache.method
            memory = Memory.of(model, kv_cache.method, host_memory, device_memory)
            room = Room(memory, Kept(memory.host // 4 if kept_memory is None else kept_memory))
            batch = Batch(model, kv_cache, rows, graph)
            self._turns = Turns(
                *(model, tokenizer, batch, room),
                lambda request: LouisKVCache(config, _method_of(request, kv_cache.method), impl),
                max_length=self.max_length,
                prefill_chunk=prefill_chunk,
                end_tokens=self.end_tokens,
            )
            # From here on its thread gives the model back.
            self._loop = Loop(self._turns, stack.pop_all())

    def submit(self, request: Request) -> Answer:
        """Ask; the answer comes piece by piece.

        Raises:
            RequestError: It is longer than `max_length`, empty, or has tokens that the model does not know.
            SettingsError: Its sampling names such tokens, or its tau is none for the method.
            HostMemoryError: It needs more host memory than there is with nothing else.
            DeviceMemoryError: The same of the device.
            QueueFullError: As many requests wait as may.
            EngineStoppedError: The engine was stopped, or an error has ended it.
        """
        request.check(self._vocabulary, self.max_length)
        _method_of(request, self._method)
        self._turns.room.memory.check(request.longest(self.max_length))
        answer = Answer(request, self._loop.wake)
        with self._turns.changed:
            self._loop.check_alive()
            # Those that were cancelled are there until the next turn, and so are those that a free row waits for.
            waiting = sum(not each.cancelled for each in self._turns.waiting)
            if waiting >= self.queue + self._turns.free_rows:
                raise QueueFullError(
                    f"{waiting} requests wait already. Ask again later, or make an engine with a longer queue or more "
                    "rows."
                )
            self._turns.waiting.append(answer)
            self._turns.changed.notify_all()
        return answer

    def check_length(self, length: int) -> None:
        """Raise `HostMemoryError` or `DeviceMemoryError` if there is no memory for so many tokens of one sequence."""
        self._turns.room.memory.check(length)

    @property
    def host_memory(self) -> int:
        """Bytes of host memory for keys and values."""
        return self._turns.room.memory.host

    @property
    def kept_memory(self) -> int:
        """Bytes of them for conversations that may go on."""
        return self._turns.room.kept.limit

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Ask, and iterate over the pieces in an event loop; who leaves early cancels. Raises as `submit` does."""
        return self.submit(request).arriving()

    def run(self, request: Request) -> Generator[Piece, None, None]:
        """Ask, and wait for each piece; who leaves early cancels. Raises as `submit` does."""
        return self.submit(request).pieces()

    def figures(self) -> Figures:
        """What the engine is doing, between two turns; this may wait for one to end."""
        return self._loop.between_turns(self._turns.figures)

    def attended(self, answer: Answer) -> Attended | None:
        """What an answer attends to, between two turns, for one of which this may wait; None if it is not decoded."""
        return self._loop.between_turns(lambda: self._turns.attended(answer))

    def stop(self, finish: bool = True) -> None:
        """Take no more requests, and end.

        Args:
            finish: Whether those that there are get their answers; otherwise they end as "cancelled" at once.
        """
        self._loop.stop(finish)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(finish=error is None)

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._loop.alive


def _check_model(model: PreTrainedModel, kv_cache: LouisKVCache) -> None:
    """Raise `UnsupportedModelError` if the sequences of a model cannot come and go, or not in one process."""
    kv_cache.check_rows()
    if shard_of(model).num_ranks > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} is split over several processes, and an engine answers in one: its ranks would "
            "not decode the same. Load the model whole, or use louiskv.attach in every rank."
        )


def _method_of(request: Request, method: Method) -> Method:
    """The method as it is for one request; raises `SettingsError` if it cannot be so."""
    return method if request.tau is None else method.for_sequence(request.tau)


def _max_length(config: Any, wanted: int | None) -> int:
    """Tokens of prompt and answer at the most: what is wanted, as far as the model has positions."""
    positions: int = getattr(config, "max_position_embeddings", None) or 2**31
    length = positions if wanted is None else min(wanted, positions)
    check_count("max_length", length, 2)
    return length


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens by which the model says that it has said all."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*several, tokenizer.eos_token_id) if isinstance(token, int))
