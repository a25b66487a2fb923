"""The engine's thread: it takes turns while there is something to do, and answers what is asked between two of them."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, nullcontext
from threading import Thread, current_thread
from typing import TypeVar

import torch

from louiskv.engine.turns import Turns
from louiskv.errors import EngineStoppedError

T = TypeVar("T")


class Loop:
    """Runs in a thread of its own from the beginning until it is stopped, or an error ends it."""

    def __init__(self, turns: Turns, stack: ExitStack) -> None:
        """Begin.

        Args:
            turns: What is done; from now on by the thread alone.
            stack: What is closed in the end.
        """
        self._turns, self._stack = turns, stack
        self._asked: list[Callable[[], None]] = []
        # None while it runs; then whether what is there is still finished.
        self._stopping: bool | None = None
        self._died: BaseException | None = None
        self._ended = False
        self._thread = Thread(target=self._run, name="louiskv-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it goes on."""
        return self._stopping is None and self._died is None

    def check_alive(self) -> None:
        """Raise `EngineStoppedError` if it does not go on."""
        if self._died is not None:
            raise EngineStoppedError(f"An error has ended the engine: {self._died!r}. Make a new one.") from self._died
        if self._stopping is not None:
            raise EngineStoppedError("The engine was stopped. Make a new one.")

    def wake(self) -> None:
        """Have a look at what has changed."""
        with self._turns.changed:
            self._turns.changed.notify_all()

    def stop(self, finish: bool) -> None:
        """End, when the requests that there are have their answers, or at once; returns when it has ended."""
        with self._turns.changed:
            self._stopping = finish and self._stopping is not False
            self._turns.changed.notify_all()
        if current_thread() is not self._thread:
            self._thread.join()

    def between_turns(self, ask: Callable[[], T]) -> T:
        """Run something while nothing changes, in the thread as long as there is one."""
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
        """End what is left, close what is to be closed, and let those that ask afterwards look for themselves."""
        try:
            self._turns.end_all("cancelled" if self._died is None else "error", self._died)
            self._stack.close()
        finally:
            with self._turns.changed:
                self._ended = True
                asked, self._asked = self._asked, []
            for answer in asked:
                answer()
