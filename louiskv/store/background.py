"""Work for a later step that runs while the model computes: a worker thread, and on a GPU a side stream in it."""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy
from functools import cache as once
from functools import partial
from threading import Lock
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@once
def _worker() -> ThreadPoolExecutor:
    # One for all layers: their jobs come one after the other, and each thread of torch would start threads of its own.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="louiskv")


# Bytes that prompts may hold which wait to be taken in, beside the one that is. What the model computes need not wait
# then for a thread that has more to launch than the GPU has to do.
MOST_WAITING = 2**28


class _Line:
    """Jobs that took their turn and may not be done, of whatever layer, and the bytes that each holds."""

    lock: ClassVar[Lock] = Lock()
    jobs: ClassVar[deque[tuple[Future[Any], int]]] = deque()

    @classmethod
    def wait_for_room(cls, num_bytes: int) -> None:
        """Wait for the first of them, as long as they are too much beside so many bytes."""
        while cls.jobs and (cls.jobs[0][0].done() or cls._held() + num_bytes > MOST_WAITING):
            wait([cls.jobs.popleft()[0]])

    @classmethod
    def forget(cls) -> None:
        """Begin anew."""
        cls.lock, cls.jobs = Lock(), deque()

    @classmethod
    def _held(cls) -> int:
        return sum(num_bytes for _, num_bytes in cls.jobs)


# A forked process has the pool but not its thread, and jobs that nobody will do.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_worker.cache_clear)
    os.register_at_fork(after_in_child=_Line.forget)


def urgent_stream(device: torch.device) -> "torch.cuda.Stream | None":
    """A stream beside the model's, on a GPU: what it has for the GPU goes first.

    The next layers wait for it. Behind the model's kernels, which fill the GPU, it would come last, and then nothing
    would run beside it.
    """
    return torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None


@once
def _stream_of_jobs(device: torch.device) -> "torch.cuda.Stream | None":
    # One, as there is one worker: each stream keeps memory of its own, as much as a prompt needs. So what one job has
    # made may become another's as soon as it is free: see `collect`.
    return urgent_stream(device)


class Background(Generic[T]):
    """At most one job at a time, begun at one step and collected at the next.

    On a GPU the job's kernels run on a side stream: they wait for what the caller has launched before, and who collects
    the result waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = _stream_of_jobs(device)
        self._ended = None if self._stream is None else torch.cuda.Event()
        self._job: list[Callable[[], T]] = []
        self._result: Future[T] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Background[T]":
        """A copy with a result of its own, for which this waits."""
        copy: Background[T] = Background(self.device)
        if self._result is not None:
            copy._job, copy._result = list(self._job), Future()
            copy._result.set_result(deepcopy(self._result.result(), memo))
        return copy

    @property
    def busy(self) -> bool:
        """Whether a job has not been collected yet."""
        return self._result is not None

    def start(self, job: Callable[[], T], forget: bool = False) -> None:
        """Run a job beside what follows; tensors that it reads must not be changed before it is collected.

        They are held until then, or if it is to be forgotten, until it is done.
        """
        assert self._result is None, "the job before was not collected"
        # No tensor that the job reads may be freed while the side stream uses it.
        self._job = [job]
        ready = None if self._stream is None else torch.cuda.current_stream(self._stream.device).record_event()
        self._result = _worker().submit(_run, self._job, self._stream, ready, self._ended, forget)

    def take_turn(self, job: Callable[[], T], num_bytes: int, reads: Iterable[Tensor] = ()) -> None:
        """Run a job beside what follows, behind those of whatever layer that took their turn before.

        A job is forgotten when its work is done, on a GPU there as well. Where all that are not would hold more than
        `MOST_WAITING` bytes, the caller waits: so beside what it has, no more is held than that, or one job's.

        Args:
            job: The work.
            num_bytes: What it holds until it is done.
            reads: What the job reads and then replaces. Memory of the caller's stream that is free is given out again
                at once, also where another stream has not read it yet.
        """
        held = tuple(reads)
        with _Line.lock:
            _Line.wait_for_room(num_bytes)
            self.start(partial(_holding, held, job), forget=True)
            assert self._result is not None
            _Line.jobs.append((self._result, num_bytes))

    def collect(self, made: Callable[[], Iterable[Tensor]] = tuple) -> T:
        """Wait for the job and return its result, or raise what it raised.

        Args:
            made: Tells which tensors the job may have made that the caller reads. Memory of the job's stream that is
                free is given out again there at once, also where the caller's stream has not read it yet.
        """
        assert self._result is not None, "there is no job"
        try:
            result = self._result.result()
            if self._stream is not None and self._ended is not None:
                here = torch.cuda.current_stream(self._stream.device)
                here.wait_event(self._ended)
                for tensor in made():
                    if tensor.is_cuda:
                        tensor.record_stream(here)
            return result
        finally:
            self._result, self._job = None, []


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


def _holding(_held: tuple[Tensor, ...], job: Callable[[], T]) -> T:
    """Run a job; what is held is so for as long as the job itself."""
    return job()


def _run(
    job: list[Callable[[], T]],
    stream: torch.cuda.Stream | None,
    ready: torch.cuda.Event | None,
    ended: torch.cuda.Event | None,
    forget: bool,
) -> T:
    with torch.no_grad():
        if stream is None or ready is None or ended is None:
            result = job[0]()
        else:
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                result = job[0]()
                ended.record(stream)
                if forget:
                    ended.synchronize()
    if forget:
        job.clear()
    return result
