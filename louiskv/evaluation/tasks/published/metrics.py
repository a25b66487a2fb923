"""The scores of LongBench (arXiv 2308.14508): from 0 to 1, of an output against one of its answers.

Libraries are imported where they are used: only this needs them, and cutting Chinese into words loads a dictionary.
"""

import re
import string
import sys
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
NOT_CODE = ("`", "#", "//")


def f1(output: str, answer: str) -> float:
    """F1 over English words, without articles, punctuation and capitals (as in SQuAD)."""
    return _overlap(_english(output), _english(answer))


def f1_chinese(output: str, answer: str) -> float:
    """F1 over Chinese words, without punctuation."""
    return _overlap(*([word for word in map(_bare, _chinese(text)) if word] for text in (output, answer)))


def rouge(output: str, answer: str) -> float:
    """F-measure of ROUGE-L, by sentences; 0 where there is no word."""
    from rouge import Rouge

    if not all(text.replace(".", " ").split() for text in (output, answer)):
        return 0.0
    limit = sys.getrecursionlimit()
    # The library calls itself once for each word of two sentences, and Chinese has no full stop that it knows.
    sys.setrecursionlimit(limit + len(output.split()) + len(answer.split()))
    try:
        found = Rouge(metrics=["rouge-l"]).get_scores(output, answer)
    finally:
        sys.setrecursionlimit(limit)
    return float(found[0]["rouge-l"]["f"])


def rouge_chinese(output: str, answer: str) -> float:
    """ROUGE-L over Chinese words."""
    return rouge(" ".join(_chinese(output)), " ".join(_chinese(answer)))


def number(output: str, answer: str) -> float:
    """The share of the numbers in the output that are the one in the answer: a count, or the place of a passage."""
    wanted, said = re.findall(r"\d+", answer), re.findall(r"\d+", output)
    return said.count(wanted[0]) / len(said) if wanted and said else 0.0


def code(output: str, answer: str) -> float:
    """How like the first line of code in the output is to the answer, by edits."""
    from rapidfuzz import fuzz

    lines = output.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in NOT_CODE)), "")
    return fuzz.ratio(line, answer) / 100


def classification(classes: Sequence[str], output: str, answer: str) -> float:
    """One part for each class that the output names, if the right one is among them, otherwise 0.

    A class whose name is a part of the right one's is not counted as named.
    """
    named = [each for each in classes if each in output and (each == answer or each not in answer)]
    return 1 / len(named) if answer in named else 0.0


def _overlap(said: Sequence[str], wanted: Sequence[str]) -> float:
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def _english(text: str) -> list[str]:
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return ARTICLES.sub(" ", bare).split()


def _chinese(text: str) -> list[str]:
    import logging

    import jieba

    jieba.setLogLevel(logging.WARNING)
    return list(jieba.cut(text))


def _bare(word: str) -> str:
    """Letters and digits of a word, those of any script."""
    return "".join(letter for letter in word.lower() if letter.isalnum())
