"""Reading: questions about real text, with the passage that answers them among others."""

import random
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import ClassVar, NamedTuple

from louiskv.evaluation.tasks.base import Sample, Task
from louiskv.evaluation.texts import Haystack


class Question(NamedTuple):
    """A question with its answer, and the topic of Python's documentation that has it."""

    topic: str
    text: str
    answer: str


QUESTIONS = (
    Question("assert", "Which command line option makes the variable __debug__ False?", "-O"),
    Question("booleans", "Which method can an object define to customize its truth value?", "__bool__"),
    Question("callable-types", "Which method makes an instance callable like a function?", "__call__"),
    Question("debugger", "In which source file is the module pdb found?", "Lib/pdb.py"),
    Question("debugger", "Which module is used to dump Python tracebacks explicitly on a fault?", "faulthandler"),
    Question("del", "In which order does deletion of a target list delete each target?", "left to right"),
    Question("floating", "Which radix is always used for the integer and exponent parts of a float literal?", "10"),
    Question("identifiers", "On which Unicode standard annex is the syntax of identifiers based?", "UAX-31"),
    Question("identifiers", "Which PEP has further details on non-ASCII identifiers?", "3131"),
    Question("imaginary", "What is the real part of the complex number that an imaginary literal yields?", "0.0"),
    Question("lambda", "What can functions created with lambda expressions not contain?", "statements"),
    Question("in", "A test of the kind x in y for strings is equivalent to which method being unequal to -1?", "find"),
    Question("nonlocal", "Which PEP is the specification of the nonlocal statement?", "3104"),
    Question("pass", "What kind of operation is the pass statement?", "null operation"),
    Question("power", "What is the result of the expression -1**2?", "-1"),
    Question("raise", "Which exception does raise cause if there is no active exception?", "RuntimeError"),
    Question("shifting", "A right shift by n bits is defined as floor division by what?", "pow(2,n)"),
    Question("truth", "Which method that returns zero makes an object false?", "__len__"),
    Question("unary", "Which exception is raised if a unary operation's argument has a wrong type?", "TypeError"),
    Question("while", "What does a break statement in the first suite of a while loop not execute?", "else"),
    Question("with", "Which method of a context manager is invoked when the suite begins?", "__enter__"),
    Question("yield", "What kind of function is defined by using yield in it?", "generator"),
)  # fmt: skip
# Characters of a topic that are put into the document: the answers stand there.
PASSAGE = 2500


def passage(question: Question) -> str:
    """What is put into the document; empty if this version of Python has no such topic."""
    return str(topics.get(question.topic, "")).strip()[:PASSAGE]


# Versions of Python differ in what they document: nothing is asked that is not answered.
ASKED = tuple(each for each in QUESTIONS if each.answer in " ".join(passage(each).split()))


@dataclass(frozen=True)
class Reading(Task):
    """Questions about Python's documentation; the passage that has the answer lies somewhere in the text."""

    tells: ClassVar[str] = "questions about real text, one passage of many"

    def numbered(self, number: int, haystack: Haystack, num_tokens: int, seed: str) -> Sample:
        """Sample `number`: those of one evaluation ask different questions, as far as there are so many."""
        order = random.Random(seed).sample(ASKED, len(ASKED))
        return _about(order[number % len(order)], haystack, num_tokens, random.Random(f"{seed} {number}"))

    def sample(self, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """Hide the passage of any question."""
        return _about(seed.choice(ASKED), haystack, num_tokens, seed)


def _about(asked: Question, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
    """A question, and its passage somewhere in the text."""
    question = f"{asked.text} Answer in a few words, from the text above."
    document = haystack.around([passage(asked)], question, num_tokens, seed)
    return Sample(document, question, (asked.answer,), max_new_tokens=24, prefix="According to the text, the answer is")
