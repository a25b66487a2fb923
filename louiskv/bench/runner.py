"""What every benchmark needs: who is measured, and a record for each finished measurement."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv.contestants import Contestant
from louiskv.methods.base import Method
from louiskv.provenance import origin, provenance
from louiskv.results import Results, key_of

Record = dict[str, Any]

# Transformers' own cache and attention, the yardstick that is not ours.
SDPA = "sdpa"
_SDPA: Record = {"method": SDPA, "budget": None, "class": SDPA, "settings": {}, "group": None, "family": None}
# What of the machine decides over a time.
MACHINE = ("processor", "threads", "device")


@dataclass(frozen=True)
class Entry:
    """Who is measured.

    Attributes:
        contestant: A method under its name; None for transformers' own cache and attention.
        impl: Implementation of the operations; None takes the best that can run.
    """

    contestant: Contestant | None = None
    impl: str | None = None

    @property
    def name(self) -> str:
        """The name in tables."""
        return SDPA if self.contestant is None else self.contestant.name

    @property
    def method(self) -> Method | None:
        """The method, if it is one."""
        return None if self.contestant is None else self.contestant.method

    @property
    def identity(self) -> Record:
        """All that decides over what it does, and where it stands."""
        return {**(self.contestant.identity if self.contestant else _SDPA), "impl": self.impl}


class Known:
    """What is known already, and by what: the same of the same model on the same machine.

    Who is compared belongs to one run: all of them are known, or all are measured.

    Attributes:
        results: The records.
        origin: The model: its name, a digest, and the type of its numbers.
        run: When this run began.
        provenance: Where the figures come from.
    """

    def __init__(self, results: Results, origin: dict[str, str], device: torch.device) -> None:
        self.results, self.origin = results, origin
        self.run, self.provenance = datetime.now(UTC).isoformat(), provenance(device)

    def key(self, kind: str, sizes: Record, who: Record) -> str:
        """A short name of all that decides over a measurement."""
        known_as = {name: value for name, value in self.origin.items() if name != "model"}
        machine = {name: self.provenance[name] for name in MACHINE}
        return key_of({"kind": kind, **known_as, **machine, **sizes, **who})

    def find(self, kind: str, sizes: Record, field: Iterable[Record]) -> list[Record] | None:
        """The records of a field, if all are there and of one run."""
        keys = [self.key(kind, sizes, who) for who in field]
        records = [self.results[key] for key in keys if key in self.results]
        of_one_run = len({record["run"] for record in records}) == 1
        return records if len(records) == len(keys) and of_one_run else None

    def add(self, kind: str, sizes: Record, who: Record, figures: Record) -> Record:
        """Write down what was measured; it takes the place of what was known of the same."""
        key = self.key(kind, sizes, who)
        head = {"kind": kind, "key": key, "run": self.run, **self.origin, **who}
        self.results.add({**head, **sizes, **figures, "provenance": self.provenance})
        return self.results[key]


class Bench:
    """A model, where results go, and what is known already.

    Attributes:
        results: What is known already.
        progress: Called with what runs, and how much of how much is done.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        results: Results,
        progress: Callable[[str, float, float], None] = lambda *_: None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.results, self.progress = results, progress
        self._known = Known(results, origin(model), model.device)

    @property
    def provenance(self) -> Record:
        """Where the figures come from."""
        return self._known.provenance

    def key(self, kind: str, sizes: Record, entry: Entry) -> str:
        """A short name of all that decides over a measurement."""
        return self._known.key(kind, sizes, entry.identity)

    def known(self, kind: str, sizes: Record, field: Iterable[Entry]) -> list[Record] | None:
        """The records of a field, if all are there and of one run."""
        return self._known.find(kind, sizes, [entry.identity for entry in field])

    def add(self, kind: str, sizes: Record, entry: Entry, figures: Record) -> Record:
        """Write down what was measured; it takes the place of what was known of the same."""
        return self._known.add(kind, sizes, entry.identity, figures)


class Stopwatch:
    """Times that wait for the device.

    Attributes:
        seconds: Each time taken.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []

    def __enter__(self) -> None:
        self._wait()
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._wait()
        self.seconds.append(time.perf_counter() - self._started)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
