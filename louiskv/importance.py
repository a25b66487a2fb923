"""Which of the tokens that are held matters least: what eviction goes by."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from louiskv.errors import SettingsError, check_count, check_range
from louiskv.ops.ragged import dense_ranks


class Observation(NamedTuple):
    """What m queries of each row have paid attention to, among C tokens.

    Attributes:
        weights: [N, G, m, C] float32 attention weights, 0 where a query may not attend.
        lse: [N, G, m] log-sum-exp of their logits.
        votes: [N, C] what was added to the logit of each token, -inf where there is none.
        positions: [N, C] positions of the tokens, -1 where there is none.
        times: [N, m] positions of the queries, -1 for padding.
    """

    weights: Tensor
    lse: Tensor
    votes: Tensor
    positions: Tensor
    times: Tensor

    def log_scores(self) -> Tensor:
        """[N, m, C] logits as the query group sees them, their mean over the heads; -inf where none may attend."""
        # Not by the weights: those of the least logits are 0.
        positions, times = self.positions[:, None], self.times[..., None]
        seen = (positions >= 0) & (positions <= times)
        logits = self.weights.clamp(min=torch.finfo(torch.float32).tiny).log() + self.lse[..., None]
        return (logits.mean(1) - self.votes[:, None]).masked_fill(~seen, -torch.inf)


class Importance(ABC):
    """Settings of a rule that says which token matters least."""

    @property
    def prompt_queries(self) -> int | None:
        """How many of a prompt's newest queries it looks at: None for all of them."""
        return 0

    @property
    def watches_output(self) -> bool:
        """Whether it looks at the query of each decode step."""
        return False

    @property
    def num_stats(self) -> int:
        """Numbers that it keeps of each token, float32; 0 at first."""
        return 0

    @property
    def page_size(self) -> int:
        """Tokens that go together: those of the same `position // page_size`."""
        return 1

    def observe(self, stats: Tensor, seen: Observation) -> Tensor:
        """The stats [N, C, k] after an observation; a long prompt comes in several, older queries first."""
        return stats

    def observe_prompt(self, stats: Tensor, is_prompt: Tensor, room: Tensor) -> Tensor:
        """The stats [N, C, k] after a prompt, whose tokens are where `is_prompt` [N, C], before any is dropped.

        Args:
            stats: As the observations have left them; tokens in the order of their positions.
            is_prompt: Which tokens came with this prompt.
            room: [N] tokens of each row that may stay for good: the newest and one more page must have their place.
        """
        return stats

    @abstractmethod
    def scores(self, stats: Tensor, positions: Tensor, votes: Tensor) -> Tensor:
        """[N, C] float32, least for the token that matters least; inf for one that must stay."""

    def log_scores(self, stats: Tensor) -> Tensor:
        """[N, C] ln s of each token, where s stands for `exp(scaling q.k)` of queries to come."""
        return stats.new_zeros(stats.shape[:-1])


@dataclass(frozen=True)
class Recency(Importance):
    """The oldest token matters least (StreamingLLM, section 3.2 of arXiv 2309.17453)."""

    def scores(self, stats: Tensor, positions: Tensor, votes: Tensor) -> Tensor:
        """The position."""
        return positions.float()


@dataclass(frozen=True)
class AccumulatedAttention(Importance):
    """The token that has got the least attention so far (H2O, section 4.1 of arXiv 2306.14048), mean over the group."""

    @property
    def prompt_queries(self) -> None:
        """All."""

    @property
    def watches_output(self) -> bool:
        """Yes."""
        return True

    @property
    def num_stats(self) -> int:
        """The sum."""
        return 1

    def observe(self, stats: Tensor, seen: Observation) -> Tensor:
        """Add the weights."""
        return stats + seen.weights.mean(1).sum(1)[..., None]

    def scores(self, stats: Tensor, positions: Tensor, votes: Tensor) -> Tensor:
        """The sum."""
        return stats[..., 0]


@dataclass(frozen=True)
class ObservationWindow(Importance):
    """What the last queries of the prompt attended to (SnapKV, section 4 of arXiv 2404.14469), looked at once.

    Attributes:
        num_queries: Queries that are looked at.
        kernel: Neighbouring tokens, of which each takes the greatest weight.
    """

    num_queries: int = 32
    kernel: int = 7

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("num_queries", self.num_queries, 1)
        check_count("kernel", self.kernel, 1)
        if self.kernel % 2 == 0:
            raise SettingsError(f"kernel={self.kernel} is not allowed: give an odd number, so that it has a middle.")

    @property
    def prompt_queries(self) -> int:
        """The window."""
        return self.num_queries

    @property
    def num_stats(self) -> int:
        """The pooled weight."""
        return 1

    def observe(self, stats: Tensor, seen: Observation) -> Tensor:
        """Sum over the queries, maximum over the neighbours, mean over the group; what was before counts no more."""
        by_head = torch.nn.functional.max_pool1d(seen.weights.sum(2), self.kernel, stride=1, padding=self.kernel // 2)
        return by_head.mean(1)[..., None]

    def scores(self, stats: Tensor, positions: Tensor, votes: Tensor) -> Tensor:
        """The pooled weight; 0 for the output."""
        return stats[..., 0]


@dataclass(frozen=True)
class TimeStamps(Importance):
    """The page whose attention was last worth mentioning the longest ago (RaaS, section 3.2 of arXiv 2502.11147).

    A page gets the position of a query as its stamp when its tokens together get more than `threshold` of the
    attention, mean over the group. A prompt that leaves room for the newest tokens and a page stays for good; otherwise
    its pages are stamped by its last queries.

    Attributes:
        page_size: Tokens of a page.
        threshold: Share of the attention.
        num_queries: Queries of a prompt that give stamps.
    """

    page_size: int = 16
    threshold: float = 1e-4
    num_queries: int = 32

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("page_size", self.page_size, 1)
        check_count("num_queries", self.num_queries, 1)
        check_range("threshold", self.threshold, 0, 1)

    @property
    def prompt_queries(self) -> int:
        """The last ones."""
        return self.num_queries

    @property
    def watches_output(self) -> bool:
        """Yes."""
        return True

    @property
    def num_stats(self) -> int:
        """The stamp, the same for all tokens of a page."""
        return 1

    def observe(self, stats: Tensor, seen: Observation) -> Tensor:
        """Renew the stamps of the pages that are attended to; a token that came since gets that of its page."""
        weights = seen.weights.mean(1) * (seen.positions >= 0)[:, None]
        page = dense_ranks(seen.positions.clamp(min=0) // self.page_size)
        mass = torch.zeros_like(weights)
        mass.scatter_add_(2, page[:, None].expand_as(weights), weights)
        stamp = torch.where(mass > self.threshold, seen.times[..., None].float(), 0).amax(1)
        former = stats[..., 0]
        # What stays for good gives nothing to the tokens of the output that share its page.
        stamp.scatter_reduce_(1, page, former.masked_fill((former == torch.inf) | (seen.positions < 0), 0), "amax")
        return torch.maximum(former, stamp.gather(1, page))[..., None]

    def observe_prompt(self, stats: Tensor, is_prompt: Tensor, room: Tensor) -> Tensor:
        """Keep a prompt for good if there is room."""
        for_good = is_prompt | (stats[..., 0] == torch.inf)
        fits = for_good.sum(1) <= room
        return torch.where((is_prompt & fits[:, None])[..., None], torch.inf, stats)

    def scores(self, stats: Tensor, positions: Tensor, votes: Tensor) -> Tensor:
        """The stamp."""
        return stats[..., 0]


@dataclass(frozen=True)
class MovingAverage(Importance):
    """The token of least weight `p s`, with s averaged over recent queries (KeepKV, section 4.3 of arXiv 2504.09936).

    The average of `exp(scaling q.k)` is exponential and corrected for its start, and kept as a logarithm.

    Attributes:
        decay: What is left of a query's part at the next one.
        num_queries: Queries of a prompt that are looked at.
    """

    decay: float = 0.9
    num_queries: int = 32

    def __post_init__(self) -> None:
        """Check the settings."""
        if type(self.decay) is not float or not 0 < self.decay < 1:
            raise SettingsError(f"decay={self.decay!r} is not allowed: give a number between 0 and 1.")
        check_count("num_queries", self.num_queries, 1)

    @property
    def prompt_queries(self) -> int:
        """The last ones."""
        return self.num_queries

    @property
    def watches_output(self) -> bool:
        """Yes."""
        return True

    @property
    def num_stats(self) -> int:
        """The logarithm of the corrected average, and how many queries it is of."""
        return 2

    def observe(self, stats: Tensor, seen: Observation) -> Tensor:
        """Let the average move on by each query that sees the token."""
        average, number = stats.unbind(-1)
        new = seen.log_scores()
        looks = new > -torch.inf
        # How many queries that see the token come after each: its part decays as often.
        after = looks.flip(1).cumsum(1).flip(1) - looks.int()
        decay = math.log(self.decay)
        added = (new + after * decay).logsumexp(1) + math.log1p(-self.decay)
        total = number + looks.sum(1)
        held = torch.where(number > 0, average + self._share(number), -torch.inf)
        sums = torch.logaddexp(held + looks.sum(1) * decay, added)
        moved = sums - self._share(total)
        return torch.stack([torch.where(total > number, moved, average), total], -1)

    def _share(self, number: Tensor) -> Tensor:
        """ln(1 - decay^n): what the average of n queries lacks of a whole one."""
        return torch.log1p(-(self.decay**number)).clamp(min=-100)

    def scores(self, stats: Tensor, positions: Tensor, votes: Tensor) -> Tensor:
        """The logarithm of the weight."""
        return stats[..., 0] + votes

    def log_scores(self, stats: Tensor) -> Tensor:
        """The logarithm of the average; 0 for a token that no query has seen."""
        return stats[..., 0]
