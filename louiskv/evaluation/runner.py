"""The evaluation: every cell of a grid that is not in the results yet."""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from louiskv.attach import attach
from louiskv.cache import LouisKVCache
from louiskv.errors import SettingsError
from louiskv.evaluation.batches import answer, ends_of, padded
from louiskv.evaluation.fidelity import compare, refer
from louiskv.evaluation.grid import Asked, Contestant, Fed
from louiskv.evaluation.replay import take_in
from louiskv.evaluation.results import Results, key_of
from louiskv.evaluation.tasks import TASKS
from louiskv.evaluation.texts import Haystack
from louiskv.heads import ModelIdentity
from louiskv.methods.full import Full
from louiskv.prompts import Request, encode
from louiskv.provenance import provenance

Record = dict[str, Any]
# Values of a curve over the output are means over so many tokens.
BIN = 64


class Evaluation:
    """A model, what it reads, and where results go.

    Attributes:
        results: What is known already.
        progress: Called with what runs, and how many runs are done, the one that goes on as a part.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        haystack: Haystack,
        results: Results,
        progress: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        self.model, self.tokenizer, self.haystack = model, tokenizer, haystack
        self.results, self.progress = results, progress
        self.done = 0
        self.ends = ends_of(model, tokenizer)
        known = ModelIdentity.of(model)
        digest = hashlib.sha256(f"{known.shapes} {known.sample}".encode()).hexdigest()[:16]
        self.origin = {"model": known.name, "model_hash": digest, "dtype": str(model.dtype).removeprefix("torch.")}
        self.provenance = provenance(model.device)
        config = model.config.get_text_config(decoder=True)
        self.positions: int | None = getattr(config, "max_position_embeddings", None)

    def ask(self, asked: Asked, contestants: list[Contestant]) -> Iterator[Record]:
        """Put the questions to all methods; yields each record, new or known, when it is in the file.

        Raises:
            SettingsError: The model has too few positions for a task, or the context is too short for it.
        """
        cells = [(name, context) for name in asked.tasks for context in asked.contexts]
        for name, context in cells:
            for first in range(0, asked.samples, asked.batch_size):
                numbers = list(range(first, min(first + asked.batch_size, asked.samples)))
                yield from self._ask_batch(name, context, asked.seed, numbers, contestants)

    def _ask_batch(
        self, name: str, context: int, seed: int, numbers: list[int], contestants: list[Contestant]
    ) -> Iterator[Record]:
        task = TASKS[name]
        identity = {
            **{key: value for key, value in self.origin.items() if key != "model"},
            "text": self.haystack.name,
            "task": name,
            "task_settings": repr(task),
            "context": context,
            "seed": seed,
            "samples": numbers,
        }
        known, missing = self._known(identity, contestants)
        yield from known
        if not missing:
            return
        around = len(encode(self.tokenizer, Request("")))
        samples = [
            task.sample(self.haystack, context - around, random.Random(f"{seed} {name} {context} {number}"))
            for number in numbers
        ]
        max_new_tokens = max(sample.max_new_tokens for sample in samples)
        spoken = [self._ids(sample.spoken) for sample in samples]
        rows = [[*encode(self.tokenizer, Request(sample.prompt)), *self._ids(sample.prefix)] for sample in samples]
        needed = max(map(len, rows)) + max(map(len, spoken)) + max_new_tokens
        if self.positions is not None and needed > self.positions:
            raise SettingsError(
                f"The task {name} at a context of {context} needs {needed} positions, the model has {self.positions}. "
                "Give a smaller --context."
            )
        self._tell(f"{name} at {context}", 0)
        prompt = take_in(self.model, *padded(rows, self.model.device))
        expected: list[list[int]] | None = None
        for each, key in missing:
            started = time.perf_counter()
            self._tell(f"{name} at {context}, {each.name}", 0)
            with attach(self.model, each.method) as kv_cache:
                prompt.replay(kv_cache)
                before = _fetched(kv_cache)
                said = answer(self.model, kv_cache, prompt, spoken, max_new_tokens, self.ends)
                told = _told(kv_cache, before)
            if isinstance(each.method, Full):
                expected = said
            if expected is None:
                expected = self._said_by_full(known)
            outputs = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in said]
            record = {
                "kind": "task",
                "key": key,
                **self.origin,
                **identity,
                **each.identity,
                "scenario": task.scenario,
                "scores": [task.score(sample, str(out)) for sample, out in zip(samples, outputs, strict=True)],
                "agreement": None if expected is None else list(map(_agreement, said, expected)),
                "outputs": outputs,
                "said": said,
                "answers": [list(sample.answers) for sample in samples],
                "tokens": [len(row) for row in rows],
                **told,
                "seconds": time.perf_counter() - started,
                "provenance": self.provenance,
            }
            yield self._finished(record)

    def feed(self, fed: Fed, contestants: list[Contestant]) -> Iterator[Record]:
        """Feed texts to all methods; yields each record, new or known, when it is in the file.

        Raises:
            SettingsError: The model has too few positions, or the text is too short.
        """
        for length in fed.prompts:
            yield from self._feed_batch(length, fed, contestants)

    def _feed_batch(self, length: int, fed: Fed, contestants: list[Contestant]) -> Iterator[Record]:
        identity = {
            **{key: value for key, value in self.origin.items() if key != "model"},
            "text": self.haystack.name,
            "prompt": length,
            "steps": fed.steps,
            "texts": fed.texts,
            "seed": fed.seed,
        }
        known, missing = self._known(identity, contestants)
        yield from known
        if not missing:
            return
        needed = length + fed.steps
        if self.positions is not None and needed > self.positions:
            raise SettingsError(
                f"A prompt of {length} and {fed.steps} steps need {needed} positions, the model has {self.positions}. "
                "Give fewer."
            )
        seed = random.Random(f"{fed.seed} {length}")
        rows = torch.tensor([self._prose(needed, seed) for _ in range(fed.texts)], device=self.model.device)
        prompt = take_in(self.model, rows[:, :length], torch.ones_like(rows[:, :length], dtype=torch.bool))
        reference = refer(self.model, prompt, rows[:, length:])
        for each, key in missing:
            started = time.perf_counter()
            with attach(self.model, each.method) as kv_cache:
                prompt.replay(kv_cache)
                before = _fetched(kv_cache)
                tell = partial(self._tell_steps, f"fidelity behind {length}, {each.name}", fed.steps)
                curves = compare(self.model, kv_cache, reference, tell)
                told = _told(kv_cache, before)
            record = {
                "kind": "fidelity",
                "key": key,
                **self.origin,
                **identity,
                **each.identity,
                "scenario": "long output" if length < fed.steps else "long both",
                "kl": _mean(curves.kl),
                "top1": _mean(curves.top1),
                "nll": _mean(curves.nll),
                "full_nll": float(reference.nll.mean()),
                "bin": BIN,
                "curves": {name: _binned(getattr(curves, name)) for name in ("kl", "top1", "nll")},
                **told,
                "seconds": time.perf_counter() - started,
                "provenance": self.provenance,
            }
            yield self._finished(record)

    def _known(
        self, identity: Record, contestants: list[Contestant]
    ) -> tuple[list[Record], list[tuple[Contestant, str]]]:
        """The records that are there already, and the contestants whose are not, with their keys."""
        keys = [(each, key_of({**identity, **each.identity})) for each in contestants]
        known = [self.results[key] for _, key in keys if key in self.results]
        self.done += len(known)
        return known, [(each, key) for each, key in keys if key not in self.results]

    def _said_by_full(self, known: list[Record]) -> list[list[int]] | None:
        return next((record["said"] for record in known if record["class"] == Full.__name__), None)

    def _finished(self, record: Record) -> Record:
        self.results.add(record)
        self.done += 1
        return self.results[record["key"]]

    def _tell(self, what: str, part: float) -> None:
        self.progress(what, self.done + part)

    def _tell_steps(self, what: str, steps: int, done: int) -> None:
        self._tell(what, done / steps)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _prose(self, num_tokens: int, seed: random.Random) -> list[int]:
        return list(islice(self._ids(self.haystack.around([], "", 2 * num_tokens, seed)), num_tokens))


def planned(asked: Asked, fed: Fed | None, contestants: list[Contestant]) -> int:
    """Runs of a whole evaluation."""
    batches = len(asked.tasks) * len(asked.contexts) * -(-asked.samples // asked.batch_size)
    return (batches + (len(fed.prompts) if fed else 0)) * len(contestants)


def _fetched(kv_cache: LouisKVCache) -> int:
    return sum(layer.state.traffic.fetched_bytes for layer in kv_cache.managed)


def _told(kv_cache: LouisKVCache, before: int) -> Record:
    """What the cache did, by output token where it makes sense."""
    report = kv_cache.report()
    index = sum(layer.tiers.index.bytes for layer in report.layers)
    return {
        "output_tokens": report.output_tokens,
        "fetched_per_token": (_fetched(kv_cache) - before) / max(1, report.output_tokens),
        "retrieval_rate": report.to_dict()["retrievals_per_step"],
        "resident_bytes": report.device_bytes - index,
        "index_bytes": index,
        "host_bytes": report.host_bytes,
        "full_bytes": report.full_bytes,
    }


def _agreement(said: list[int], expected: list[int]) -> float:
    """The share of the expected tokens that come before the first difference."""
    same = next((at for at, pair in enumerate(zip(said, expected, strict=False)) if pair[0] != pair[1]), None)
    if same is None:
        same = min(len(said), len(expected))
    return same / len(expected) if expected else float(not said)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _binned(values: list[float]) -> list[float]:
    return [_mean(values[first : first + BIN]) for first in range(0, len(values), BIN)]
