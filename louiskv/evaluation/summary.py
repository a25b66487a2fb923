"""Records of results, averaged for each method at each budget."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]

# What tells samples of a task apart, beside their numbers.
SAMPLE = ("text_hash", "task_settings", "context", "seed")


@dataclass(frozen=True)
class Row:
    """A method at a budget: means over all its records.

    Attributes:
        name: The method.
        budget: Its budget, None if it has none.
        group: The comparison that it belongs to, None for the grid of all methods.
        family: What it shares with others of the comparison.
        samples: Score of every sample of each task.
        agreement: Mean share of full attention's answer that was said before the first difference.
        fetched: Bytes fetched for each output token of the tasks.
        rate: Share of steps and layers that retrieved, on the tasks.
        ahead: Share that selected for the next step instead; None where no trigger is late.
        index: Bytes of the index as a share of full attention's keys and values; None where it was not told.
        device: Bytes on the device as a share of full attention's, on the tasks.
        kl: KL divergence of fidelity, None if it was not measured.
        top1: Share of the same likeliest token.
        nll: Loss less full attention's.
        fed_fetched: Bytes fetched for each token of fidelity.
        fed_rate: Share of steps and layers that retrieved there.
        fed_ahead: Share that selected for the next step instead there.
        fed_index: Share of the bytes of the index there.
        fed_device: Share of the bytes on the device there.
    """

    name: str
    budget: int | None
    group: str | None = None
    family: str | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    agreement: float = 0.0
    fetched: float = 0.0
    rate: float = 0.0
    ahead: float | None = None
    index: float | None = None
    device: float = 0.0
    kl: float | None = None
    top1: float = 0.0
    nll: float = 0.0
    fed_fetched: float = 0.0
    fed_rate: float = 0.0
    fed_ahead: float | None = None
    fed_index: float | None = None
    fed_device: float = 0.0

    @property
    def scores(self) -> dict[str, float]:
        """Mean score of each task."""
        return {task: mean(scores) for task, scores in self.samples.items()}

    @property
    def mean_score(self) -> float:
        """Mean over the tasks, each counted once."""
        return mean(list(self.scores.values()))

    @property
    def budget_text(self) -> str:
        """The budget for a table."""
        return "-" if self.budget is None else str(self.budget)


def summarise(records: Iterable[Record]) -> list[Row]:
    """A row for each method and budget, in the order in which they come."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        place = tuple(record[name] for name in ("method", "budget", "group", "family"))
        groups.setdefault(place, []).append(record)
    return [_row(group) for group in groups.values()]


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def index_share(record: Record) -> float | None:
    """Bytes of the index as a share of full attention's keys and values; None of a record that does not tell them."""
    size, full = record.get("index_bytes"), record["full_bytes"]
    return float(size / full) if size is not None and full else None


def device_share(record: Record) -> float:
    """Bytes on the device, the index included where it is told, as a share of full attention's keys and values."""
    return float((record["resident_bytes"] + record.get("index_bytes", 0)) / record["full_bytes"])


def _row(records: list[Record]) -> Row:
    asked = [record for record in records if record["kind"] == "task"]
    fed = [record for record in records if record["kind"] == "fidelity"]
    tasks = dict.fromkeys(record["task"] for record in asked)
    # A batch counts once for each of its samples: the last one may have fewer.
    batches = [record for record in asked for _ in record["samples"]]
    return Row(
        name=records[0]["method"],
        budget=records[0]["budget"],
        group=records[0]["group"],
        family=records[0]["family"],
        samples={task: _by_sample([record for record in asked if record["task"] == task], "scores") for task in tasks},
        agreement=mean(_by_sample([record for record in asked if record["agreement"] is not None], "agreement")),
        fetched=_mean_of(batches, "fetched_per_token"),
        rate=_mean_of(batches, "retrieval_rate"),
        ahead=_mean_of_known(record.get("ahead_rate") for record in batches),
        index=_mean_of_known(map(index_share, batches)),
        device=mean(list(map(device_share, batches))),
        kl=_mean_of(fed, "kl") if fed else None,
        top1=_mean_of(fed, "top1"),
        nll=_mean_of(fed, "nll"),
        fed_fetched=_mean_of(fed, "fetched_per_token"),
        fed_rate=_mean_of(fed, "retrieval_rate"),
        fed_ahead=_mean_of_known(record.get("ahead_rate") for record in fed),
        fed_index=_mean_of_known(map(index_share, fed)),
        fed_device=mean(list(map(device_share, fed))),
    )


def _by_sample(records: list[Record], name: str) -> list[float]:
    """A figure of each sample once, however samples were put into batches."""
    found = {
        (record["task"], *(record[each] for each in SAMPLE), number): figure
        for record in records
        for number, figure in zip(record["samples"], record[name], strict=True)
    }
    return list(found.values())


def _mean_of(records: list[Record], name: str) -> float:
    return mean([record[name] for record in records])


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
