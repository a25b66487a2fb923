"""The reports of the ranks that hold a model together, as one."""

from collections import Counter
from dataclasses import replace
from functools import reduce
from operator import add

from louiskv.telemetry import LayerReport, Report


def joint_report(reports: list[Report]) -> Report:
    """What all ranks hold and did together: tokens, units and bytes summed, rates over the heads of all.

    Ranks work at the same time, so seconds are those of the slowest in each phase. Of figures that cannot be had from
    those of the parts, which are the quartiles of the cosine and what codes are off by, it is the mean.
    """
    first = reports[0]
    if len(reports) == 1:
        return first
    layers = [_joint_layer(list(parts)) for parts in zip(*(report.layers for report in reports), strict=True)]
    unmanaged = sum(report.unmanaged_bytes for report in reports)
    return replace(first, unmanaged_bytes=unmanaged, layers=layers, ranks=len(reports))


def _joint_layer(parts: list[LayerReport]) -> LayerReport:
    selected = sum(part.selected_tokens for part in parts)
    hits = sum(part.hit_rate * part.selected_tokens for part in parts if part.hit_rate is not None)
    ahead = [part.ahead_rate for part in parts if part.ahead_rate is not None]
    return replace(
        parts[0],
        tiers=reduce(add, (part.tiers for part in parts)),
        retrieval_rate=_mean([part.retrieval_rate for part in parts]),
        ahead_rate=_mean(ahead) if ahead else None,
        selected_tokens=selected,
        hit_rate=hits / selected if selected else None,
        fetched_bytes=sum(part.fetched_bytes for part in parts),
        offloaded_bytes=sum(part.offloaded_bytes for part in parts),
        similarity=_means([part.similarity for part in parts]),
        segment_sizes=_counted([part.segment_sizes for part in parts]),
        coding_error=_means([part.coding_error for part in parts]),
        seconds={phase: max(part.seconds[phase] for part in parts) for phase in parts[0].seconds},
    )


def _mean(figures: list[float]) -> float:
    return sum(figures) / len(figures)


def _means(figures: list[dict[str, float] | None]) -> dict[str, float] | None:
    """The mean of each figure, but the least minimum."""
    known = [each for each in figures if each is not None]
    joint = {name: _mean([each[name] for each in known]) for name in known[0]} if known else None
    if joint is not None and "min" in joint:
        joint["min"] = min(each["min"] for each in known)
    return joint


def _counted(sizes: list[dict[int, int]]) -> dict[int, int]:
    total: Counter[int] = sum((Counter(each) for each in sizes), Counter())
    return dict(sorted(total.items()))
