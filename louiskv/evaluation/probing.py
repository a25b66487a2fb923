"""Records of probes: for each layer and KV head, and what is needed to draw what was retrieved when."""

import time
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from louiskv.contestants import Contestant
from louiskv.errors import SettingsError
from louiskv.evaluation.grid import Fed
from louiskv.evaluation.probe import Probe, Seen, probe
from louiskv.evaluation.replay import take_in
from louiskv.evaluation.runner import Evaluation, Record, held

# Values of a curve over the output are means over so many tokens.
BIN = 16
# Steps and columns of positions that are told one by one.
MAX_STEPS, MAX_COLUMNS = 256, 128
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def look(
    evaluation: Evaluation, fed: Fed, contestants: list[Contestant], layer: int | None = None, head: int = 0
) -> Iterator[Record]:
    """Probe methods, all in one pass of the model; yields each record, new or known, when it is in the file.

    Args:
        evaluation: The model and its texts.
        fed: What is fed.
        contestants: The methods.
        layer: Model's index of the layer of which it is told which tokens were attended to; one in the middle unless
            given.
        head: KV head of it, in the first text.

    Raises:
        SettingsError: The model has too few positions or no such head, or the text is too short.
    """
    place = _place(evaluation, layer, head)
    parts = []
    for length in fed.prompts:
        identity = evaluation.identity(
            prompt=length, steps=fed.steps, texts=fed.texts, seed=fed.seed, watched=[layer, head]
        )
        rows = evaluation.texts(length, fed) if evaluation.lacks(identity, contestants) else None
        parts.append((length, identity, rows))
    return chain.from_iterable(_looked(evaluation, *each, contestants, (place, head)) for each in parts)


def _place(evaluation: Evaluation, layer: int | None, head: int) -> int:
    """Place of the layer among those that are managed."""
    indices, num_heads = evaluation.managed, evaluation.num_kv_heads
    if layer is not None and layer not in indices:
        raise SettingsError(f"--layer {layer} is none that is managed: those are {_shown(indices)}.")
    if not 0 <= head < num_heads:
        raise SettingsError(f"--head {head} is not there: the model has KV heads 0 to {num_heads - 1}.")
    return len(indices) // 2 if layer is None else indices.index(layer)


def _looked(
    evaluation: Evaluation,
    length: int,
    identity: Record,
    rows: Tensor | None,
    contestants: list[Contestant],
    watched: tuple[int, int],
) -> Iterator[Record]:
    known = evaluation.known(identity, contestants)
    missing = [each for each, record in known.items() if record is None]
    if rows is not None and missing:
        started = time.perf_counter()
        found = _probed(evaluation, length, rows, missing, watched)
        for each, seen in zip(missing, found.seen, strict=True):
            layer, head = found.layers[watched[0]], watched[1]
            figures = _figures(found, seen, *rows[:, length:].shape)
            figures["attended"] = {"layer": layer, "head": head, **_attended(seen, *watched, length)}
            known[each] = evaluation.add("probe", identity, each, started, figures)
    evaluation.done += len(known)
    yield from (record for record in known.values() if record is not None)


def _probed(
    evaluation: Evaluation, length: int, rows: Tensor, contestants: list[Contestant], watched: tuple[int, int]
) -> Probe:
    what, (ids, output) = f"probes behind {length}", (rows[:, :length], rows[:, length:])
    evaluation.tell(what)
    prompt = take_in(evaluation.model, ids, torch.ones_like(ids, dtype=torch.bool))

    def tell(step: int) -> None:
        evaluation.tell(what, len(contestants) * step / output.shape[1])

    methods = [each.method for each in contestants]
    return probe(evaluation.model, prompt, output, methods, watched, tell, evaluation.impl)


def _figures(found: Probe, seen: Seen, num_texts: int, num_steps: int) -> Record:
    def by_head(figure: Tensor) -> list[list[float | None]]:
        """[layer][KV head], means over steps and texts."""
        means = figure.unflatten(2, (num_texts, -1)).nanmean((0, 2))
        return [[None if value != value else value for value in row] for row in means.tolist()]

    rates = seen.retrieved.float().mean((0, 2))
    cosine = found.cosine[1:].unflatten(2, (num_texts, -1)).movedim(2, 1).flatten(0, 1)
    quantiles = torch.quantile(cosine, torch.tensor(QUANTILES), dim=0)
    return {
        "layers": found.layers,
        "recall": by_head(seen.recall),
        "error": by_head(seen.error),
        "overlap": by_head(seen.overlap),
        "cosine": quantiles.permute(1, 2, 0).tolist(),
        "quantiles": list(QUANTILES),
        "bin": BIN,
        "curves": {name: _binned(getattr(seen, name).mean((1, 2))) for name in ("recall", "error")},
        "retrieved": seen.retrieved[:MAX_STEPS].float().mean(2).T.tolist(),
        "output_tokens": num_steps * num_texts,
        "fetched_per_token": seen.fetched_bytes / (num_steps * num_texts),
        # Of the layers that retrieve, as in a cache's report.
        "retrieval_rate": float(rates[rates > 0].mean()) if rates.any() else 0.0,
        "ahead_rate": seen.ahead_rate,
        **held([seen.tiers]),
    }


def _attended(seen: Seen, place: int, row: int, length: int) -> Record:
    """Of the watched row, how much of each run of positions was attended to at each step, and where it retrieved."""
    steps = min(MAX_STEPS, len(seen.attended))
    size = -(-(length + steps) // MAX_COLUMNS)
    counts = [torch.bincount(positions // size, minlength=MAX_COLUMNS) for positions in seen.attended[:steps]]
    present = torch.bincount(torch.arange(length + steps) // size, minlength=MAX_COLUMNS).clamp(min=1)
    return {
        "bin": size,
        "share": [[round(share, 3) for share in (count / present).tolist()] for count in counts],
        "boundaries": seen.retrieved[:steps, place, row].nonzero()[:, 0].tolist(),
    }


def _binned(values: Tensor) -> list[float]:
    return [float(part.mean()) for part in values.split(BIN)]


def _shown(indices: list[int]) -> str:
    return f"{indices[0]} to {indices[-1]}" if indices == list(range(indices[0], indices[-1] + 1)) else str(indices)
