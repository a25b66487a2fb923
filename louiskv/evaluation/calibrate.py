"""Tau for each layer, from how queries turn on sample texts (arXiv 2510.11292, section 4.1, has one for all layers)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from louiskv.cache import managed_layers
from louiskv.errors import SettingsError, check_count, check_range
from louiskv.evaluation.probe import probe
from louiskv.evaluation.replay import take_in
from louiskv.measured import ModelIdentity
from louiskv.methods.base import Method
from louiskv.methods.calibrated import Calibrated
from louiskv.methods.louiskv import LouisKV
from louiskv.taus import LayerTaus

# Taus that are tried beside the least, for an error or where the cosines of neighbouring queries do not give the tau of
# a rate.
GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)


@dataclass(frozen=True)
class Target:
    """What a calibration aims at: one of both.

    Attributes:
        rate: Share of the decode steps that retrieve.
        error: |out - full| / |full| of the attention output.
    """

    rate: float | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if (self.rate is None) == (self.error is None):
            raise SettingsError("A calibration has one target: give either a rate or an error.")
        check_range(*next(iter(self.values().items())), 0, 1)

    def values(self) -> dict[str, float]:
        """The one that is given."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class _Sampled:
    """What was seen on S samples, in the L layers that retrieve.

    Attributes:
        layers: Index of each layer.
        cosine: [S, steps - 1, L] of neighbouring queries, mean over all heads.
        error: [S, L, methods] mean over steps and KV heads.
        rate: [S, L, methods] share of the steps that retrieved.
        grid: Tau of each of the last methods; empty where the cosines alone tell the rate of any tau.
    """

    layers: list[int]
    cosine: Tensor
    error: Tensor
    rate: Tensor
    grid: tuple[float, ...]

    def first(self, samples: int) -> "_Sampled":
        """Only the first samples."""
        return replace(self, **{name: getattr(self, name)[:samples] for name in ("cosine", "error", "rate")})

    def by_grid(self, name: str) -> Tensor:
        """[L, grid] error or rate at each tau of the grid, mean over the samples."""
        figures: Tensor = getattr(self, name)[..., -len(self.grid) :].mean(0)
        return figures

    def rate_under(self, tau: Tensor) -> float:
        """Retrieval rate with these taus [L], which are of the grid if there is one."""
        return self.at(tau, "rate") if self.grid else float((self.cosine < tau).float().mean())

    def at(self, tau: Tensor, name: str) -> float:
        """Error or rate with these taus [L] of the grid."""
        place = torch.searchsorted(torch.tensor(self.grid, dtype=torch.float64), tau)
        return float(self.by_grid(name).gather(1, place[:, None]).mean())


def calibrate(
    model: PreTrainedModel,
    texts: Tensor,
    held_out: Tensor,
    num_prompt: int,
    target: Target,
    method: Calibrated | None = None,
    *,
    batch_size: int = 4,
    progress: Callable[[int, int], None] = lambda *_: None,
    impl: str | None = None,
) -> LayerTaus:
    """Choose tau for each layer, and one for all.

    The queries are those of full attention.

    Args:
        model: The model, attached to nothing.
        texts: [S, T] ids of samples to calibrate on.
        held_out: The same of others, with no text in common: they tell what is achieved, by all samples and by fewer.
        num_prompt: Tokens of each that are its prompt; the others are fed as output.
        target: What to aim at.
        method: The settings beside tau; LouisKV's own unless given.
        batch_size: Samples that are fed together.
        progress: Called with the number of steps done and of all steps.
        impl: Implementation of the operations.

    Raises:
        SettingsError: There are no samples or too few steps, or no layer retrieves.
    """
    check_count("num_prompt", num_prompt, 1)
    for name, samples in (("texts", texts), ("held_out", held_out)):
        check_count(f"samples of {name}", len(samples), 1)
        check_count("steps", samples.shape[1] - num_prompt, 2)
    check_count("batch_size", batch_size, 1)
    method = method or LouisKV()
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    if all(layer < method.dense_layers for layer in managed_layers(model.config.get_text_config(decoder=True))):
        raise SettingsError(
            f"dense_layers={method.dense_layers} leaves no layer that retrieves: the model has {num_layers}."
        )
    sampler = _Sampler(model, num_prompt, method.dense_layers, batch_size, progress, impl)
    sampler.plan(texts, held_out)
    grid = () if method.by_neighbours and target.error is None else (method.least_tau, *GRID)

    seen = sampler.sample(texts, method, grid)
    tau, global_tau = _chosen(seen, target)
    taus: list[float | None] = [None] * num_layers
    for layer, each in zip(seen.layers, tau.tolist(), strict=True):
        taus[layer] = each
    every = tuple(global_tau if each is None else each for each in taus)
    checked = sampler.sample(held_out, method, (every, global_tau, *grid), len(grid))
    figures = {name: getattr(checked, name).mean((0, 1)).tolist() for name in ("rate", "error")}
    return LayerTaus(
        model=ModelIdentity.of(model),
        tau=taus,
        global_tau=global_tau,
        target=target.values(),
        achieved={
            "rate": figures["rate"][0],
            "error": figures["error"][0],
            "global_rate": figures["rate"][1],
            "global_error": figures["error"][1],
        },
        curve=list(_curve(seen, checked, target)),
        by_tau=_by_tau(seen),
        settings={
            "samples": len(texts),
            "held_out": len(held_out),
            "num_prompt": num_prompt,
            "steps": texts.shape[1] - num_prompt,
            "method": {name: value for name, value in method.values().items() if name not in ("tau", "calibration")},
        },
        compared=method.compared,
    )


class _Sampler:
    """Feeds samples to the model, and watches the layers that retrieve."""

    def __init__(
        self,
        model: PreTrainedModel,
        num_prompt: int,
        dense_layers: int,
        batch_size: int,
        progress: Callable[[int, int], None],
        impl: str | None,
    ) -> None:
        self.model, self.num_prompt, self.dense_layers = model, num_prompt, dense_layers
        self.batch_size, self.progress, self.impl = batch_size, progress, impl
        self.done = self.total = 0

    def plan(self, *parts: Tensor) -> None:
        """Count the steps of all that will be sampled."""
        self.total = sum(-(-len(texts) // self.batch_size) * (texts.shape[1] - self.num_prompt) for texts in parts)

    def sample(
        self, texts: Tensor, method: Calibrated, taus: Sequence[float | tuple[float, ...]], num_grid: int | None = None
    ) -> _Sampled:
        """What the method does with these taus on texts [S, T]; the last `num_grid` are a grid, all unless given."""
        batches = [self._batch(batch, [method.with_tau(tau) for tau in taus]) for batch in texts.split(self.batch_size)]
        cosine, error, rate = (
            torch.cat([getattr(batch, name) for batch in batches]) for name in ("cosine", "error", "rate")
        )
        of_grid = taus if num_grid is None else taus[len(taus) - num_grid :]
        grid = tuple(tau for tau in of_grid if isinstance(tau, float))
        return replace(batches[0], cosine=cosine, error=error, rate=rate, grid=grid)

    def _fed(self, step: int) -> None:
        self.progress(self.done + step, self.total)

    def _batch(self, texts: Tensor, methods: Sequence[Method]) -> _Sampled:
        ids, output = texts[:, : self.num_prompt], texts[:, self.num_prompt :]
        prompt = take_in(self.model, ids, torch.ones_like(ids, dtype=torch.bool))
        seen = probe(self.model, prompt, output, methods, progress=self._fed, impl=self.impl)
        self.done += output.shape[1]
        retrieve = [place for place, layer in enumerate(seen.layers) if layer >= self.dense_layers]

        def by_sample(figures: Tensor) -> Tensor:
            """[steps, L, S x Hkv] as [S, steps, L], mean over the KV heads."""
            means: Tensor = figures[:, retrieve].unflatten(2, (len(texts), -1)).mean(3)
            return means.permute(2, 0, 1)

        empty = torch.empty(len(texts), len(retrieve), 0)
        errors = [by_sample(each.error).mean(1) for each in seen.seen]
        rates = [by_sample(each.retrieved.float()).mean(1) for each in seen.seen]
        return _Sampled(
            layers=[seen.layers[place] for place in retrieve],
            # The first step has no neighbour.
            cosine=by_sample(seen.cosine)[:, 1:],
            error=torch.stack(errors, 2) if errors else empty,
            rate=torch.stack(rates, 2) if rates else empty,
            grid=(),
        )


def _chosen(seen: _Sampled, target: Target) -> tuple[Tensor, float]:
    """Tau of each layer [L], and the one for all."""
    if not seen.grid:
        assert target.rate is not None
        # Rounding may take a cosine out of its range.
        by_layer = seen.cosine.flatten(0, 1).clamp(-1, 1)
        tau = by_layer.quantile(target.rate, dim=0)
        # A quantile over all may have more numbers than torch sorts for it.
        return tau, float(by_layer.flatten().sort().values[round(target.rate * (by_layer.numel() - 1))])
    if target.rate is not None:
        rate = seen.by_grid("rate")
        place, of_all = ((each - target.rate).abs().argmin(-1) for each in (rate, rate.mean(0)))
    else:
        assert target.error is not None
        error = seen.by_grid("error")
        place, of_all = (_least(each, target.error) for each in (error, error.mean(0)))
    return torch.tensor(seen.grid, dtype=torch.float64)[place], seen.grid[int(of_all)]


def _least(error: Tensor, target: float) -> Tensor:
    """Places [...] of the least taus that reach a target, by errors [..., taus]; the last where none does."""
    reached = error <= target
    return torch.where(reached.any(-1), reached.int().argmax(-1), error.shape[-1] - 1)


def _by_tau(seen: _Sampled) -> dict[str, list[Any]]:
    """Rates, and errors if they were sampled, of each layer over the grid."""
    if seen.grid:
        figures = {f"{name}s": seen.by_grid(name).tolist() for name in ("rate", "error")}
        return {"tau": list(seen.grid), "layers": seen.layers, **figures}
    taus = (-1.0, *GRID)
    rates = torch.stack([(seen.cosine < tau).float().mean((0, 1)) for tau in taus], dim=1)
    return {"tau": list(taus), "layers": seen.layers, "rates": rates.tolist()}


def _curve(seen: _Sampled, held: _Sampled, target: Target) -> Iterator[dict[str, float]]:
    """What the first 1, 2, 4, ... samples give: how far their taus are from those of all, and what they achieve."""
    best, _ = _chosen(seen, target)
    count = 1
    while True:
        count = min(count, len(seen.cosine))
        tau, _ = _chosen(seen.first(count), target)
        point = {
            "samples": float(count),
            "tau_error": float((tau - best).abs().mean()),
            "rate": held.rate_under(tau),
        }
        if held.grid:
            point["error"] = held.at(tau, "error")
        yield point
        if count == len(seen.cosine):
            return
        count *= 2
