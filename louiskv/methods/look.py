"""What the index tells the queries of one decode step: for the trigger, the selection, and the estimate of the rest."""

from functools import cached_property

import torch
from torch import Tensor

from louiskv.ops.attention import Rest
from louiskv.ops.candidates import count_rest
from louiskv.ops.log_sums import log_sums
from louiskv.ops.selection import agree, score_tokens, select_units, unit_logits, unit_shares
from louiskv.store.device import ResidentSet
from louiskv.units.entries import AllUnits, BestBundles, Entries
from louiskv.units.index import UnitIndex
from louiskv.units.summaries import Summary


class Look:
    """One look at the index of a layer; each figure is computed when it is first asked for, and once.

    What depends on the retrieved tokens is of the moment when it is asked for.

    Attributes:
        where: [N] rows for which what was not asked for before is needed, None for all; the others may get anything.
    """

    where: Tensor | None = None

    def __init__(
        self,
        index: UnitIndex,
        resident: ResidentSet,
        summary: Summary,
        query: Tensor,
        *,
        scaling: float,
        reduce: str,
        max_looked: int | None = None,
        attention_sinks: Tensor | None = None,
        impl: str | None = None,
    ) -> None:
        """Look with queries [N, G, D] at `max_looked` units at the most, None for all; attention sinks are [N, G]."""
        self.index, self.resident, self.summary, self.query = index, resident, summary, query
        self.scaling, self.reduce, self.max_looked = scaling, reduce, max_looked
        self.attention_sinks, self.impl = attention_sinks, impl
        self._counted: tuple[Tensor, Tensor] | None = None

    def _logits(self, query: Tensor, summaries: tuple[Tensor, ...]) -> Tensor:
        kind = self.summary.kind
        return unit_logits(query, summaries, kind=kind, scaling=self.scaling, where=self.where, impl=self.impl)

    @cached_property
    def entries(self) -> Entries:
        """What is read of the index: where there are too many units, those of the best bundles."""
        index, num_units = self.index, self.index.sizes.shape[1]
        if index.bundles is None or self.max_looked is None or num_units <= self.max_looked:
            return AllUnits(index)
        sizes = index.sizes.unflatten(1, (-1, index.bundles.size)).sum(-1)
        shares = unit_shares(self._logits(self.query, index.bundled), sizes, self.beside, impl=self.impl)
        scores = agree(shares, sizes, "share_mean", impl=self.impl)
        return BestBundles(index, scores.topk(self.max_looked // index.bundles.size, dim=1).indices)

    @cached_property
    def sizes(self) -> Tensor:
        """[N, E] tokens of each entry."""
        return self.entries.counted(self.index.sizes)

    @property
    def num_left(self) -> Tensor:
        """[N, E] tokens of each entry that are not resident."""
        slot_place = self.resident.slot_place
        if self._counted is None or self._counted[0] is not slot_place:
            of_units = count_rest(slot_place, self.index.sizes, self.entries.table, impl=self.impl)
            self._counted = slot_place, self.entries.counted(of_units)
        return self._counted[1]

    @property
    def num_resident(self) -> Tensor:
        """[N, E] resident tokens of each entry."""
        return self.sizes - self.num_left

    @cached_property
    def logits(self) -> Tensor:
        """[N, G, E] of a token of each entry."""
        return self._logits(self.query, self.entries.summaries)

    @cached_property
    def beside(self) -> Tensor:
        """[N, G] log-sum-exp of the logits of sinks and window, and of the attention sinks."""
        sinks = self.attention_sinks
        return log_sums(self.query, *self.resident.always, scaling=self.scaling, attention_sinks=sinks, impl=self.impl)

    @cached_property
    def shares(self) -> Tensor:
        """[N, G, E] logarithm of the share of its attention that a head gives a token of each entry, -inf for none."""
        return unit_shares(self.logits, self.sizes, self.beside, impl=self.impl)

    @cached_property
    def scores(self) -> Tensor:
        """[N, R] of the entries that are units, on which the query group agrees; -inf where there is no unit."""
        if self.reduce == "share_mean":
            logits = self.shares
        elif self.reduce == "query_mean":
            logits = self._logits(self.query.mean(1, keepdim=True), self.entries.summaries)
        else:
            logits = self.logits
        scores = agree(logits, self.sizes, self.reduce, where=self.where, impl=self.impl)
        return scores[:, : self.entries.num_units]

    @property
    def unit_sizes(self) -> Tensor:
        """[N, R] tokens of the entries that are units."""
        return self.sizes[:, : self.entries.num_units]

    @cached_property
    def mass(self) -> Tensor:
        """[N, E] what a token of each entry gets of all that the units get, the heads of a group together."""
        mass = self.shares.exp().sum(1)
        return mass / (mass * self.sizes).sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

    def coverage(self) -> Tensor:
        """[N] share of the units' attention that the resident tokens get."""
        return (self.mass * self.num_resident).sum(1)

    def best_coverage(self) -> Tensor:
        """[N] what as many tokens of the best units would get."""
        num_resident = (self.resident.slot_place >= 0).sum(1)
        take = select_units(self.scores, self.unit_sizes, num_resident, impl=self.impl)
        return (self.mass[:, : self.entries.num_units] * take).sum(1)

    def select(self, scores: Tensor, budget: Tensor) -> Tensor:
        """[N, R] tokens taken of each unit by these scores [N, R], for budgets [N]; none in rows not asked for."""
        take = select_units(scores, self.unit_sizes, budget, where=self.where, impl=self.impl)
        return take if self.where is None else take * self.where[:, None]

    def token_scores(self, entry: Tensor, place: Tensor) -> Tensor:
        """[N, W] scores of single tokens, of which entries [N, W] and places [N, W], -1 for none, are given."""
        bits, steps = self.index.details, self.entries.summaries[2][..., 2]
        assert bits is not None
        return score_tokens(self.query, self.shares, bits, steps, entry, place, scaling=self.scaling, impl=self.impl)

    def forget_resident(self) -> None:
        """Count anew what is resident, when that is asked for."""
        self._counted = None

    def needed_by_rest(self) -> None:
        """Ask for what `rest` will need and a retrieval may ask for before it."""
        _ = self.logits, self.sizes

    def rest(self, max_units: int | None) -> Rest:
        """What is not resident, by the summaries; of the `max_units` entries with most attention, None for all."""
        _, values, steps = self.entries.summaries
        num_left, logits, steps = self.num_left, self.logits, steps[..., 1]
        if max_units is not None and max_units < num_left.shape[1]:
            best = (self.mass * num_left).topk(max_units, dim=1).indices
            num_left, steps = num_left.gather(1, best), steps.gather(1, best)
            logits = logits.gather(2, best[:, None].expand(-1, logits.shape[1], -1))
            values = values.gather(1, best[..., None].expand(-1, -1, values.shape[2]))
        return Rest(logits, num_left, values, steps)
