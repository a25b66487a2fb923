"""Tokens chosen from logits: each row by its own settings, and all rows at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.engine.request import Logprob, Sampling
from louiskv.ops.ragged import is_readable

# Most probable tokens that are looked at first: sorting a whole vocabulary takes longer than all else here.
FEW = 512
# Under this temperature the most probable token has all, and a device may take the number for 0.
COLDEST = 1e-30
# Numbers that a request draws at once.
DRAWN = 256


class Draws:
    """Uniform numbers of one request, from a generator of its own: the same whatever else is drawn."""

    def __init__(self, seed: int | None) -> None:
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            # Any whole number is a seed; a generator takes 64 bits.
            self._generator.manual_seed(seed % 2**63)
        self._numbers: list[float] = []

    def next(self) -> float:
        """The next number in [0, 1)."""
        if not self._numbers:
            self._numbers = torch.rand(DRAWN, generator=self._generator).tolist()[::-1]
        return self._numbers.pop()


@dataclass
class _Row:
    settings: Sampling
    draws: Draws


class Sampler:
    """What is known of each row's answer for choosing its next token.

    Attributes:
        rows: The settings of each row, None for one that is idle.
    """

    def __init__(self, num_rows: int, vocabulary: int, device: torch.device) -> None:
        self.vocabulary, self.device = vocabulary, device
        self.rows: list[_Row | None] = [None] * num_rows
        # [rows, V], made when the first request asks for what they are for.
        self._bias: Tensor | None = None
        self._counts: Tensor | None = None
        self._seen: Tensor | None = None

    def put(self, row: int, settings: Sampling, prompt: Tensor) -> None:
        """Let a row be chosen for by these settings, behind a prompt [T]."""
        self.rows[row] = _Row(settings, Draws(settings.seed))
        for held in (self._bias, self._counts, self._seen):
            if held is not None:
                held[row] = 0
        if settings.logit_bias:
            if self._bias is None:
                self._bias = self._per_token(torch.float32)
            tokens = torch.tensor(list(settings.logit_bias), device=self.device)
            self._bias[row, tokens] = torch.tensor(list(settings.logit_bias.values()), device=self.device).float()
        if self._counts is None and _counts(settings):
            self._counts = self._per_token(torch.float32)
        if settings.repetition_penalty != 1:
            if self._seen is None:
                self._seen = self._per_token(torch.bool)
            self._seen[row, prompt.to(self.device)] = True

    def clear(self, row: int) -> None:
        """Forget a row."""
        self.rows[row] = None

    def respread(self, rows: list[int], num_rows: int) -> None:
        """Have `num_rows` rows, of which the first are these."""
        held = [self.rows[row] for row in rows]
        self.rows = [*held, *[None] * (num_rows - len(rows))]
        index = torch.tensor(rows, dtype=torch.int64, device=self.device)
        for name in ("_bias", "_counts", "_seen"):
            before: Tensor | None = getattr(self, name)
            if before is not None:
                setattr(self, name, self._per_token(before.dtype))
                getattr(self, name)[: len(rows)] = before[index]

    def _per_token(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(len(self.rows), self.vocabulary, dtype=dtype, device=self.device)

    def choose(self, logits: Tensor, rows: list[int]) -> tuple[list[int], list[Logprob | None]]:
        """Choose the next token of some rows.

        Args:
            logits: [n, V] of these rows.
            rows: n rows.

        Returns:
            The tokens, and what was asked for of their probabilities.
        """
        held = [each for row in rows if (each := self.rows[row]) is not None]
        settings = [each.settings for each in held]
        index = torch.tensor(rows, device=self.device)
        said = logits.float()
        adjusted = self._adjusted(said, settings, index)
        tokens = adjusted.argmax(-1)
        if any(each.temperature > 0 for each in settings):
            uniform = self._numbers([each.draws.next() if each.settings.temperature else 0.0 for each in held])
            sampled = sample(adjusted, Limits.of(settings, self.device), uniform)
            tokens = torch.where(self._numbers([each.temperature for each in settings]) > 0, sampled, tokens)
        if self._counts is not None:
            self._counts[index, tokens] += 1
        if self._seen is not None:
            self._seen[index, tokens] = True
        return tokens.tolist(), logprobs(said, tokens, [each.logprobs for each in settings])

    def _adjusted(self, logits: Tensor, settings: list[Sampling], index: Tensor) -> Tensor:
        """Logits [n, V] with biases and penalties."""
        if self._bias is not None and any(each.logit_bias for each in settings):
            logits = logits + self._bias[index]
        if self._seen is not None and any(each.repetition_penalty != 1 for each in settings):
            by = self._numbers([each.repetition_penalty for each in settings])[:, None]
            logits = torch.where(self._seen[index], torch.where(logits > 0, logits / by, logits * by), logits)
        if self._counts is not None and any(map(_counts, settings)):
            counts = self._counts[index]
            frequency = self._numbers([each.frequency_penalty for each in settings])[:, None]
            presence = self._numbers([each.presence_penalty for each in settings])[:, None]
            logits = logits - frequency * counts - presence * (counts > 0)
        return logits

    def _numbers(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def _counts(settings: Sampling) -> bool:
    """Whether it matters how often a token was there."""
    return settings.presence_penalty != 0 or settings.frequency_penalty != 0


@dataclass(frozen=True)
class Limits:
    """Among which tokens n rows choose: tensors [n]."""

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    top_k: Tensor

    @classmethod
    def of(cls, settings: list[Sampling], device: torch.device) -> "Limits":
        """Of the settings of n rows."""
        rows = [(max(each.temperature, COLDEST), each.top_p, each.min_p) for each in settings]
        temperature, top_p, min_p = torch.tensor(rows, dtype=torch.float32, device=device).unbind(1)
        # More than any vocabulary has, and a tensor can hold it.
        top_k = torch.tensor([min(each.top_k, 2**31) for each in settings], device=device)
        return cls(temperature, top_p, min_p, top_k)

    def of_rows(self, index: Tensor) -> "Limits":
        """Of some of the rows."""
        return Limits(*(part[index] for part in vars(self).values()))


def sample(logits: Tensor, limits: Limits, uniform: Tensor) -> Tensor:
    """Choose by inverting the distribution over the tokens in the order of their probability.

    Args:
        logits: [n, V] float32.
        limits: Of each row.
        uniform: [n] in [0, 1).

    Returns:
        [n] tokens; each depends on its own row alone.
    """
    # The greatest is 0, so that a temperature near 0 makes none infinite.
    scaled = (logits - logits.amax(-1, keepdim=True)) / limits.temperature[:, None]
    lse = scaled.logsumexp(-1)
    if not is_readable(scaled) or scaled.shape[1] <= FEW:
        return _invert(scaled.sort(-1, descending=True), lse, limits, uniform)[0]
    tokens, known = _invert(scaled.topk(FEW, -1), lse, limits, uniform)
    left = (~known).nonzero()[:, 0]
    if len(left):
        rest = scaled[left].sort(-1, descending=True)
        tokens[left] = _invert(rest, lse[left], limits.of_rows(left), uniform[left])[0]
    return tokens


def _invert(best: tuple[Tensor, Tensor], lse: Tensor, limits: Limits, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [n], and where those that were looked at were enough to know them.

    Args:
        best: [n, K] greatest logits, the greatest first, and their tokens.
        lse: [n] log-sum-exp of all logits.
        limits: Of each row.
        uniform: [n].
    """
    (logits, tokens), top_k = best, limits.top_k[:, None]
    inside = (top_k == 0) | (torch.arange(logits.shape[1], device=logits.device) < top_k)
    share = torch.where(inside, (logits - lse[:, None]).exp(), 0)
    limited = limits.top_k > 0
    share = share / torch.where(limited, share.sum(-1), 1)[:, None]
    before = share.cumsum(-1) - share
    keep = inside & (before < limits.top_p[:, None]) & (share >= limits.min_p[:, None] * share[:, :1])
    keep[:, 0] = True
    mass = (share * keep).cumsum(-1)
    # Where nothing is left out, what was not looked at counts as well.
    whole = ~limited & (limits.top_p >= 1) & (limits.min_p == 0)
    wanted = uniform * torch.where(whole, 1, mass[:, -1])
    place = (mass <= wanted[:, None]).sum(-1)
    enough = torch.where(whole, place < logits.shape[1], ~keep[:, -1])
    known = torch.where(limited, limits.top_k <= logits.shape[1], enough)
    place = place.minimum(keep.sum(-1) - 1)
    return tokens.gather(1, place[:, None])[:, 0], known


def logprobs(logits: Tensor, tokens: Tensor, wanted: list[int | None]) -> list[Logprob | None]:
    """What rows that want it are told: of tokens [n] by logits [n, V] the logarithm, and so many of the best."""
    if all(each is None for each in wanted):
        return [None] * len(wanted)
    said = logits.log_softmax(-1)
    best = said.topk(min(said.shape[1], max(1, *(each or 0 for each in wanted))), -1)
    chosen = said.gather(1, tokens[:, None])[:, 0].tolist()
    rows = zip(wanted, tokens.tolist(), chosen, best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        None if number is None else Logprob(token, value, tuple(zip(ids[:number], values[:number], strict=True)))
        for number, token, value, ids, values in rows
    ]
