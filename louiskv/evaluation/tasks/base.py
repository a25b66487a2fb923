"""The contract of a task: samples from a seed, and a score for each answer."""

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from louiskv.evaluation.texts import Haystack


@dataclass(frozen=True)
class Sample:
    """One question to a model.

    Attributes:
        document: What the prompt begins with.
        question: What stands behind it.
        answers: What an answer must have in it, as the task scores it.
        max_new_tokens: Most tokens of an answer.
        prefix: How the answer begins; it ends the prompt, as in RULER, so that small models say what was asked for.
        spoken: What the model is made to say first, one token at a time; its answer goes on from there.
        raw: Whether to leave out the chat template.
    """

    document: str
    question: str
    answers: tuple[str, ...]
    max_new_tokens: int
    prefix: str = ""
    spoken: str = ""
    raw: bool = False

    @property
    def prompt(self) -> str:
        """Document and question."""
        return f"{self.document}\n\n{self.question}" if self.document else self.question


class Task(ABC):
    """A kind of question.

    Attributes:
        tells: What it asks for, in one line.
    """

    tells: ClassVar[str]

    @property
    def scenario(self) -> str:
        """Long input, long output, or long both."""
        return "long input"

    @abstractmethod
    def sample(self, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """A sample whose prompt has nearly `num_tokens` tokens; the same for the same seed.

        Raises:
            SettingsError: So few tokens do not hold what it asks for.
        """

    @property
    def available(self) -> int | None:
        """How many samples there are; None if they are drawn without end."""
        return None

    def numbered(self, number: int, haystack: Haystack, num_tokens: int, seed: str) -> Sample:
        """Sample `number`, drawn by a seed of its own; a task that has a list of them takes that one."""
        return self.sample(haystack, num_tokens, random.Random(f"{seed} {number}"))

    def score(self, sample: Sample, output: str) -> float:
        """From 0 to 1: the share of the answers that the output holds (string match as in RULER, arXiv 2404.06654)."""
        said = " ".join(output.casefold().split())
        return sum(answer.casefold() in said for answer in sample.answers) / len(sample.answers)
