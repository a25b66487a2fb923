"""Tables of scores and of fidelity, and curves of fidelity over the output."""

from collections.abc import Iterable, Iterator

from louiskv.evaluation.summary import Row, summarise
from louiskv.reporting.axes import log_axis
from louiskv.reporting.content import Cell, Figure, Fold, Origin, Part, Section, Table, number, origins, size, text
from louiskv.reporting.drawing import drawing
from louiskv.reporting.intervals import TELLS, interval
from louiskv.reporting.records import Measured, Record, by_budget, grouped
from louiskv.reporting.styles import LOSSLESS, style_of

CURVES = {
    "kl": ("KL divergence", "KL divergence from full attention", "Lower is nearer to full attention."),
    "top1": ("Same likeliest token", "share of tokens", "Higher is nearer to full attention."),
    "nll": (
        "Loss",
        "loss less full attention's, in nats",
        "Above 0: worse than full attention.",
    ),
}


def scores(model: Measured) -> Section | None:
    """Scores by task, over all contexts and for each."""
    records = model.of("task")
    if not records:
        return None
    parts: list[Part] = [scores_table("All contexts", records)]
    by_context = grouped(records, lambda record: record["context"])
    if len(by_context) > 1:
        parts += [
            Fold(f"Context of {context:,} tokens", [scores_table("", asked)])
            for context, asked in sorted(by_context.items())
        ]
    told = (
        "Share of what was asked that was answered. As full: how much of full attention's answer was said before "
        "the first difference."
    )
    return Section("scores", "Scores by task", told, parts)


def fidelity(model: Measured) -> Section | None:
    """Fidelity in a table and over the output, for each length of prompt."""
    records = model.of("fidelity")
    if not records:
        return None
    parts: list[Part] = []
    for length, fed in sorted(grouped(records, lambda record: record["prompt"]).items()):
        parts.append(fidelity_table(f"Behind a prompt of {length:,} tokens", summarise(fed), origins(fed)))
        parts.extend(_curves(length, fed))
    told = (
        "A text is fed token by token; at each, the distribution of the next token is compared with full attention's. "
        "Whatever a method says, all are fed the same."
    )
    return Section("fidelity", "Fidelity to full attention", told, parts)


def scores_table(title: str, records: list[Record]) -> Table:
    """Scores of each task, and what they cost."""
    rows = summarise(records)
    late = any(row.ahead is not None for row in rows)
    tasks = list(dict.fromkeys(task for row in rows for task in row.samples))
    columns = ["method", "budget", "mean", *tasks, "as full", "fetched a token", "retrievals"]
    columns += [*(["ahead"] if late else []), "index", "device"]
    cells = [
        [
            text(row.name),
            text(row.budget),
            number(row.mean_score, bounds=interval(list(row.samples.values()))),
            *(_score(row, task) for task in tasks),
            number(row.agreement, ".0%"),
            size(row.fetched),
            number(row.rate),
            *([number(row.ahead)] if late else []),
            number(row.index, ".1%"),
            number(row.device, ".1%"),
        ]
        for row in rows
    ]
    return Table(title, columns, cells, TELLS, origins(records))


def _score(row: Row, task: str) -> Cell:
    samples = row.samples.get(task)
    return number(row.scores[task], bounds=interval([samples])) if samples else number(None)


def fidelity_table(title: str, rows: list[Row], made: list[Origin]) -> Table:
    """How far the next token is from full attention's, and what it costs."""
    late = any(row.fed_ahead is not None for row in rows)
    columns = ["method", "budget", "KL", "same token", "loss", "fetched a token", "retrievals"]
    columns += [*(["ahead"] if late else []), "index", "device"]
    cells = [
        [
            text(row.name),
            text(row.budget),
            number(row.kl, ".4f"),
            number(row.top1, ".1%"),
            number(row.nll, "+.4f"),
            size(row.fed_fetched),
            number(row.fed_rate),
            *([number(row.fed_ahead)] if late else []),
            number(row.fed_index, ".1%"),
            number(row.fed_device, ".1%"),
        ]
        for row in rows
    ]
    note = (
        "KL divergence in nats; loss less full attention's; retrievals as a share of steps and layers; bytes of the "
        "index, and all on the device, as a share of full attention's."
    )
    return Table(title, columns, cells, note, made)


def _curves(length: int, records: list[Record]) -> Iterator[Figure]:
    """Each curve at each budget; methods without one stand at all."""
    lossy = [record for record in records if record["base"] not in LOSSLESS]
    for at, shown in by_budget(lossy):
        # One bin is a point, which the table tells.
        lengths = [len(record["curves"]["kl"]) for record in shown]
        for name, (title, y, tells) in CURVES.items() if max(lengths, default=0) > 1 else ():
            with drawing(f"{title} behind {length:,} tokens{at}", "output token", y) as drawn:
                for method, own in grouped(shown, lambda record: record["method"]).items():
                    x, means = curve(own, name)
                    drawn.axes.plot(x, means, markevery=max(1, len(x) // 8), label=method, **style_of(method).line)
                if name == "kl":
                    log_axis(drawn.axes, [value for record in shown for value in record["curves"][name]])
            yield Figure(drawn.svg, f"{tells} Means over {records[0]['bin']} tokens.", origins(shown))


def curve(records: Iterable[Record], name: str) -> tuple[list[float], list[float]]:
    """Where the bins of a curve lie, and the mean of the records in each; as far as all go."""
    curves = [record["curves"][name] for record in records]
    means = [sum(values) / len(values) for values in zip(*curves, strict=False)]
    width = next(iter(records))["bin"]
    return [(place + 0.5) * width for place in range(len(means))], means
