"""Needles in a haystack: numbers hidden in prose (the kinds of RULER, arXiv 2404.06654, section 3)."""

import random
from dataclasses import dataclass
from typing import ClassVar

from louiskv.evaluation.tasks.base import Sample, Task
from louiskv.evaluation.tasks.words import CITIES, numbers
from louiskv.evaluation.texts import Haystack


@dataclass(frozen=True)
class Needles(Task):
    """Pass keys of cities; some of them are asked for.

    Attributes:
        keys: Cities that have pass keys.
        values: Pass keys of each.
        asked: Cities that are asked for.
    """

    tells: ClassVar[str] = "pass keys of cities hidden in prose"

    keys: int = 1
    values: int = 1
    asked: int = 1

    def sample(self, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """Hide the keys, ask for some."""
        cities = seed.sample(CITIES, self.keys)
        keys = numbers(seed, self.keys * self.values)
        told = [(city, keys.pop()) for city in cities for _ in range(self.values)]
        seed.shuffle(told)
        wanted = cities[: self.asked]
        named = wanted[0] if self.asked == 1 else f"{', '.join(wanted[:-1])} and {wanted[-1]}"
        plural = "s" if self.values * self.asked > 1 else ""
        verb = "are" if plural else "is"
        question = (
            f"What {verb} the secret pass key{plural} of the vault{'s' if self.asked > 1 else ''} in {named}? "
            f"Answer with the number{plural}."
        )
        facts = [f"The secret pass key of the vault in {city} is {key}. Remember it." for city, key in told]
        return Sample(
            haystack.around(facts, question, num_tokens, seed),
            question,
            tuple(key for city, key in told if city in wanted),
            max_new_tokens=12 * self.values * self.asked,
            prefix=f"The secret pass key{plural} of the vault{'s' if self.asked > 1 else ''} in {named} {verb}",
        )
