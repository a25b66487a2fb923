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


@dataclass(frozen=True)
class Ledger(Task):
    """The model is made to write a ledger line by line, and then to repeat one of its first lines.

    Attributes:
        share: Share of the tokens that the ledger takes; the rest is a document in the prompt.
        earliest: The line asked for lies in this share of the ledger, from its beginning.
    """

    scenario: ClassVar[str] = "long output"
    tells: ClassVar[str] = "an early line of a long ledger that the model has written"

    share: float = 1.0
    earliest: float = 0.5

    def sample(self, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """Write lines until the tokens are used up."""
        question = "Keep a ledger of payments. When a receipt is asked for again, repeat its line word by word."
        room = int(self.share * num_tokens) - 32 * (SHOWN + 1)
        receipts = iter(numbers(seed, 9000, 4))
        lines: list[str] = []
        used = 0
        while True:
            number = next(receipts)
            line = f"Receipt {number}: {seed.choice(PEOPLE)} pays for a {seed.choice(NOUNS)} in {seed.choice(CITIES)}."
            used += haystack.count(f"{line}\n")
            if used > room:
                break
            lines.append(line)
        if len(lines) < 4:
            raise SettingsError(
                f"A context of {num_tokens} tokens is too short for a ledger of 4 lines. Give a longer --context."
            )
        early = lines[: max(SHOWN + 1, int(self.earliest * len(lines)))]
        *shown, wanted = seed.sample(early, SHOWN + 1)
        receipt, _, content = wanted.partition(":")
        spoken = "\n".join([*lines, "Again:", *shown, f"{receipt}:"])
        document = ""
        if self.share < 1:
            document = haystack.around([], question, num_tokens - haystack.count(spoken), seed)
        return Sample(document, question, (content.strip(" ."),), max_new_tokens=24, spoken=spoken)
