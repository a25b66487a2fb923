"""Common words: which of many come most often (RULER, arXiv 2404.06654, section 3)."""

import random
from dataclasses import dataclass
from typing import ClassVar

from louiskv.errors import SettingsError
from louiskv.evaluation.tasks.base import Sample, Task
from louiskv.evaluation.tasks.words import NOUNS
from louiskv.evaluation.texts import Haystack


@dataclass(frozen=True)
class CommonWords(Task):
    """A numbered list of words, some of which come far more often than the others.

    Attributes:
        common: Words that come often, and are asked for.
        ratio: How much more often they come.
    """

    tells: ClassVar[str] = "the most frequent words of a long list"

    common: int = 4
    ratio: int = 10

    def sample(self, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """Fill the prompt with words."""
        words = seed.sample(NOUNS, len(NOUNS))
        question = f"Which {self.common} words are the most frequent in the list above? Answer with the words."
        often, seldom = words[: self.common], words[self.common :]
        once = often * self.ratio + seldom
        room = num_tokens - haystack.count(question)
        rounds = room // haystack.count(_listed(once))
        if rounds < 1:
            raise SettingsError(
                f"A context of {num_tokens} tokens is too short for common_words: give at least "
                f"{num_tokens - room + haystack.count(_listed(once))}."
            )
        drawn = once * rounds
        seed.shuffle(drawn)
        # Later numbers have more digits than those of the first round.
        while haystack.count(_listed(drawn)) > room:
            drawn = drawn[: int(0.98 * len(drawn))]
        return Sample(_listed(drawn), question, tuple(often), max_new_tokens=24, prefix="The most frequent words are:")


def _listed(words: list[str]) -> str:
    return "\n".join(f"{place}. {word}" for place, word in enumerate(words, 1))
