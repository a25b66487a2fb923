"""GPQA (arXiv 2311.12022): questions of science with four choices, to be thought over."""

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from louiskv.evaluation.tasks.base import Sample
from louiskv.evaluation.tasks.published.base import Published
from louiskv.evaluation.tasks.published.files import DataFile
from louiskv.evaluation.texts import Haystack

LETTERS = "ABCD"
INSTRUCTION = (
    'Think step by step. Then end with a line of the form "Answer: X", where X is the letter of the right choice.'
)
# "Answer: B", "the answer is (B)", "**Answer:** B", or the letter in a box; and an output that is a letter alone.
SAID = re.compile(r"(?i:answer(?: is)?[\s:*]*|\\boxed\{(?:\\text\{)?)\(?([A-D])\b")
ALONE = re.compile(r"\W*([A-D])\W*")
WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
EXPECTED = f"GPQA is a CSV file with the columns Question, Correct Answer, {', '.join(WRONG)}."


@dataclass(frozen=True)
class Choice:
    """A question with its right answer and the wrong ones."""

    question: str
    right: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class GPQA(Published[Choice]):
    """Questions with four choices, whose order the seed decides."""

    tells: ClassVar[str] = "questions of science with four choices from their file, by the letter of the answer"

    @property
    def scenario(self) -> str:
        """Long output."""
        return "long output"

    def asked(self, record: Choice, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """The question and its choices, shuffled."""
        choices = [record.right, *record.wrong]
        seed.shuffle(choices)
        listed = "\n".join(f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
        letter = LETTERS[choices.index(record.right)]
        sample = Sample(f"{record.question}\n\n{listed}", INSTRUCTION, (letter,), self.max_new_tokens)
        self.check_fits(sample.prompt, haystack, num_tokens)
        return sample

    def score(self, sample: Sample, output: str) -> float:
        """1 if the last letter that is given as the answer is the right one, otherwise 0."""
        alone = ALONE.fullmatch(output)
        said = [alone[1]] if alone else SAID.findall(output)
        return float(said[-1:] == [sample.answers[0]])


def gpqa(path: Path) -> dict[str, GPQA]:
    """The task of a file of GPQA: main, extended or diamond.

    Raises:
        SettingsError: There is no such file, or its rows are not as published.
    """
    data = DataFile(path, EXPECTED)
    choices = tuple(
        Choice(
            entry.text("Question").strip(),
            entry.text("Correct Answer").strip(),
            tuple(entry.text(name).strip() for name in WRONG),
        )
        for entry in data.table()
    )
    return {"gpqa": GPQA("gpqa", data.digest, 2048, choices)}
