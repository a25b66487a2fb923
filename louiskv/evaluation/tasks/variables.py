"""Variable tracking: who has the value in the end (RULER, arXiv 2404.06654, section 3)."""

import random
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from louiskv.evaluation.tasks.base import Sample, Task
from louiskv.evaluation.tasks.words import NOUNS, number
from louiskv.evaluation.texts import Haystack


@dataclass(frozen=True)
class VariableTracking(Task):
    """A value is handed from variable to variable, far apart; all that have it are asked for.

    Attributes:
        hops: Times that it is handed on.
    """

    tells: ClassVar[str] = "all variables to which a value was handed on"

    hops: int = 3

    def sample(self, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """Hide the assignments in their order."""
        names = [name.upper() for name in seed.sample(NOUNS, self.hops + 1)]
        value = number(seed)
        facts = [f"VAR {names[0]} = {value}"]
        facts += [f"VAR {name} = VAR {before}" for before, name in pairwise(names)]
        question = (
            f"In the text above, variables are assigned with lines that begin with VAR. List all {len(names)} "
            f"variables that have the value {value}, directly or through another variable."
        )
        document = haystack.around(facts, question, num_tokens, seed)
        return Sample(
            document, question, tuple(names), max_new_tokens=32, prefix=f"The variables that have the value {value} are"
        )
