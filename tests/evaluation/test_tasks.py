"""Tasks: the same seed gives the same sample, which holds its answers and fits, and scores are what they say."""

import json
import random
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from louiskv import SettingsError, models
from louiskv.evaluation.tasks import TASKS, Sample
from louiskv.evaluation.tasks.ledger import FEWEST
from louiskv.evaluation.tasks.reading import ASKED, PASSAGE, QUESTIONS
from louiskv.evaluation.tasks.records import FIELDS, Records
from louiskv.evaluation.texts import Haystack


@pytest.fixture(scope="module")
def haystack() -> Haystack:
    return Haystack.of(models.load_tokenizer())


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("num_tokens", [1000, 3000])
def test_samples_repeat_fit_and_hold_their_answers(haystack: Haystack, name: str, num_tokens: int) -> None:
    first, again, other = (TASKS[name].sample(haystack, num_tokens, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other
    length = haystack.count(first.prompt) + haystack.count(first.spoken)
    # A ledger alone takes its share and no more.
    assert (0.1 if name == "ledger" else 0.7) * num_tokens < length <= num_tokens
    assert first.answers and first.max_new_tokens > 0
    assert TASKS[name].score(first, "") == 0


@pytest.mark.parametrize("name", [name for name in TASKS if name != "records"])
def test_an_output_with_all_answers_scores_one(haystack: Haystack, name: str) -> None:
    sample = TASKS[name].sample(haystack, 1000, random.Random(0))
    assert TASKS[name].score(sample, f"They are: {', '.join(sample.answers).upper()}.") == 1
    if len(sample.answers) > 1:
        assert TASKS[name].score(sample, sample.answers[0]) == 1 / len(sample.answers)


@pytest.mark.parametrize("name", ["passkey", "multikey", "multivalue", "multiquery", "variable_tracking"])
def test_what_is_asked_for_stands_in_the_document(haystack: Haystack, name: str) -> None:
    for seed in range(5):
        sample = TASKS[name].sample(haystack, 1000, random.Random(seed))
        assert all(answer in sample.document for answer in sample.answers)


def test_nothing_is_asked_that_is_not_answered() -> None:
    # In the documentation of another version of Python some may be missing.
    assert len(ASKED) > 0.7 * len(QUESTIONS)
    for question in ASKED:
        text = " ".join(topics[question.topic].strip()[:PASSAGE].split())
        assert question.answer in text, question


def test_samples_of_one_evaluation_ask_different_questions(haystack: Haystack) -> None:
    numbers = range(len(ASKED) + 2)
    asked = [TASKS["reading"].numbered(number, haystack, 800, "0 reading 800").question for number in numbers]
    assert len(set(asked)) == len(ASKED) and asked[-2:] == asked[:2]
    assert TASKS["reading"].numbered(0, haystack, 800, "1 reading 800").question != asked[0]


def test_scenarios() -> None:
    told = {name: task.scenario for name, task in TASKS.items() if task.scenario != "long input"}
    assert told == {"ledger": "long output", "ledger_behind_text": "long both"}


def test_common_words_are_the_most_frequent(haystack: Haystack) -> None:
    sample = TASKS["common_words"].sample(haystack, 1500, random.Random(0))
    words = [line.split()[1] for line in sample.document.splitlines()]
    counts = sorted(set(words), key=words.count, reverse=True)
    assert set(counts[: len(sample.answers)]) == set(sample.answers)


def test_a_ledger_asks_for_a_line_of_its_first_half(haystack: Haystack) -> None:
    sample = TASKS["ledger"].sample(haystack, 1500, random.Random(3))
    lines, _, again = sample.spoken.partition("\nAgain:\n")
    asked = again.splitlines()[-1]
    place = next(number for number, line in enumerate(lines.splitlines()) if line.startswith(asked))
    assert place < len(lines.splitlines()) / 2
    assert sample.answers[0] in lines.splitlines()[place]
    assert sample.document == ""


def test_a_ledger_takes_its_share_of_the_context_behind_a_text(haystack: Haystack) -> None:
    short, long = (TASKS["ledger_behind_text"].sample(haystack, length, random.Random(0)) for length in (600, 4000))
    assert [each.spoken.partition("\nAgain:")[0].count("\n") + 1 >= FEWEST for each in (short, long)] == [True, True]
    assert 400 < haystack.count(long.spoken.partition("\nAgain:")[0]) < 450
    assert haystack.count(long.document) > 3300


def test_records_are_scored_by_field(haystack: Haystack) -> None:
    task = Records(records=3)
    sample = task.sample(haystack, 600, random.Random(0))
    orders = [json.loads(answer) for answer in sample.answers]

    def score(records: list[dict[str, str]], between: str = "\n") -> float:
        return task.score(sample, between.join(map(json.dumps, records)).removeprefix(sample.prefix))

    assert score(orders) == 1
    assert score(orders, " and then { ") == 1
    assert score([{**order, "count": int(order["count"])} for order in orders]) == 1  # type: ignore[dict-item]
    wrong = [{**orders[0], "city": "Nowhere"}, *orders[1:]]
    assert score(wrong) == pytest.approx(14 / 15)
    assert score(orders[:2]) == pytest.approx(2 * 10 / (10 + 15))
    assert score([*orders, {**orders[0], "order": "0"}]) == pytest.approx(2 * 15 / (20 + 15))
    assert len(FIELDS) == 5


def test_a_haystack_of_ones_own(tmp_path: Path) -> None:
    tokenizer, path = models.load_tokenizer(), tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {number} of the book." for number in range(100)))
    haystack = Haystack.of(tokenizer, path)
    document = haystack.around(["One.", "Two."], "Which?", 200, random.Random(0))
    assert haystack.name == "text.txt"
    assert document.index("One.") < document.index("Two.") and "Paragraph" in document
    path.write_text(" \n")
    with pytest.raises(SettingsError, match="text.txt is empty"):
        Haystack.of(tokenizer, path)
    with pytest.raises(SettingsError, match="missing.txt cannot be read"):
        Haystack.of(tokenizer, tmp_path / "missing.txt")


def test_a_text_of_one_long_paragraph_is_refused() -> None:
    haystack = Haystack("One long paragraph. " * 400, models.load_tokenizer(), "long.txt")
    with pytest.raises(SettingsError, match=r"long.txt has only 0 tokens in paragraphs that fit into \d+: put empty"):
        TASKS["passkey"].sample(haystack, 1000, random.Random(0))


def test_a_text_is_split_into_parts_that_have_nothing_in_common(haystack: Haystack) -> None:
    beginning, end = haystack.split(1 / 4)
    # Topics repeat what other topics say.
    assert not set(beginning.paragraphs) & set(end.paragraphs)
    assert beginning.paragraphs == haystack.paragraphs[: len(beginning.paragraphs)]
    total, first, last = (sum(part.counts) for part in (haystack, beginning, end))
    assert 0.74 * total < first <= 0.75 * total and 0.2 * total < last <= 0.25 * total
    with pytest.raises(SettingsError, match=r"The text pydoc_data.topics \(end\) has \d+ tokens, but 50000 are needed"):
        end.prose(50000, random.Random(0))


@pytest.mark.parametrize("name", ["passkey", "common_words", "ledger", "records"])
def test_a_context_that_is_too_short_is_refused(haystack: Haystack, name: str) -> None:
    with pytest.raises(SettingsError, match="context of .* too short"):
        TASKS[name].sample(haystack, 20, random.Random(0))


def test_a_prompt_is_document_and_question() -> None:
    assert Sample("A text.", "What?", ("x",), 1).prompt == "A text.\n\nWhat?"
    assert Sample("", "What?", ("x",), 1).prompt == "What?"
