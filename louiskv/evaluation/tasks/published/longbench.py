"""LongBench (arXiv 2308.14508): questions about long English and Chinese texts, and long code.

The prompts ask what the published ones ask, in other words: scores compare methods with each other, and are near those
of papers, not equal to them. Lengths, cuts and scores are as published.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from louiskv.errors import SettingsError
from louiskv.evaluation.tasks.base import Sample
from louiskv.evaluation.tasks.published import metrics
from louiskv.evaluation.tasks.published.base import Published
from louiskv.evaluation.tasks.published.files import DataFile, Entry
from louiskv.evaluation.texts import Haystack


@dataclass(frozen=True)
class Dataset:
    """How a dataset is asked and scored.

    Attributes:
        prompt: With places for {context} and {input}.
        max_new_tokens: Most tokens of an answer.
        score: Of an output against an answer; None where classes are told apart, which the file names.
        raw: Whether to leave out the chat template: examples or code are to be gone on with.
        one_line: Whether only the first line of an answer counts.
    """

    prompt: str
    max_new_tokens: int
    score: Callable[[str, str], float] | None
    raw: bool = False
    one_line: bool = False


PASSAGES = (
    "Here are passages, and a question about them comes after. Answer with nothing but the answer.\n\n{context}\n\n"
    "Use the passages above to answer the question. Answer with nothing but the answer, in no other words.\n\n"
    "Question: {input}\nAnswer:"
)
CODE = "Go on with this code.\n{context}{input}Next line of code:\n"

DATASETS: dict[str, Dataset] = {
    "narrativeqa": Dataset(
        "Here is a story, a novel or the script of a film, and a question comes after.\n\nStory: {context}\n\n"
        "Answer the question about the story as shortly as you can, by one phrase where that is enough. Explain "
        "nothing.\n\nQuestion: {input}\n\nAnswer:",
        128,
        metrics.f1,
    ),
    "qasper": Dataset(
        "Here is a scientific article, and a question comes after.\n\nArticle: {context}\n\nAnswer the question about "
        "the article as shortly as you can, by one phrase or sentence. If the article does not answer it, write "
        '"unanswerable". If it asks for yes or no, write "yes", "no" or "unanswerable". Explain nothing.\n\n'
        "Question: {input}\n\nAnswer:",
        128,
        metrics.f1,
    ),
    "multifieldqa_en": Dataset(
        "Read this text; a question comes after.\n\n{context}\n\nUse the text above to answer the question. Answer "
        "with nothing but the answer.\n\nQuestion: {input}\nAnswer:",
        64,
        metrics.f1,
    ),
    "multifieldqa_zh": Dataset(
        "请阅读下文，随后用中文简短作答。\n\n{context}\n\n请根据上文回答问题，只写出答案，不要写别的内容。\n\n问题：{input}\n答案：",  # noqa: RUF001
        64,
        metrics.f1_chinese,
    ),
    "hotpotqa": Dataset(PASSAGES, 32, metrics.f1),
    "2wikimqa": Dataset(PASSAGES, 32, metrics.f1),
    "musique": Dataset(PASSAGES, 32, metrics.f1),
    "dureader": Dataset(
        "请阅读这些文章，随后回答问题。\n\n文章：{context}\n\n请根据上面的文章作答。\n\n问题：{input}\n答案：",  # noqa: RUF001
        128,
        metrics.rouge_chinese,
    ),
    "gov_report": Dataset(
        "Here is a report of a government agency.\n\nReport:\n{context}\n\nSum the report up on one page.\n\nSummary:",
        512,
        metrics.rouge,
    ),
    "qmsum": Dataset(
        "Here is what was said in a meeting, and a query comes after.\n\nTranscript:\n{context}\n\nAnswer the query "
        "about the meeting in one sentence or a few.\n\nQuery: {input}\nAnswer:",
        512,
        metrics.rouge,
    ),
    "multi_news": Dataset(
        "Here are several pieces of news.\n\nNews:\n{context}\n\nSum all of them up on one page.\n\nSummary:",
        512,
        metrics.rouge,
    ),
    "vcsum": Dataset(
        "请阅读这段会议记录，随后写出总结。\n\n会议记录：\n{context}\n\n请总结会议内容：",  # noqa: RUF001
        512,
        metrics.rouge_chinese,
    ),
    "trec": Dataset(
        "Tell the type of the last question, as in these examples.\n\n{context}\n{input}",
        64,
        None,
        raw=True,
        one_line=True,
    ),
    "triviaqa": Dataset(
        "Answer the last question from its passage, with nothing but the answer, as in these examples.\n\n"
        "{context}\n\n{input}",
        32,
        metrics.f1,
        raw=True,
        one_line=True,
    ),
    "samsum": Dataset(
        "Sum the last dialogue up in a few short sentences, as in these examples.\n\n{context}\n\n{input}",
        128,
        metrics.rouge,
        raw=True,
        one_line=True,
    ),
    "lsht": Dataset(
        "请参照以下例子，给出最后一条新闻的类别。\n\n{context}\n{input}",  # noqa: RUF001
        64,
        None,
        raw=True,
        one_line=True,
    ),
    "passage_count": Dataset(
        "Here are numbered paragraphs of Wikipedia, some of them more than once. Find out how many different ones "
        "there are.\n\n{context}\n\nHow many paragraphs are left if each is counted once? Answer with nothing but the "
        "number, such as 1, 2 or 3.\n\nThe number is: ",
        32,
        metrics.number,
    ),
    "passage_retrieval_en": Dataset(
        "Here are 30 paragraphs of Wikipedia; a summary of one of them comes after.\n\n{context}\n\nThis is the "
        "summary:\n\n{input}\n\nWhich paragraph does it sum up? Answer in the form "
        '"Paragraph 1", "Paragraph 2" and so on.\n\nThe answer is: ',
        32,
        metrics.number,
    ),
    "passage_retrieval_zh": Dataset(
        "下面有若干段文字，之后是其中一段的摘要。\n\n{context}\n\n摘要如下：\n\n{input}\n\n"  # noqa: RUF001
        "这个摘要对应哪一段？请按“段落1”、“段落2”的格式作答。\n\n答案：",  # noqa: RUF001
        32,
        metrics.number,
    ),
    "lcc": Dataset(CODE, 64, metrics.code, raw=True),
    "repobench-p": Dataset(CODE, 64, metrics.code, raw=True),
}

EXPECTED = (
    "LongBench has a file of JSON lines for each dataset, such as hotpotqa.jsonl; each line has context, input and "
    "answers, and all_classes where there are classes."
)


@dataclass(frozen=True)
class Question:
    """A record: what it asks, and what may be answered."""

    context: str
    input: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class LongBench(Published[Question]):
    """A dataset of LongBench.

    Attributes:
        dataset: Key of DATASETS.
        classes: Names of the classes, where the dataset has such.
    """

    tells: ClassVar[str] = "LongBench, from its file"

    dataset: str
    classes: tuple[str, ...] = field(default=(), repr=False)

    def asked(self, record: Question, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """The whole prompt, cut in its middle where it is too long: what to do stands at its ends."""
        rules = DATASETS[self.dataset]
        self.check_fits(rules.prompt.format(context="", input=""), haystack, num_tokens)
        prompt = rules.prompt.format(context=record.context, input=record.input)
        cut = haystack.without_middle(prompt, num_tokens)
        return Sample("", cut, record.answers, self.max_new_tokens, raw=rules.raw)

    def score(self, sample: Sample, output: str) -> float:
        """The best score against any of the answers."""
        rules = DATASETS[self.dataset]
        said = output.lstrip("\n").split("\n")[0] if rules.one_line else output
        score = rules.score or partial(metrics.classification, self.classes)
        return max(score(said, answer) for answer in sample.answers)


def longbench(path: Path) -> dict[str, LongBench]:
    """A task for each dataset in a folder or in its subfolder `data`; a file is taken alone.

    Raises:
        SettingsError: There is no such file, it is of no dataset, or its records are not as published.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl")) or sorted((path / "data").glob("*.jsonl"))
    if not files:
        raise SettingsError(f"{path} {'holds no .jsonl files' if path.exists() else 'is not there'}. {EXPECTED}")
    return {f"longbench_{file.stem}": _read(file) for file in files}


def _read(path: Path) -> LongBench:
    # LongBench-E has samples of other lengths, asked and scored alike.
    dataset = path.stem.removesuffix("_e")
    if dataset not in DATASETS:
        raise SettingsError(f"{path} is no dataset of LongBench. They are: {', '.join(DATASETS)}; or those with _e.")
    data = DataFile(path, EXPECTED)
    entries = data.json()
    rules = DATASETS[dataset]
    classes = () if rules.score else _classes(entries)
    records = tuple(
        Question(entry.text("context"), entry.text("input", empty=True), entry.texts("answers")) for entry in entries
    )
    return LongBench(f"longbench_{path.stem}", data.digest, rules.max_new_tokens, records, dataset, classes)


def _classes(entries: list[Entry]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for entry in entries for each in entry.texts("all_classes")))
