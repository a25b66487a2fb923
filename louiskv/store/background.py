"""Work for a later step that runs while the model computes: a worker thread, and on a GPU a side stream in it."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache as once
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


@once
def _worker() -> ThreadPoolExecutor:
    # One for all layers: their jobs come one after the other, and each thread of torch would start threads of its own.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="louiskv")


class Background(Generic[T]):
    """At most one job at a time, begun at one step and collected at the next.

    On a GPU the job's kernels run on a side stream: they wait for what the caller has launched before, and who collects
    the result waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._job: Callable[[], T] | None = None
        self._result: Future[T] | None = None

    @property
    def busy(self) -> bool:
        """Whether a job has not been collected yet."""
        return self._result is not None

    def start(self, job: Callable[[], T]) -> None:
        """Run a job beside what follows; tensors that it reads must not be changed before it is collected."""
        assert self._result is None, "the job before was not collected"
        # The job is kept until it is collected, so that no tensor it reads is freed while the side stream uses it.
        self._job = job
        ready = None if self._stream is None else torch.cuda.current_stream(self._stream.device).record_event()

        def run() -> T:
            with torch.no_grad():
                if self._stream is None or ready is None:
                    return job()
                with torch.cuda.stream(self._stream):
                    self._stream.wait_event(ready)
                    return job()

        self._result = _worker().submit(run)

    def collect(self) -> T:
        """Wait for the job and return its result, or raise what it raised."""
        assert self._result is not None, "there is no job"
        try:
            result = self._result.result()
            if self._stream is not None:
                torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            return result
        finally:
            self._result = self._job = None
