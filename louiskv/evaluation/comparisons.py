"""One part exchanged, all others LouisKV's: triggers meet at equal retrieval rates, units at equal bytes."""

from collections.abc import Callable, Iterable

from louiskv.contestants import Contestant
from louiskv.errors import SettingsError
from louiskv.methods.retrieval import Retrieval
from louiskv.triggers import Cosine, Every, Late, Trigger
from louiskv.units.clusters import Clusters
from louiskv.units.pages import Pages
from louiskv.units.summaries import BoundingVolume, MeanKey, MinMax, OneBit
from louiskv.units.tokens import Tokens

STRIDES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
TAUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
SIZES = (8, 16, 32)


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
            for family, label, method in COMPARISONS[name]():
                found.append(Contestant(f"{family} {label}", method.at_budget(budget), budget, name, family))
    return found


def _triggers() -> Iterable[tuple[str, str, Retrieval]]:
    """When to retrieve, with LouisKV's units: the same rate is reached by a stride and by a tau."""
    families: dict[str, dict[str, Trigger]] = {
        "every": {str(stride): Every(stride) for stride in STRIDES},
        "cosine": {str(tau): Cosine(tau) for tau in TAUS},
        "cosine by KV head": {str(tau): Cosine(tau, per_head=True) for tau in TAUS},
        "late, corrected": {str(tau): Late(Cosine(tau, per_head=True)) for tau in TAUS[::2]},
    }
    for family, triggers in families.items():
        for label, trigger in triggers.items():
            yield family, label, Retrieval(trigger=trigger)


def _units() -> Iterable[tuple[str, str, Retrieval]]:
    """What to retrieve, at every step: sizes of units, and what the index keeps of them."""
    every = Every(1)
    for size in (*SIZES, 80):
        yield "clusters", str(size), Retrieval(units=Clusters(size), trigger=every)
    for size in SIZES:
        yield "pages, mean", str(size), Retrieval(units=Pages(size), summary=MeanKey(), trigger=every)
        yield "pages, min/max", str(size), Retrieval(units=Pages(size), summary=MinMax(), trigger=every)
        yield "pages, volume", str(size), Retrieval(units=Pages(size), summary=BoundingVolume(), trigger=every)
    yield "clusters, output in pages", "16", Retrieval(units=Clusters(16), output=Pages(16), trigger=every)
    yield "tokens, one bit", "1", Retrieval(units=Tokens(32), summary=OneBit(32), trigger=every)


COMPARISONS: dict[str, Callable[[], Iterable[tuple[str, str, Retrieval]]]] = {"trigger": _triggers, "units": _units}
