"""A load test: one server for each method in turn, and clients that ask it."""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

from louiskv.bench.clients import Job, Told
from louiskv.bench.load_figures import figures_of
from louiskv.bench.runner import Bench, Entry, Record
from louiskv.bench.served import Clients, served, watched
from louiskv.engine import Engine, Request, Sampling
from louiskv.errors import SettingsError, check_count, check_range

# The name of the model at the server.
NAME = "measured"
# What a method's first engine answers before anything is measured, in tokens of prompt and output.
WARM_UP = (64, 4)


@dataclass(frozen=True)
class Load:
    """How many ask, or how often.

    Attributes:
        clients: Clients, each of which asks one request after another; None where they come by `rate`.
        rate: Requests a second on average, at times of a Poisson process, whatever was answered; None for clients.
    """

    clients: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        """Check that it is one of both."""
        if self.clients is not None:
            check_count("clients", self.clients, 1)
        if self.rate is not None:
            check_range("rate", self.rate, 1e-6, 1e6)
        assert (self.clients is None) != (self.rate is None)


@dataclass(frozen=True)
class Asked:
    """What is asked of each method at each load.

    Attributes:
        prompts: Tokens of a prompt; as many requests of each, in the order of a lot.
        output: Tokens of an answer.
        requests: Requests.
        seed: Of the order, of where prompts lie in the text, and of arrivals.
        timeout: Seconds that a request may take.
    """

    prompts: tuple[int, ...] = (128, 1024)
    output: int = 64
    requests: int = 16
    seed: int = 0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for length in self.prompts:
            check_count("prompt", length, 1)
        check_count("output", self.output, 1)
        check_count("requests", self.requests, 1)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and its answer."""
        return max(self.prompts) + self.output

    def cut(self, ids: Sequence[int]) -> list[list[int]]:
        """The prompts: each begins at another place of a text, which begins anew where it ends.

        Raises:
            SettingsError: The text has fewer places than there are requests.
        """
        if len(ids) < self.requests:
            raise SettingsError(
                f"The text has {len(ids)} tokens, too few for {self.requests} prompts that begin differently: give a "
                "longer --text, or fewer --requests."
            )
        lot = random.Random(self.seed)
        lengths = [self.prompts[place % len(self.prompts)] for place in range(self.requests)]
        lot.shuffle(lengths)
        starts = lot.sample(range(len(ids)), self.requests)
        endless = [*ids, *ids[: max(self.prompts)]]
        while len(endless) < len(ids) + max(self.prompts):
            endless += ids
        return [endless[start : start + length] for start, length in zip(starts, lengths, strict=True)]

    def arrivals(self, rate: float) -> list[float]:
        """When each request comes, in seconds; the first at once."""
        lot = random.Random(self.seed)
        return [0.0, *accumulate(lot.expovariate(rate) for _ in range(self.requests - 1))]


@dataclass(frozen=True)
class Room:
    """What the server is given; None for what it takes by itself, see `Engine`."""

    rows: int = 8
    prefill_chunk: int | None = None
    queue: int = 64
    host_memory: int | None = None
    device_memory: int | None = None


class LoadBench:
    """Servers and clients on one model.

    Args:
        bench: The model, attached to nothing, and the results.
        asked: What is asked.
        room: What the servers are given.
        ids: Token ids of the text that prompts are cut from.
        text_hash: Tells it from others.
    """

    def __init__(self, bench: Bench, asked: Asked, room: Room, ids: Sequence[int], text_hash: str) -> None:
        self.bench, self.asked, self.room = bench, asked, room
        self._prompts, self._text_hash = asked.cut(ids), text_hash
        self._warm = list(ids[: WARM_UP[0]])
        self._done = self._total = 0

    def run(self, loads: Sequence[Load], field: Sequence[Entry]) -> Iterator[Record]:
        """Measure each load with every contestant in turn; yields the records, known ones included.

        Raises:
            HostMemoryError: A contestant has not even memory for the longest request alone.
            DeviceMemoryError: The same, on the device.
        """
        loads = tuple(dict.fromkeys(loads))
        self._total = len(loads) * len(field) * self.asked.requests
        with Clients() as clients:
            for load in loads:
                known = self.bench.known("serve", self._sizes(load), field)
                if known is None:
                    known = [self._measured(clients, load, entry) for entry in field]
                else:
                    self._done += len(field) * self.asked.requests
                yield from known

    def _sizes(self, load: Load) -> Record:
        """All that decides over a measurement beside who is measured."""
        asked = {**asdict(self.asked), "prompts": list(self.asked.prompts)}
        return {**asdict(load), **asked, **asdict(self.room), "text_hash": self._text_hash}

    def _measured(self, clients: Clients, load: Load, entry: Entry) -> Record:
        assert entry.method is not None, "a server runs a method"
        self._warm_up(entry)
        told: list[Told] = []
        with (
            self._engine(entry) as engine,
            served(engine, self.bench.tokenizer, NAME, entry.method) as address,
            watched(engine) as peaks,
        ):
            # What came before is the same however much is asked.
            began = time.process_time()
            for each in clients.drive(self._job(load, address)):
                told.append(each)
                self._done += 1
                self.bench.progress(f"{_told(load)}: {entry.name}", self._done, self._total)
            figures, spent = engine.figures(), time.process_time() - began
        return self.bench.add("serve", self._sizes(load), entry, figures_of(told, peaks, figures, spent))

    def _engine(self, entry: Entry) -> Engine:
        model, tokenizer, method = self.bench.model, self.bench.tokenizer, entry.method
        assert method is not None, "a server runs a method"
        return Engine(model, tokenizer, method, impl=entry.impl, kept_memory=0, **asdict(self.room))

    def _warm_up(self, entry: Entry) -> None:
        """Answer once, in an engine of its own, so that what is made at a first use is made."""
        settings = Sampling(max_tokens=WARM_UP[1], temperature=0, ignore_eos=True)
        with self._engine(entry) as engine:
            engine.check_length(self.asked.longest)
            engine.submit(Request(prompt=self._warm, sampling=settings, kept=False)).text()

    def _job(self, load: Load, address: str) -> Job:
        arrivals = [] if load.rate is None else self.asked.arrivals(load.rate)
        return Job(
            address=address,
            model=NAME,
            prompts=self._prompts,
            output=self.asked.output,
            clients=load.clients,
            arrivals=arrivals,
            timeout=self.asked.timeout,
        )


def _told(load: Load) -> str:
    return f"{load.rate:g} requests a second" if load.clients is None else f"{load.clients} clients"
