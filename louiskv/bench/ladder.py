"""Ladders: what LouisKV is made of, one part on top of the other, and its units beside others."""

import torch

from louiskv.bench.runner import Entry
from louiskv.contestants import Contestant
from louiskv.methods.base import Method
from louiskv.methods.full import Full
from louiskv.methods.louiskv import LouisKV
from louiskv.methods.retrieval import Retrieval
from louiskv.ops import OPS
from louiskv.triggers import Cosine, Every, Trigger
from louiskv.units.clusters import Clusters
from louiskv.units.pages import Pages
from louiskv.units.summaries import MinMax

REFERENCE = "torch"
PER_TOKEN = "per token"
FAST_KERNELS = "+ fast kernels"

TRIGGERS: dict[str, Trigger] = {"every step": Every(1), "trigger": Cosine()}


def parts(budget: int, device: torch.device) -> list[Entry]:
    """LouisKV part by part, beside full attention, all in plain torch but the last (arXiv 2510.11292, section 5).

    Each query head selects at each step; then only where the query turns away; then a query group agrees; then the best
    kernels that can run here do it, if there are any.

    Args:
        budget: Budget of each.
        device: Where they run.

    Raises:
        SettingsError: The budget is too small.
    """
    ours = LouisKV().at_budget(budget)
    rungs: dict[str, Method] = {
        PER_TOKEN: Retrieval(trigger=Every(1), per_query_head=True).at_budget(budget),
        "+ semantic trigger": Retrieval(per_query_head=True).at_budget(budget),
        "+ group selection": ours,
    }
    entries = [Entry(Contestant("full", Full(), None, "ladder", "yardstick"), REFERENCE)]
    entries += [Entry(Contestant(name, each, budget, "ladder", "parts"), REFERENCE) for name, each in rungs.items()]
    if why_not_fast(device) is None:
        # The best of each operation: not all may have a fast implementation.
        entries.append(Entry(Contestant(FAST_KERNELS, ours, budget, "ladder", "parts"), None))
    return entries


def why_not_fast(device: torch.device) -> str | None:
    """Why no implementation but the reference can run on a device; None if one can."""
    others = [each for candidates in OPS.values() for each in candidates if each.name != REFERENCE]
    refusals = {each.name: each.declines(torch.empty(0, device=device)) for each in others}
    if None in refusals.values():
        return None
    told = "; ".join(f"{name}: {why}" for name, why in refusals.items())
    return told or f"no operation has an implementation beside the reference ({REFERENCE})"


def units(budget: int, impl: str | None) -> list[Entry]:
    """What is retrieved, at the same budget: at every step, and where LouisKV's trigger fires.

    Pages with their mean key, or with min/max; clusters of the prompt with pages, or with segments of the output.

    Args:
        budget: Budget of each.
        impl: Implementation of the operations.

    Raises:
        SettingsError: The budget is too small, or no multiple of a page.
    """
    entries = []
    for family, trigger in TRIGGERS.items():
        kinds = {
            "pages, mean": Retrieval(units=Pages(16), trigger=trigger),
            "pages, min/max": Retrieval(units=Pages(16), summary=MinMax(), trigger=trigger),
            "clusters, pages": Retrieval(units=Clusters(16), output=Pages(16), trigger=trigger),
            "clusters, segments": Retrieval(trigger=trigger),
        }
        for kind, method in kinds.items():
            contestant = Contestant(f"{family} {kind}", method.at_budget(budget), budget, "units", family)
            entries.append(Entry(contestant, impl))
    return entries
