"""Time to first token of several methods, in turns in one run."""

import statistics
from collections.abc import Iterator

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from louiskv.attach import attach
from louiskv.bench.material import text_ids
from louiskv.bench.memory import PeakMemory
from louiskv.bench.runner import Bench, Entry, Record, Stopwatch
from louiskv.cache import passing


def bench_prefill(bench: Bench, contexts: tuple[int, ...], rounds: int, field: list[Entry]) -> Iterator[Record]:
    """Take in a prompt of each length with every contestant, in turns.

    Args:
        bench: The model, attached to nothing, and the results.
        contexts: Tokens of a prompt.
        rounds: Measurements of each contestant; the order is reversed every other round.
        field: Who is compared.

    Yields:
        The records of each length, known ones included.
    """
    contexts = tuple(dict.fromkeys(contexts))
    total, done = len(contexts) * rounds * len(field), 0
    for context in contexts:
        sizes: Record = {"context": context, "rounds": rounds}
        known = bench.known("prefill", sizes, field)
        if known is not None:
            done += rounds * len(field)
            yield from known
            continue
        ids = text_ids(bench.tokenizer, context).to(bench.model.device)
        runners = [_Runner(entry, bench.model, ids) for entry in field]
        for number in range(rounds):
            for runner in runners if number % 2 == 0 else reversed(runners):
                runner.run()
                done += 1
                bench.progress(f"prefill of {context}: {runner.entry.name}", done, total)
        for runner in runners:
            yield bench.add("prefill", sizes, runner.entry, runner.figures())


class _Runner:
    """One contestant, and each of its times."""

    def __init__(self, entry: Entry, model: PreTrainedModel, ids: torch.Tensor) -> None:
        self.entry, self.model, self.ids = entry, model, ids
        self.times, self.memory = Stopwatch(ids.device), PeakMemory(ids.device)
        self.spent = {"clustering": 0.0, "offload": 0.0}

    def run(self) -> None:
        """Take the prompt in once, up to the first token."""
        method = self.entry.method
        with self.memory.watch():
            if method is None:
                self._first_token(DynamicCache(config=self.model.config))
            else:
                with attach(self.model, method, impl=self.entry.impl) as cache:
                    self._first_token(cache)
                    seconds = cache.report().seconds
                    self.spent = {phase: seconds[phase] for phase in self.spent}
                    cache.reset()

    def figures(self) -> Record:
        """What was measured; clustering and offload are the last round's."""
        return {
            "first_token_seconds": statistics.median(self.times.seconds),
            "all_seconds": self.times.seconds,
            **{f"{phase}_seconds": seconds for phase, seconds in self.spent.items()},
            "cuda_peak_bytes": self.memory.bytes,
            "seconds": sum(self.times.seconds),
        }

    def _first_token(self, cache: Cache) -> None:
        with torch.inference_mode(), self.times:
            logits = self.model(self.ids, **passing(self.model, cache), logits_to_keep=1).logits
            logits.argmax(-1).tolist()
