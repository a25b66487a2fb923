"""LouisKV+ with one part exchanged: a curve, a point for each other choice, and a table by KL divergence."""

import re
from typing import Any

from louiskv.evaluation.comparisons import compared
from louiskv.reporting.content import Figure, Table
from louiskv.reporting.exchanged import exchanged, runs_of
from louiskv.reporting.records import Found, by_model, told_apart
from louiskv.reporting.styles import VIOLET
from tests.reporting.synthetic import Hat, Record


def drawn(records: list[Record]) -> list[Any]:
    section = exchanged(by_model(Found(records=told_apart(records)))[0])
    return [] if section is None else section.parts


def fed(budget: int, **more: Any) -> list[Record]:
    hat = Hat(budget)
    cells = compared(["plus"], [budget])
    return [hat.fidelity(cell.name, budget, group="plus", family=cell.family, **more) for cell in cells]


def test_every_choice_has_its_place_in_the_figure_and_in_the_table() -> None:
    records = fed(256)
    figure, table = drawn(records)
    assert isinstance(figure, Figure) and isinstance(table, Table)
    by_kl = sorted(records, key=lambda record: record["kl"])
    names = [row[table.columns.index("method")].text for row in table.rows]
    assert names == [record["method"] for record in by_kl] and len(names) > 30
    assert [row[0].value for row in table.rows] == list(range(1, len(names) + 1))
    written = re.findall(r">([^<>\n]+)</text>", figure.svg)
    runs = [run.split("-") for text in written if re.fullmatch(r"[\d, -]+", text) for run in text.split(", ")]
    numbered = [place for run in runs for place in range(int(run[0]), int(run[-1]) + 1)]
    assert sorted(numbered) == list(range(1, len(names) + 1))
    # Each family once, in the legend.
    families = dict.fromkeys(record["family"] for record in records)
    assert all(written.count(family) == 1 for family in families)
    assert VIOLET.lower() in figure.svg.lower()


def test_places_that_would_cover_each_other_are_written_once() -> None:
    assert [runs_of(places) for places in ([3], [3, 4], [1, 3, 4, 5, 9])] == ["3", "3-4", "1, 3-5, 9"]
    figure, _ = drawn(fed(256, kl=0.01, fetched_per_token=1024.0))
    assert f">1-{len(fed(256))}</text>" in figure.svg


def test_each_budget_has_its_figure_and_scores_follow() -> None:
    hat = Hat(1)
    asked = [hat.task(f"plus hold {hold}", 256, group="plus", family="plus") for hold in (0, 3)]
    parts = drawn([*fed(256), *fed(512), *asked])
    assert [part.kind for part in parts] == ["figure", "figure", "table", "table", "table"]
    assert [part.title for part in parts[2:]] == ["Fidelity, budget 256", "Fidelity, budget 512", "Scores, budget 256"]
    assert drawn([hat.fidelity("quest", 128)]) == []


def test_what_loses_nothing_is_in_the_table_alone() -> None:
    figure, table = drawn(fed(256, kl=0.0))
    assert len(table.rows) > 30 and ">anchor<" not in figure.svg


def test_what_lacks_a_run_is_named() -> None:
    records = [*fed(256), *fed(256, prompt=1024)[:-1]]
    for number, record in enumerate(records):
        record["key"] = str(number)
    figure, table = drawn(records)
    assert "for lack of runs that the others have: ahead corrected by cosine 0.8." in figure.caption
    assert len(table.rows) == len(fed(256)) - 1
