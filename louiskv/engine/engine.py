"""The engine: one thread owns a model and answers requests as they come, many at a time."""

from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from contextlib import ExitStack, nullcontext
from threading import Thread, current_thread
from types import TracebackType
from typing import Self, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv.attach import attach, shard_of
from louiskv.cache import LouisKVCache
from louiskv.engine.answer import Answer
from louiskv.engine.batch import Batch
from louiskv.engine.figures import Attended, Figures
from louiskv.engine.kept import Kept
from louiskv.engine.memory import Memory
from louiskv.engine.request import Piece, Request
from louiskv.engine.turns import Turns
from louiskv.errors import EngineStoppedError, QueueFullError, UnsupportedModelError, check_count
from louiskv.methods.base import Method
from louiskv.store.pool import available_host_memory

T = TypeVar("T")


class Engine:
    """Continuous batching: sequences of any length decode together, and join and leave at every step.

    Its thread takes in one chunk of a prompt, then decodes one token of every answer, and so on; prompts begin in the
    order in which they come, two by turns. It sleeps when there is nothing to do.

    Attributes:
        max_length: Tokens of prompt and answer at the most.
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
        prefill_chunk: int = 512,
        queue: int = 64,
        impl: str | None = None,
        graph: bool | None = None,
    ) -> None:
        """Attach a model and begin.

        Args:
            model: As `louiskv.attach` takes it; nobody else may use it until the engine is stopped.
            tokenizer: Makes text of tokens.
            method: What to keep where.
            rows: Sequences that decode together at the most.
            max_length: Tokens of prompt and answer at the most; None for what the model has positions for.
            host_memory: Bytes of host memory for keys and values; None for nine tenths of what is free.
            device_memory: Bytes of device memory for them; None for nine tenths of what is free.
            kept_memory: Bytes for conversations that may go on; None for a quarter of the host memory.
            prefill_chunk: Tokens of a prompt that are taken in between two steps.
            queue: Requests that may wait.
            impl: Implementation of the operations; None takes the best that can run.
            graph: Whether to replay steps from a CUDA graph; None where it is possible.

        Raises:
            SettingsError: A setting is outside its range, there can be no graph, or the model is attached already.
            UnsupportedModelError: The model cannot be attached, has layers whose rows cannot differ in length, or is
                split over processes.
        """
        for name, value, low in (("rows", rows, 1), ("prefill_chunk", prefill_chunk, 2), ("queue", queue, 1)):
            check_count(name, value, low)
        config = model.config.get_text_config(decoder=True)
        positions = getattr(config, "max_position_embeddings", None) or 2**31
        self.max_length = positions if max_length is None else min(max_length, positions)
        check_count("max_length", self.max_length, 2)
        self._vocabulary, self._queue = config.vocab_size, queue
        self.end_tokens = _end_tokens(model, tokenizer)
        with ExitStack() as stack:
            kv_cache = stack.enter_context(attach(model, method, impl=impl))
            _check_model(model, kv_cache)
            memory = Memory(config, kv_cache.method, model.device, model.dtype)
            memory.set_limits(*_limits(model.device, host_memory, device_memory))
            self._turns = Turns(
                model,
                tokenizer,
                Batch(model, kv_cache, rows, graph),
                memory,
                Kept(memory.host // 4 if kept_memory is None else kept_memory),
                lambda: LouisKVCache(config, kv_cache.method, impl),
                max_length=self.max_length,
                prefill_chunk=prefill_chunk,
                end_tokens=self.end_tokens,
            )
            # From here on the engine's thread gives the model back.
            self._stack = stack.pop_all()
        self._asked: list[Callable[[], None]] = []
        # None while it runs; then whether what is there is still finished.
        self._stopping: bool | None = None
        self._died: BaseException | None = None
        self._thread = Thread(target=self._run, name="louiskv-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Answer:
        """Ask; the answer comes piece by piece.

        Raises:
            RequestError: It is longer than `max_length`, empty, or has tokens that the model does not know.
            SettingsError: Its sampling names such tokens.
            HostMemoryError: It needs more host memory than there is with nothing else.
            DeviceMemoryError: The same of the device.
            QueueFullError: As many requests wait as may.
            EngineStoppedError: The engine was stopped, or an error has ended it.
        """
        request.check(self._vocabulary, self.max_length)
        self._turns.memory.check(request.longest(self.max_length))
        answer = Answer(request, self._wake)
        with self._turns.changed:
            self._check_alive()
            # Those that were cancelled are there until the next turn.
            if sum(not each.cancelled for each in self._turns.waiting) >= self._queue:
                raise QueueFullError(
                    f"{self._queue} requests wait already. Ask again later, or make an engine with a longer queue or "
                    "more rows."
                )
            self._turns.waiting.append(answer)
            self._turns.changed.notify_all()
        return answer

    def check_length(self, length: int) -> None:
        """Raise `HostMemoryError` or `DeviceMemoryError` if there is no memory for so many tokens of one sequence."""
        self._turns.memory.check(length)

    @property
    def host_memory(self) -> int:
        """Bytes of host memory for keys and values."""
        return self._turns.memory.host

    @property
    def kept_memory(self) -> int:
        """Bytes of them for conversations that may go on."""
        return self._turns.kept.limit

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Ask, and iterate over the pieces in an event loop; who leaves early cancels. Raises as `submit` does."""
        return self.submit(request).arriving()

    def run(self, request: Request) -> Generator[Piece, None, None]:
        """Ask, and wait for each piece; who leaves early cancels. Raises as `submit` does."""
        return self.submit(request).pieces()

    def figures(self) -> Figures:
        """What the engine is doing, between two turns; this may wait for one to end."""
        return self._between_turns(self._turns.figures)

    def attended(self, answer: Answer) -> Attended | None:
        """What an answer attends to, between two turns, for one of which this may wait; None if it is not decoded."""
        return self._between_turns(lambda: self._turns.attended(answer))

    def stop(self, finish: bool = True) -> None:
        """Take no more requests, and end.

        Args:
            finish: Whether those that there are get their answers; otherwise they end as "cancelled" at once.
        """
        with self._turns.changed:
            self._stopping = finish and self._stopping is not False
            self._turns.changed.notify_all()
        if current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(finish=error is None)

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._stopping is None and self._died is None

    def _check_alive(self) -> None:
        if self._died is not None:
            raise EngineStoppedError(f"An error has ended the engine: {self._died!r}. Make a new one.") from self._died
        if self._stopping is not None:
            raise EngineStoppedError("The engine was stopped. Make a new one.")

    def _wake(self) -> None:
        with self._turns.changed:
            self._turns.changed.notify_all()

    def _between_turns(self, ask: Callable[[], T]) -> T:
        """Run something while nothing changes, in the engine's thread as long as there is one."""
        said: Future[T] = Future()

        def answer() -> None:
            try:
                said.set_result(ask())
            except Exception as error:
                said.set_exception(error)

        with self._turns.changed:
            if self._thread.is_alive() and not self._ended:
                self._asked.append(answer)
                self._turns.changed.notify_all()
            else:
                answer()
        return said.result()

    _ended = False

    def _run(self) -> None:
        try:
            # Kernels of ours run on the thread's device.
            device = self._turns.model.device
            here = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
            with torch.no_grad(), here:
                while self._wait():
                    self._turns.turn()
        except BaseException as error:
            self._died = error
        finally:
            self._end()

    def _wait(self) -> bool:
        """Sleep until there is something to do, and answer what was asked between turns; whether to go on."""
        turns = self._turns
        with turns.changed:
            turns.changed.wait_for(lambda: turns.busy or self._asked or self._stopping is not None)
            asked, self._asked = self._asked, []
        for answer in asked:
            answer()
        return self._stopping is None or (self._stopping and turns.busy)

    def _end(self) -> None:
        """End what is left, and give the model back."""
        reason = "cancelled" if self._died is None else "error"
        self._turns.end_all(reason, self._died)
        self._stack.close()
        with self._turns.changed:
            self._ended = True
            asked, self._asked = self._asked, []
        for answer in asked:
            answer()


def _check_model(model: PreTrainedModel, kv_cache: LouisKVCache) -> None:
    """Raise `UnsupportedModelError` if the sequences of a model cannot come and go, or not in one process."""
    kv_cache.check_rows()
    if shard_of(model).num_ranks > 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} is split over several processes, and an engine answers in one: its ranks would "
            "not decode the same. Load the model whole, or use louiskv.attach in every rank."
        )


def _limits(device: torch.device, host: int | None, on_device: int | None) -> tuple[int, int]:
    """Bytes of host and device memory; of what is free a tenth is left."""
    host = available_host_memory() * 9 // 10 if host is None else host
    if device.type != "cuda":
        return host, host if on_device is None else on_device
    return host, torch.cuda.mem_get_info(device)[0] * 9 // 10 if on_device is None else on_device


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens by which the model says that it has said all."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*several, tokenizer.eos_token_id) if isinstance(token, int))
