"""A server that is measured: it runs in a thread of this process, its clients in a process of their own."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from transformers import PreTrainedTokenizerBase

from louiskv.bench import clients
from louiskv.bench.clients import Job, Told
from louiskv.engine import Engine, Figures
from louiskv.methods import Method
from louiskv.serving.app import make_app
from louiskv.serving.desk import Limits
from louiskv.serving.life import Life
from louiskv.serving.prompts import Prompts
from louiskv.serving.server import address_of, listen_at, serve

# Seconds between two looks at the engine.
EVERY = 0.25


@contextmanager
def served(engine: Engine, tokenizer: PreTrainedTokenizerBase, name: str, method: Method) -> Iterator[str]:
    """Answer OpenAI's API at a free port of this machine; yields the address. At the end what still runs is ended.

    What makes the server fail is raised: before anything is yielded if it does not even start, else at the end.
    """
    life, bound, ready = Life(), listen_at("127.0.0.1", 0), Event()
    made = make_app(engine, Prompts(tokenizer, engine.end_tokens), name, method, life=life, limits=Limits())
    address, stops = address_of(bound), list[Callable[[], None]]()

    def on_ready(stop: Callable[[], None]) -> None:
        stops.append(stop)
        ready.set()

    with bound, ThreadPoolExecutor(1, "louiskv-server") as threads:
        running = threads.submit(lambda: asyncio.run(serve(made, bound, life, 0.0, on_ready)))
        running.add_done_callback(lambda _: ready.set())
        try:
            ready.wait()
            if not stops:
                running.result()
                raise RuntimeError("The server has ended before it could be asked.")
            yield address
        finally:
            # One that has ended cannot be stopped.
            with suppress(RuntimeError):
                for stop in stops:
                    stop()
        running.result()


class Clients:
    """The process of the clients; it can be given one job after another."""

    def __init__(self) -> None:
        # Of a session of its own: Ctrl-C reaches this process alone, which ends the other.
        command = [sys.executable, "-P", str(Path(clients.__file__))]
        self._process = subprocess.Popen(
            command, text=True, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def drive(self, job: Job) -> Iterator[Told]:
        """Let them ask; yields what has become of each request when it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # One that has ended is found out below.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        for line in iter(self._process.stdout.readline, ""):
            if not line.strip():
                return
            yield json.loads(line)
        raise RuntimeError(f"The clients have ended before their work was done, with {self._process.wait()}.")


@dataclass
class Peaks:
    """The greatest figures of an engine, as they were between its turns.

    Attributes:
        resident_bytes: Bytes of the resident sets when these and the indices were largest together.
        index_bytes: Bytes of the indices then.
        host_bytes: Most bytes of the pools.
        running: Most answers that were decoded at once.
    """

    resident_bytes: int = 0
    index_bytes: int = 0
    host_bytes: int = 0
    running: int = 0

    @property
    def device_bytes(self) -> int:
        """Resident sets and indices together."""
        return self.resident_bytes + self.index_bytes

    def note(self, figures: Figures) -> None:
        """Look once."""
        if figures.resident_bytes + figures.index_bytes > self.device_bytes:
            self.resident_bytes, self.index_bytes = figures.resident_bytes, figures.index_bytes
        self.host_bytes = max(self.host_bytes, figures.host_bytes)
        self.running = max(self.running, figures.running)


@contextmanager
def watched(engine: Engine) -> Iterator[Peaks]:
    """Look at an engine again and again while something else goes on; what goes wrong there is raised at the end."""
    peaks, over = Peaks(), Event()

    def look() -> None:
        while not over.wait(EVERY):
            peaks.note(engine.figures())

    with ThreadPoolExecutor(1, "louiskv-watch") as threads:
        looking = threads.submit(look)
        try:
            yield peaks
        finally:
            over.set()
        looking.result()
