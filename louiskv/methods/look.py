"""What the index tells the queries of one decode step: for the trigger, the selection, and the estimate of the rest."""

from functools import cached_property

import torch
from torch import Tensor

from louiskv.ops.attention import Rest
from louiskv.ops.selection import agree, score_tokens, select_units, unit_logits
from louiskv.units.index import UnitIndex
from louiskv.units.summaries import Summary


class Look:
    """One look at the index of a layer; each figure is computed when it is first asked for, and once.

    What depends on the resident tokens is of the moment when it is asked for.
    """

    def __init__(
        self, index: UnitIndex, summary: Summary, query: Tensor, scaling: float, reduce: str, impl: str | None = None
    ) -> None:
        """Look at the index with queries [N, G, D]."""
        self.index, self.summary, self.query = index, summary, query
        self.scaling, self.reduce, self.impl = scaling, reduce, impl

    def _logits(self, query: Tensor) -> Tensor:
        kind = self.summary.kind
        return unit_logits(query, self.index.summaries, kind=kind, scaling=self.scaling, impl=self.impl)

    @cached_property
    def logits(self) -> Tensor:
        """[N, G, U] of a token of each unit."""
        return self._logits(self.query)

    @cached_property
    def scores(self) -> Tensor:
        """[N, U] on which the query group agrees, -inf where there is no unit."""
        logits = self._logits(self.query.mean(1, keepdim=True)) if self.reduce == "query_mean" else self.logits
        return agree(logits, self.index.sizes, self.reduce, impl=self.impl)

    @cached_property
    def shares(self) -> Tensor:
        """[N, G, U] logarithm of the share of the units' attention that a token of each unit gets, -inf for no unit."""
        sizes = self.index.sizes[:, None]
        total = (self.logits + sizes.log()).logsumexp(-1, keepdim=True)
        shares = self.logits - total.clamp(min=torch.finfo(torch.float32).min)
        return shares.masked_fill(sizes == 0, -torch.inf)

    @cached_property
    def mass(self) -> Tensor:
        """[N, U] what a token of each unit gets, mean over the group."""
        return self.shares.exp().mean(1)

    def coverage(self) -> Tensor:
        """[N] share of the units' attention that the resident tokens get."""
        return (self.mass * self.index.resident).sum(1)

    def best_coverage(self) -> Tensor:
        """[N] what as many tokens of the best units would get."""
        num_resident = self.index.resident.sum(1)
        return (self.mass * select_units(self.scores, self.index.sizes, num_resident, impl=self.impl)).sum(1)

    def token_scores(self, unit: Tensor, place: Tensor) -> Tensor:
        """[N, W] scores of single tokens, of which units [N, W] and places [N, W] are given."""
        bits, steps = self.index.details, self.index.summaries[2][..., 2]
        assert bits is not None
        return score_tokens(
            self.query, self.shares, bits, steps.float(), unit, place, scaling=self.scaling, impl=self.impl
        )

    def rest(self, max_units: int | None) -> Rest:
        """What is not resident, by the summaries of its units; of the `max_units` with most attention, None for all."""
        _, values, steps = self.index.summaries
        num_left = self.index.sizes - self.index.resident
        logits, steps = self.logits, steps[..., 1]
        if max_units is not None and max_units < num_left.shape[1]:
            best = (self.mass * num_left).topk(max_units, dim=1).indices
            num_left, steps = num_left.gather(1, best), steps.gather(1, best)
            logits = logits.gather(2, best[:, None].expand(-1, logits.shape[1], -1))
            values = values.gather(1, best[..., None].expand(-1, -1, values.shape[2]))
        return Rest(logits, num_left.log()[:, None], values, steps[:, None])
