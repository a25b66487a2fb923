"""Ledger: a line of what the model itself has written, long ago."""

import random
from dataclasses import dataclass
from typing import ClassVar

from louiskv.errors import SettingsError
from louiskv.evaluation.tasks.base import Sample, Task
from louiskv.evaluation.tasks.words import CITIES, NOUNS, PEOPLE, numbers
from louiskv.evaluation.texts import Haystack

# Lines that are repeated before, so that it is clear what is wanted.
SHOWN = 2
# A ledger has so many lines at least, however short the context.
FEWEST = 10


@dataclass(frozen=True)
class Ledger(Task):
    """The model is made to write a ledger line by line, and then to repeat one of its first lines.

    Attributes:
        behind_text: A document fills the prompt; otherwise it has nothing but the question.
        share: Share of the context that the ledger takes. All of it is decoded token by token.
        earliest: The line asked for lies in this share of the ledger, from its beginning.
    """

    tells: ClassVar[str] = "an early line of a long ledger that the model has written"

    behind_text: bool = False
    share: float = 0.1
    earliest: float = 0.5

    @property
    def scenario(self) -> str:
        """Long both, if there is a text."""
        return "long both" if self.behind_text else "long output"

    def sample(self, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """Write lines until their share is used up."""
        question = "Keep a ledger of payments. When a receipt is asked for again, repeat its line word by word."
        receipts = iter(numbers(seed, 9000, 4))
        lines: list[str] = []
        used = 0
        while len(lines) < FEWEST or used < self.share * num_tokens:
            number = next(receipts)
            lines.append(
                f"Receipt {number}: {seed.choice(PEOPLE)} pays for a {seed.choice(NOUNS)} in {seed.choice(CITIES)}."
            )
            used += haystack.count(f"{lines[-1]}\n")
        *shown, wanted = seed.sample(lines[: int(self.earliest * len(lines))], SHOWN + 1)
        receipt, _, content = wanted.partition(":")
        spoken = "\n".join([*lines, "Again:", *shown, f"{receipt}:"])
        room = num_tokens - haystack.count(spoken)
        if room < haystack.count(question):
            raise SettingsError(
                f"A context of {num_tokens} tokens is too short for a ledger of {FEWEST} lines: give at least "
                f"{num_tokens - room + haystack.count(question)}."
            )
        document = haystack.around([], question, room, seed) if self.behind_text else ""
        return Sample(document, question, (content.strip(" ."),), max_new_tokens=24, spoken=spoken)
