"""The rows that decode together: their cache, the step that feeds them, and what chooses their tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from louiskv.cache import LouisKVCache
from louiskv.captured import CapturedStep, EagerStep, why_not
from louiskv.engine.request import Logprob, Sampling
from louiskv.engine.sampler import Sampler
from louiskv.errors import SettingsError


@dataclass(frozen=True)
class Step:
    """What one step has given, for each of its rows.

    Attributes:
        tokens: The tokens chosen.
        logprobs: What was asked for of their probabilities.
        fired: Share of the KV heads of all layers that retrieved; 0 at a prompt.
    """

    tokens: list[int]
    logprobs: list[Logprob | None]
    fired: list[float]


class Batch:
    """Rows of one cache, made with the first sequence and gone with the last.

    As many rows as a power of two are there, so that few rows cost little, and few changes of shape are made.

    A sequence is known by a number that it keeps when rows move together.

    Attributes:
        cache: None without any row in use.
        max_rows: Rows at the most.
        longest: Tokens that the rows have had room for.
        fetched_bytes: Bytes that caches which are gone have fetched.
    """

    def __init__(self, model: PreTrainedModel, like: LouisKVCache, max_rows: int, graph: bool | None) -> None:
        """Batch what caches `like` this one hold.

        Raises:
            SettingsError: A graph is asked for where there can be none.
        """
        self.model, self.max_rows = model, max_rows
        self.vocabulary = model.config.get_text_config(decoder=True).vocab_size
        reason = "graph=False" if graph is False else why_not(model, like)
        if graph and reason is not None:
            raise SettingsError(f"graph=True is not possible: {reason}. Use graph=None to run without.")
        self._kind = EagerStep if reason is not None else CapturedStep
        self.cache: LouisKVCache | None = None
        self._step: EagerStep | None = None
        self._captured = 0
        self._sampler: Sampler
        self.longest = self.fetched_bytes = self._last = 0
        self._row_of: dict[int, int] = {}

    @property
    def num_captured(self) -> int:
        """How often a step was captured as a graph."""
        return self._captured + (self._step.num_captured if isinstance(self._step, CapturedStep) else 0)

    @property
    def num_rows(self) -> int:
        """Rows that there are."""
        return 0 if self.cache is None else len(self.cache.lengths)

    def rows_for(self, num_sequences: int) -> int:
        """Rows that there will be when so many are in use."""
        rows = 1
        while rows < num_sequences:
            rows *= 2
        return min(rows, self.max_rows)

    def join(self, prompt: LouisKVCache, settings: Sampling, token_ids: list[int]) -> int:
        """Let a sequence decode with the others; its cache is empty afterwards. Returns its number."""
        if self.cache is None:
            self.cache = prompt.spread([], 1)
            self._sampler = Sampler(1, self.vocabulary, self.model.device)
            self._begin_steps()
        elif len(self._row_of) == self.num_rows:
            self._respread(self.rows_for(self.num_rows + 1))
        row = self.cache.lengths.index(0)
        self.longest = max(self.longest, prompt.get_seq_length())
        try:
            self.cache.put(row, prompt)
            self._sampler.put(row, settings, torch.tensor(token_ids))
        except Exception:
            # No layer may hold what others do not.
            self.cache.clear(row)
            self._touch()
            self._release()
            raise
        self._touch()
        self._last += 1
        self._row_of[self._last] = row
        return self._last

    def leave(self, number: int) -> None:
        """Free the row of a sequence."""
        assert self.cache is not None
        row = self._row_of.pop(number)
        self.cache.clear(row)
        self._sampler.clear(row)
        self._touch()
        self._release()

    def _release(self) -> None:
        """Give back what the rows in use do not need."""
        assert self.cache is not None
        held = len(self._row_of)
        if not held:
            self.reset()
        elif 4 * held <= self.num_rows:
            self._respread(self.num_rows // 2)
        elif self.longest > 2 * max(self.cache.lengths):
            self._respread(self.num_rows)

    def row(self, number: int) -> int:
        """Where a sequence is now."""
        return self._row_of[number]

    def take(self, number: int) -> LouisKVCache:
        """A copy of a sequence as a cache of its own."""
        assert self.cache is not None
        return self.cache.take(self._row_of[number])

    def reset(self) -> None:
        """Let all rows go."""
        self._captured = self.num_captured
        self.fetched_bytes += 0 if self.cache is None else fetched_bytes(self.cache)
        self.cache, self._step, self.longest, self._row_of = None, None, 0, {}

    def first(self, logits: Tensor, number: int) -> Step:
        """Choose the first token of a sequence that has just joined, by its prompt's logits [1, V]."""
        return Step(*self._sampler.choose(logits, [self._row_of[number]]), [0.0])

    def run(self, tokens: dict[int, int]) -> Step:
        """Feed each sequence its token, and choose the next ones, in the same order."""
        assert self.cache is not None
        assert self._step is not None
        fed, places = [0] * self.num_rows, list(self.cache.lengths)
        rows = [self._row_of[number] for number in tokens]
        for row, token in zip(rows, tokens.values(), strict=True):
            fed[row] = token
        pair = torch.tensor([fed, places], device=self.model.device)
        logits = self._step.run(pair[0], pair[1])
        self.longest = max(self.longest, max(self.cache.lengths))
        if rows != list(range(len(logits))):
            logits = logits[torch.tensor(rows, device=logits.device)]
        return Step(*self._sampler.choose(logits, rows), self._fired(rows))

    def _fired(self, rows: list[int]) -> list[float]:
        assert self.cache is not None
        fired = [layer.state.telemetry.fired for layer in self.cache.managed]
        said = [each.last for each in fired if each.began]
        if not said:
            return [0.0] * len(rows)
        shares: list[float] = torch.stack([each.float().mean(1) for each in said]).mean(0).tolist()
        return [shares[row] for row in rows]

    def _respread(self, num_rows: int) -> None:
        assert self.cache is not None
        rows = list(self._row_of.values())
        try:
            self.cache.respread(rows, num_rows)
            self._sampler.respread(rows, num_rows)
        except Exception:
            # Some layers have other rows than the rest: nothing can be decoded any more.
            self.reset()
            raise
        self._row_of = {number: place for place, number in enumerate(self._row_of)}
        self.longest = max(self.cache.lengths)
        self._begin_steps()

    def _begin_steps(self) -> None:
        assert self.cache is not None
        self._captured = self.num_captured
        positions = torch.zeros(self.num_rows, dtype=torch.int64, device=self.model.device)
        self._step = self._kind(self.model, self.cache, positions)

    def _touch(self) -> None:
        if self._step is not None:
            self._step.touch()


def fetched_bytes(kv_cache: LouisKVCache) -> int:
    """Bytes that a cache has copied from the host."""
    return sum(layer.state.traffic.fetched_bytes for layer in kv_cache.managed if layer.state.batch_size)
