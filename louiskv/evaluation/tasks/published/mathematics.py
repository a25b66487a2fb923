"""MATH-500 (arXiv 2305.20050, of arXiv 2103.03874) and AIME: problems whose solutions are long."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from louiskv.evaluation.tasks.base import Sample
from louiskv.evaluation.tasks.published.base import Published
from louiskv.evaluation.tasks.published.files import DataFile, Entry
from louiskv.evaluation.texts import Haystack

BOX = "\\boxed{"
INSTRUCTION = f"Think step by step. Put the final answer, and nothing else, in {BOX}}}."


@dataclass(frozen=True)
class Problem:
    """A problem and its answer, as LaTeX."""

    problem: str
    answer: str


@dataclass(frozen=True)
class Mathematics(Published[Problem]):
    r"""Problems whose answer is to stand in \boxed{}."""

    tells: ClassVar[str] = "mathematical problems from their file, by the answer in the last box"

    @property
    def scenario(self) -> str:
        """Long output."""
        return "long output"

    def asked(self, record: Problem, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """The problem, and where to put its answer."""
        sample = Sample(record.problem, INSTRUCTION, (record.answer,), self.max_new_tokens)
        self.check_fits(sample.prompt, haystack, num_tokens)
        return sample

    def score(self, sample: Sample, output: str) -> float:
        """1 if the last box holds an expression that equals the answer, otherwise 0."""
        said = boxed(output)
        return float(said is not None and equal(sample.answers[0], said))


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{} of a text, None if there is no whole one."""
    _, box, rest = text.rpartition(BOX)
    depth = 1 if box else 0
    for place, letter in enumerate(rest):
        escaped = place > 0 and rest[place - 1] == "\\"
        if not escaped:
            depth += (letter == "{") - (letter == "}")
        if box and depth == 0:
            return rest[:place].strip()
    return None


def equal(expected: str, said: str) -> bool:
    """Whether two mathematical expressions, as LaTeX, mean the same."""
    from math_verify import parse, verify

    if "".join(expected.split()) == "".join(said.split()):
        return True
    wanted, given = (parse(f"{BOX}{each}}}") for each in (expected, said))
    return bool(verify(wanted, given))


MATH_500 = "MATH-500 is a file of JSON lines; each has problem and answer, as text."
AIME = "AIME is a file of JSON lines or one JSON list; each record has problem, as text, and answer, from 0 to 999."


def math500(path: Path) -> dict[str, Mathematics]:
    """The task of a file of MATH-500.

    Raises:
        SettingsError: There is no such file, or its records are not as published.
    """
    data = DataFile(path, MATH_500)
    problems = tuple(Problem(entry.text("problem"), entry.text("answer")) for entry in data.json())
    return {"math500": Mathematics("math500", data.digest, 2048, problems)}


def aime(path: Path) -> dict[str, Mathematics]:
    """The task of a file of problems of the American Invitational Mathematics Examination, of any year.

    Raises:
        SettingsError: There is no such file, or its records are not as published.
    """
    data = DataFile(path, AIME)
    problems = tuple(Problem(entry.text("problem"), _whole(entry)) for entry in data.json())
    return {"aime": Mathematics("aime", data.digest, 4096, problems)}


def _whole(entry: Entry) -> str:
    """The answer of AIME, which some publishers write as 033."""
    digits = str(entry.fields.get("answer")).strip()
    if not (digits.isascii() and digits.isdigit() and int(digits) <= 999):
        raise entry.refusal("answer")
    return str(int(digits))
