"""Records: a table taken out of a long text, field by field."""

import json
import random
from dataclasses import dataclass
from typing import Any, ClassVar

from louiskv.evaluation.tasks.base import Sample, Task
from louiskv.evaluation.tasks.words import CITIES, NOUNS, PEOPLE, numbers
from louiskv.evaluation.texts import Haystack

FIELDS = ("order", "name", "city", "item", "count")


@dataclass(frozen=True)
class Records(Task):
    """Orders told in prose; all of them are wanted as JSON.

    Attributes:
        records: Orders.
    """

    tells: ClassVar[str] = "all records of a long text as JSON, scored by field"

    records: int = 6

    def sample(self, haystack: Haystack, num_tokens: int, seed: random.Random) -> Sample:
        """Hide the orders, ask for all."""
        orders = [
            dict(zip(FIELDS, each, strict=True))
            for each in zip(
                numbers(seed, self.records, 4),
                seed.sample(PEOPLE, self.records),
                seed.sample(CITIES, self.records),
                seed.sample(NOUNS, self.records),
                numbers(seed, self.records, 2),
                strict=True,
            )
        ]
        facts = [
            f"Order {order['order']}: {order['name']} from {order['city']} bought {order['count']} pieces of the "
            f"article {order['item']}."
            for order in orders
        ]
        example = dict(zip(FIELDS, ("1000", "Max", "Paris", "pencil", "10"), strict=True))
        question = (
            f"The text above tells of {self.records} orders. List them in the order of the text, one JSON object a "
            f"line, like this:\n{json.dumps(example)}"
        )
        document = haystack.around(facts, question, num_tokens, seed)
        return Sample(
            document, question, tuple(map(json.dumps, orders)), max_new_tokens=48 * self.records, prefix='{"order": "'
        )

    def score(self, sample: Sample, output: str) -> float:
        """F1 over fields: those that are right, against those that were wanted and those that were given."""
        wanted = [json.loads(answer) for answer in sample.answers]
        given = {record.get("order"): record for record in _objects(sample.prefix + output)}
        right: int = sum(
            given[record["order"]].get(field) == record[field]
            for record in wanted
            if record["order"] in given
            for field in FIELDS
        )
        told = sum(len(record) for record in given.values())
        return 2 * right / (told + len(wanted) * len(FIELDS))


def _objects(text: str) -> list[dict[str, str]]:
    """All JSON objects in a text, whatever stands between them; numbers as text."""
    found: list[dict[str, str]] = []
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            end = place + 1
        else:
            found.append(_plain(value))
        place = text.find("{", end)
    return found


def _plain(value: dict[str, Any]) -> dict[str, str]:
    return {key: str(each) for key, each in value.items()}
