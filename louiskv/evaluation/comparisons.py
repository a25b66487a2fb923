"""One part exchanged, all others as they are: triggers meet at equal retrieval rates, other parts at equal bytes."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from louiskv.contestants import Contestant
from louiskv.errors import SettingsError
from louiskv.methods.louiskv_plus import LouisKVPlus
from louiskv.methods.retrieval import Retrieval
from louiskv.triggers import AnchorCosine, Cosine, Coverage, Every, Late, Trigger
from louiskv.units.clusters import Clusters
from louiskv.units.pages import Pages
from louiskv.units.segments import Segments
from louiskv.units.summaries import BoundingVolume, MeanKey, MinMax, OneBit, Sketch
from louiskv.units.tokens import Tokens

# Family, label and method of each cell.
Cells = Iterable[tuple[str, str, Retrieval]]
# By family and label, the settings that are others.
Exchanges = dict[str, dict[str, dict[str, Any]]]

STRIDES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
TAUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
SIZES = (8, 16, 32)
HOLDS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)


def compared(names: Iterable[str], budgets: Iterable[int]) -> list[Contestant]:
    """The contestants of comparisons, at each budget.

    Args:
        names: Of COMPARISONS.
        budgets: Budgets.

    Raises:
        SettingsError: There is no such comparison, or a budget is too small.
    """
    found = []
    for name in dict.fromkeys(names):
        if name not in COMPARISONS:
            raise SettingsError(f"There is no comparison {name!r}. The comparisons are: {', '.join(COMPARISONS)}.")
        for budget in dict.fromkeys(budgets):
            for family, label, method in COMPARISONS[name](budget):
                found.append(Contestant(f"{family} {label}".strip(), method, budget, name, family))
    return found


def _triggers(budget: int) -> Cells:
    """When to retrieve, with LouisKV's units: the same rate is reached by a stride and by a tau."""
    families: dict[str, dict[str, Trigger]] = {
        "every": {str(stride): Every(stride) for stride in STRIDES},
        "cosine": {str(tau): Cosine(tau) for tau in TAUS},
        "cosine by KV head": {str(tau): Cosine(tau, per_head=True) for tau in TAUS},
        "late, corrected": {str(tau): Late(Cosine(tau, per_head=True)) for tau in TAUS[::2]},
    }
    louiskv = Retrieval().at_budget(budget)
    for family, triggers in families.items():
        for label, trigger in triggers.items():
            yield family, label, replace(louiskv, trigger=trigger)


def _units(budget: int) -> Cells:
    """What to retrieve, at every step: sizes of units, and what the index keeps of them."""
    every = Retrieval(trigger=Every()).at_budget(budget)
    for size in (*SIZES, 80):
        yield "clusters", str(size), replace(every, units=Clusters(size))
    for size in SIZES:
        yield "pages, mean", str(size), replace(every, units=Pages(size), summary=MeanKey())
        yield "pages, min/max", str(size), replace(every, units=Pages(size), summary=MinMax())
        yield "pages, volume", str(size), replace(every, units=Pages(size), summary=BoundingVolume())
    yield "clusters, output in pages", "16", replace(every, units=Clusters(16), output=Pages(16))
    yield "tokens, one bit", "1", replace(every, units=Tokens(32), summary=OneBit(32))


def _output(budget: int) -> Cells:
    """How the output is grouped, and what the index keeps of its units, at every step; for short prompts."""
    longest = Retrieval().at_budget(budget).window // 2
    runs = {
        "segments": Segments(),
        "pages of 8": Pages(8),
        "clusters of 8": Clusters(8, output_size=longest),
        "clusters of 16": Clusters(16, output_size=longest),
    }
    summaries = {"mean": MeanKey(), "min/max": MinMax(), "volume": BoundingVolume()}
    for label, units in runs.items():
        for kind, summary in summaries.items():
            parts = Retrieval(output=units, summary=summary, trigger=Every())
            yield label, kind, parts.at_budget(budget)


def _plus(budget: int) -> Cells:
    """LouisKV+, and each of its parts taken away or exchanged."""
    plus = LouisKVPlus().at_budget(budget).parts()
    for hold in HOLDS:
        yield "plus", f"hold {hold:g}", replace(plus, hold=hold)
    for family, choices in {**_selections(), **_other_units(plus), **_other_triggers()}.items():
        for label, changed in choices.items():
            yield family, label, replace(plus, **changed)


def _selections() -> Exchanges:
    """How tokens are selected, what is done with the rest, and how exactly all are kept."""
    whole = {"oversample": 0, "summary": Sketch(token_bits=False)}
    return {
        "without estimate": {"": {"estimate": False}},
        "whole units": {"": whole},
        "neither": {"": {**whole, "estimate": False}},
        "softmax over units": {"": {"reduce": "softmax_mean"}},
        "oversample": {str(times): {"oversample": times} for times in (4, 8)},
        "estimate of the best": {str(units): {"max_estimated": units} for units in (32, 64)},
        "pool bits": {str(bits): {"pool_bits": bits} for bits in (8, 4)},
    }


def _other_units(plus: Retrieval) -> Exchanges:
    """How the tokens of the prompt and of the output are grouped; runs of the output are as long as LouisKV+'s."""
    assert plus.output is not None
    run, window = plus.output.runs(plus.window).longest, plus.window
    outputs = {
        "segments": Segments(),
        "pages of 8": Pages(8),
        "clusters of 16": Clusters(16, output_size=run),
        f"clusters of 8 in runs of {window}": Clusters(8, output_size=window),
    }
    cosine = {"units": Clusters(metric="cosine"), "output": Clusters(8, metric="cosine", output_size=run)}
    return {
        "unit size": {
            str(size): {"units": Clusters(size), "output": Clusters(size // 2, output_size=run)} for size in (8, 32)
        },
        "cosine clusters": {"": cosine},
        "pages of 16": {"": {"units": Pages(16)}},
        "output": {label: {"output": units} for label, units in outputs.items()},
    }


def _other_triggers() -> Exchanges:
    """When a KV head selects anew, and whether it waits for that."""
    corrections: dict[str, Trigger] = {
        "uncorrected": Coverage(0.0),
        "corrected by coverage 0.9": Coverage(0.9),
        "corrected by cosine 0.8": Cosine(0.8, per_head=True),
    }
    families: dict[str, dict[str, Trigger]] = {
        "trigger": {"every 2nd step": Every(2), "every 4th step": Every(4)},
        "anchor": {str(tau): AnchorCosine(tau) for tau in (0.7, 0.8, 0.9)},
        "cosine by KV head": {str(tau): Cosine(tau, per_head=True) for tau in (0.8, 0.85)},
        "coverage": {str(rho): Coverage(rho) for rho in (0.9, 0.97, 1.0)},
        "coverage of the best": {str(rho): Coverage(rho, against="best") for rho in (0.9, 0.97)},
        "ahead": {label: Late(correct=correct) for label, correct in corrections.items()},
    }
    return {
        family: {label: {"trigger": trigger} for label, trigger in triggers.items()}
        for family, triggers in families.items()
    }


COMPARISONS: dict[str, Callable[[int], Cells]] = {
    "trigger": _triggers,
    "units": _units,
    "output": _output,
    "plus": _plus,
}
