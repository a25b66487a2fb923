"""Comparisons: every cell can be built at every budget and decodes; one part is another, all others are the same."""

from dataclasses import fields, replace
from typing import Any

import pytest

from louiskv import LouisKVPlus, attach
from louiskv.cache import passing
from louiskv.contestants import Contestant
from louiskv.evaluation.comparisons import COMPARISONS, HOLDS, compared
from louiskv.methods.retrieval import Retrieval
from louiskv.triggers import Late
from tests.families import greedy, prompt, tiny

# What belongs together: bits of tokens are kept where single tokens are chosen, units are exchanged with the output's.
TOGETHER = {"oversample", "summary", "estimate"}, {"units", "output"}


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("budget", [128, 256, 512, 1024])
def test_every_cell_is_at_the_budget_and_has_a_name_of_its_own(name: str, budget: int) -> None:
    cells = compared([name], [budget])
    assert len({cell.name for cell in cells}) == len({cell.method for cell in cells}) == len(cells)
    for cell in cells:
        settings = cell.method.values()
        assert (cell.budget, settings["budget"], cell.group) == (budget, budget, name)
        assert (settings["sink"], settings["window"]) == (16, min(64, budget // 4))
        assert cell.family is not None and cell.name.startswith(cell.family) and cell.name == cell.name.strip()


@pytest.mark.parametrize("budget", [128, 256, 1024])
def test_one_part_of_louiskv_plus_is_another(budget: int) -> None:
    plus = LouisKVPlus().at_budget(budget).parts()
    own = [cell for cell in compared(["plus"], [budget]) if cell.method == plus]
    assert [cell.name for cell in own] == [f"plus hold {plus.hold:g}"]
    for cell in compared(["plus"], [budget]):
        others = _others(cell, plus)
        assert len(others) <= 1 or any(others <= each for each in TOGETHER), cell.name


def test_families_are_what_they_are_called() -> None:
    families: dict[str | None, list[Any]] = {}
    for cell in compared(["plus"], [256]):
        families.setdefault(cell.family, []).append(cell.method)
    assert [method.hold for method in families["plus"]] == list(HOLDS)
    (whole,), (neither,) = families["whole units"], families["neither"]
    assert (whole.oversample, whole.estimate) == (0, True) and (neither.oversample, neither.estimate) == (0, False)
    # What nothing asks for is not kept.
    assert not whole.summary.token_bits and not neither.summary.token_bits
    assert [method.units.unit_size for method in families["unit size"]] == [8, 32]
    assert [method.output.unit_size for method in families["unit size"]] == [4, 16]
    assert all(isinstance(method.trigger, Late) for method in families["ahead"])


def test_runs_of_the_output_fit_into_a_small_window() -> None:
    small, large = (
        {cell.name: cell.method for cell in compared(["plus"], [budget]) if cell.family == "output"}
        for budget in (128, 256)
    )
    assert "output clusters of 8 in runs of 32" in small and "output clusters of 8 in runs of 64" in large
    for methods, window in ((small, 32), (large, 64)):
        lengths = [method.values()["output"].runs(window).longest for method in methods.values()]
        assert lengths == [window // 2, 8, window // 2, window]


@pytest.mark.parametrize("cell", compared(["plus"], [128]), ids=lambda cell: cell.name)
def test_every_cell_of_plus_decodes(cell: Contestant) -> None:
    model = tiny("llama")
    assert isinstance(cell.method, Retrieval)
    with attach(model, replace(cell.method, dense_layers=1)) as kv_cache:
        greedy(model, prompt(220, 2, (7,)), 24, **passing(model, kv_cache))
        kv_cache.check_integrity()
        report = kv_cache.report()
    assert report.output_tokens > 0 and sum(layer.fetched_bytes for layer in report.layers) > 0
    assert (report.ahead_rate is not None) == (cell.family == "ahead") == ("for the next step" in str(report))
    assert all(layer.tiers.index.bytes for layer in report.layers[1:])


def _others(cell: Contestant, plus: Retrieval) -> set[str]:
    """Names of the settings that are not LouisKV+'s."""
    return {each.name for each in fields(plus) if getattr(cell.method, each.name) != getattr(plus, each.name)}
