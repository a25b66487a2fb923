"""A published benchmark: the samples are the records of a file, in its order."""

import random
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from louiskv.errors import SettingsError
from louiskv.evaluation.tasks.base import Sample, Task
from louiskv.evaluation.texts import Haystack

Record = TypeVar("Record")


@dataclass(frozen=True)
class Published(Task, Generic[Record]):
    """A benchmark that was read from a file.

    Attributes:
        name: What it is called.
        digest: Of the file: results of another one must not be taken for its own.
        max_new_tokens: Most tokens of an answer.
        records: What the file holds.
    """

    name: str
    digest: str
    max_new_tokens: int
    records: tuple[Record, ...] = field(repr=False)

    @property
    def available(self) -> int:
        """As many as the file has."""
        return len(self.records)

    def numbered(self, number: int, haystack: Haystack, num_tokens: int, seed: str) -> Sample:
        """Record `number` of the file."""
        return self.asked(self.records[number], haystack, num_tokens, random.Random(f"{seed} {number}"))

    def sample(self, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """Any record."""
        return self.asked(seed.choice(self.records), haystack, num_tokens, seed)

    @abstractmethod
    def asked(self, record: Record, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """The question of a record, in at most `num_tokens` tokens.

        Raises:
            SettingsError: It does not fit.
        """

    def check_fits(self, question: str, haystack: Haystack, num_tokens: int) -> None:
        """Raise `SettingsError` if a question that must stay whole has more than `num_tokens` tokens."""
        needed = haystack.count(question)
        if needed > num_tokens:
            raise SettingsError(
                f"A context of {num_tokens} tokens is too short for {self.name}: a question needs {needed}. Give a "
                "longer --context."
            )
