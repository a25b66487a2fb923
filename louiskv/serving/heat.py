"""Where in its prompt an answer has looked, as runs of text that were attended to about as often."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from louiskv.engine import Attended

# Shares of all (step, layer, KV head) at which a run ends and one of another level begins.
LEVELS = (0.01, 0.03, 0.07, 0.15, 0.3, 0.5, 0.75)
# Tokens that a run is decoded behind: some tokenizers drop a leading space.
CONTEXT = 4
# Tokens by which a run may grow until its last character is whole.
INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Run:
    """Neighbouring tokens.

    Attributes:
        text: Theirs.
        count: How often each was attended to, in the mean.
        level: Place of its share among LEVELS, from 0 to their number.
    """

    text: str
    count: float
    level: int


@dataclass(frozen=True)
class Heat:
    """How often the tokens of a prompt were attended to exactly.

    Attributes:
        runs: All of the prompt, in order.
        total: Times that a token could have been attended to: steps x layers x KV heads that choose.
        layers: Layers that choose; where there is none, everything was attended to at every step.
    """

    runs: list[Run]
    total: int
    layers: int

    def to_dict(self) -> dict[str, Any]:
        """As plain data; a run is its text, count and level."""
        runs = [[run.text, round(run.count, 1), run.level] for run in self.runs]
        return {"runs": runs, "total": self.total, "layers": self.layers, "levels": LEVELS}


def heat_of(prompt: Sequence[int], attended: Attended, decode: Callable[[list[int]], str]) -> Heat:
    """Put what a watched answer attends to beside the text of its prompt.

    Args:
        prompt: Token ids.
        attended: What `Engine.attended` or `Answer.attended` tell.
        decode: Makes text of token ids.
    """
    assert attended.since is not None
    since = attended.since[:, : len(prompt)]
    # Layers that attend to everything have nothing to tell.
    choosing = (since != since[:, :1]).any(1)
    heads = int(torch.tensor(attended.heads)[choosing].sum())
    total = heads * len(attended.fired)
    counts = since[choosing].sum(0)
    runs = [_run(prompt, counts, total, start, end, decode) for start, end in _bounds(prompt, counts, total, decode)]
    return Heat(runs, total, int(choosing.sum()))


def _bounds(
    prompt: Sequence[int], counts: Tensor, total: int, decode: Callable[[list[int]], str]
) -> Iterator[tuple[int, int]]:
    """First and last place of each run; none ends within a character."""
    shares = counts.float() / max(1, total)
    levels = torch.bucketize(shares, torch.tensor(LEVELS), right=True)
    ends = [*((levels.diff() != 0).nonzero()[:, 0] + 1).tolist(), len(prompt)]
    start = 0
    for end in ends:
        if end < len(prompt) and decode(list(prompt[max(start, end - CONTEXT) : end])).endswith(INCOMPLETE):
            continue
        yield start, end
        start = end


def _run(
    prompt: Sequence[int], counts: Tensor, total: int, start: int, end: int, decode: Callable[[list[int]], str]
) -> Run:
    context = list(prompt[max(0, start - CONTEXT) : start])
    text = decode([*context, *prompt[start:end]])[len(decode(context)) :]
    count = float(counts[start:end].float().mean())
    return Run(text, count, bisect_right(LEVELS, count / max(1, total)))
