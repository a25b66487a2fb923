"""What the index tells the queries of one decode step: for the trigger, the selection, and the estimate of the rest."""

from functools import cached_property

import torch
from torch import Tensor

from louiskv.ops.attention import Rest
from louiskv.ops.selection import agree, score_tokens, select_units, unit_logits, unit_shares
from louiskv.store.device import ResidentSet
from louiskv.units.index import UnitIndex
from louiskv.units.summaries import Summary


class Look:
    """One look at the index of a layer; each figure is computed when it is first asked for, and once.

    What depends on the retrieved tokens is of the moment when it is asked for.
    """

    def __init__(
        self,
        index: UnitIndex,
        resident: ResidentSet,
        summary: Summary,
        query: Tensor,
        *,
        scaling: float,
        reduce: str,
        attention_sinks: Tensor | None = None,
        impl: str | None = None,
    ) -> None:
        """Look at the index with queries [N, G, D]; attention sinks are [N, G]."""
        self.index, self.resident, self.summary, self.query = index, resident, summary, query
        self.scaling, self.reduce, self.attention_sinks, self.impl = scaling, reduce, attention_sinks, impl

    def _logits(self, query: Tensor) -> Tensor:
        kind = self.summary.kind
        return unit_logits(query, self.index.summaries, kind=kind, scaling=self.scaling, impl=self.impl)

    @cached_property
    def logits(self) -> Tensor:
        """[N, G, U] of a token of each unit."""
        return self._logits(self.query)

    @cached_property
    def beside(self) -> Tensor:
        """[N, G] log-sum-exp of the logits of sinks and window, and of the attention sinks."""
        keys, bias = self.resident.always
        logits = torch.bmm(self.query * self.scaling, keys.transpose(1, 2)).float() + bias
        if self.attention_sinks is not None:
            logits = torch.cat([logits, self.attention_sinks.float()[..., None]], dim=-1)
        return logits.logsumexp(-1)

    @cached_property
    def shares(self) -> Tensor:
        """[N, G, U] logarithm of the share of its attention that a head gives a token of each unit, -inf for none."""
        return unit_shares(self.logits, self.index.sizes, self.beside, impl=self.impl)

    @cached_property
    def scores(self) -> Tensor:
        """[N, U] on which the query group agrees, -inf where there is no unit."""
        if self.reduce == "share_mean":
            logits = self.shares
        elif self.reduce == "query_mean":
            logits = self._logits(self.query.mean(1, keepdim=True))
        else:
            logits = self.logits
        return agree(logits, self.index.sizes, self.reduce, impl=self.impl)

    @cached_property
    def mass(self) -> Tensor:
        """[N, U] what a token of each unit gets of all that the units get, the heads of a group together."""
        mass = self.shares.exp().sum(1)
        return mass / (mass * self.index.sizes).sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

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
