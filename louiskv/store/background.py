"""Work for a later step that runs while the model computes: a worker thread on a CPU, side streams on a GPU."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from functools import cache as once
from threading import Lock
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@once
def _worker() -> ThreadPoolExecutor:
    # One for all layers: their jobs come one after the other, and each thread of torch would start threads of its own.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="louiskv")


# A forked process has the pool but not its thread.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_worker.cache_clear)


class Background(Generic[T]):
    """At most one job at a time in a worker thread, begun at one step and collected at the next."""

    def __init__(self) -> None:
        self._job: Callable[[], T] | None = None
        self._result: Future[T] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Background[T]":
        """A copy with a result of its own, for which this waits."""
        copy: Background[T] = Background()
        if self._result is not None:
            copy._job, copy._result = self._job, Future()
            copy._result.set_result(deepcopy(self._result.result(), memo))
        return copy

    @property
    def busy(self) -> bool:
        """Whether a job has not been collected yet."""
        return self._result is not None

    def start(self, job: Callable[[], T]) -> None:
        """Run a job beside what follows; what it reads is held until it is collected, and must not be changed."""
        assert self._result is None, "the job before was not collected"
        self._job, self._result = job, _worker().submit(_without_gradients, job)

    def collect(self) -> T:
        """Wait for the job and return its result, or raise what it raised."""
        assert self._result is not None, "there is no job"
        try:
            return self._result.result()
        finally:
            self._result, self._job = None, None


def _without_gradients(job: Callable[[], T]) -> T:
    with torch.no_grad():
        return job()


def urgent_stream(device: torch.device) -> "torch.cuda.Stream | None":
    """A stream beside the model's, on a GPU: what it has for the GPU goes first.

    The next layers wait for it. Behind the model's kernels, which fill the GPU, it would come last, and then nothing
    would run beside it.
    """
    return torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None


class Beside:
    """Work of the device that runs beside what follows, on a stream of its own; launched at once, by the caller.

    Without such streams it simply runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = urgent_stream(device)
        # No tensor that it reads may be freed before the streams have joined.
        self._work: list[Callable[[], None]] = []

    def run(self, work: Callable[[], None]) -> None:
        """Launch work that waits for what was launched before it."""
        if self._stream is None:
            work()
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._work.append(work)
        with torch.cuda.stream(self._stream):
            work()

    def join(self) -> None:
        """Let what follows wait for all of it."""
        if self._work and self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._work.clear()


# Bytes that prompts may hold whose work is launched and not done. The host, which has less to do for a long prompt than
# the GPU, would else be layers ahead, and each layer's keys and values stay until they have been read.
MOST_WAITING = 2**28


class _Line:
    """Prompts' work that was launched, of whatever layer: what tells that it is done, and the bytes that it reads."""

    lock: ClassVar[Lock] = Lock()
    work: ClassVar[deque[tuple[torch.cuda.Event, int]]] = deque()

    @classmethod
    def wait_for_room(cls, num_bytes: int) -> None:
        """Wait for the first of them, as long as they are too much beside so many bytes."""
        while cls.work and (cls.work[0][0].query() or cls._held() + num_bytes > MOST_WAITING):
            cls.work.popleft()[0].synchronize()

    @classmethod
    def _held(cls) -> int:
        return sum(num_bytes for _, num_bytes in cls.work)


@once
def _stream_of_prompts(device: torch.device) -> "torch.cuda.Stream | None":
    # One for all layers: each stream keeps memory of its own, as much as a prompt needs.
    return urgent_stream(device)


class PromptWork:
    """What a layer does with a prompt beside the model: launched at once, by the caller, on one stream for all layers.

    Memory that is free is given out again at once on its own stream, also where another has not read it yet. So what
    the work reads of the model's stream is marked as read here, and what it has made as read there. Without such
    streams it simply runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream_of_prompts(device)
        self._ended: torch.cuda.Event | None = None

    def run(self, work: Callable[[], None], reads: Iterable[Tensor], num_bytes: int) -> None:
        """Launch work that waits for what was launched before it.

        Where all that is not done would hold more than `MOST_WAITING` bytes, the host waits: so beside what the caller
        has, no more is held than that, or one layer's.

        Args:
            work: Launches it.
            reads: Tensors that it reads and that may be freed or replaced before it is done.
            num_bytes: What it holds until it is done.
        """
        if self._stream is None:
            work()
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        for tensor in reads:
            if tensor.is_cuda:
                tensor.record_stream(self._stream)
        with _Line.lock:
            _Line.wait_for_room(num_bytes)
        try:
            with torch.cuda.stream(self._stream):
                work()
        finally:
            self._ended = self._stream.record_event()
            with _Line.lock:
                _Line.work.append((self._ended, num_bytes))

    def join(self, made: Callable[[], Iterable[Tensor]]) -> None:
        """Let what follows wait for it; `made` tells which tensors it may have made that are read there."""
        if self._ended is None or self._stream is None:
            return
        here = torch.cuda.current_stream(self._stream.device)
        here.wait_event(self._ended)
        self._ended = None
        for tensor in made():
            if tensor.is_cuda:
                tensor.record_stream(here)
