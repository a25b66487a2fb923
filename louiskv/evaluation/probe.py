"""Attention seen from inside: what methods attend to beside full attention, for each layer and KV head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor
from transformers import PreTrainedModel

from louiskv.attach import attach
from louiskv.evaluation.batches import Steps
from louiskv.evaluation.replay import Prompt
from louiskv.methods.base import AttentionOptions, DenseAttention, Method
from louiskv.methods.full import Full, FullLayer
from louiskv.ops.attention import attention_with_weights
from louiskv.telemetry import Tiers


@dataclass(frozen=True)
class Seen:
    """What one method did at each step, by layer and row (sequence and KV head); NaN where there is nothing to tell.

    Attributes:
        recall: [steps, L, N] share of full attention's mass on the tokens attended to, mean over the query group.
        error: [steps, L, N] |out - full| / |full| of the attention output of the query group.
        overlap: [steps, L, N] Jaccard overlap of the tokens attended to with those of the step before, sinks and window
            left out; only where the step retrieved, if the method retrieves.
        retrieved: [steps, L, N] whether the step retrieved before it attended.
        ahead_rate: Share that selected for the next step instead, mean over layers; None if the trigger is not late.
        attended: Positions that the watched row attended to at each step.
        tiers: What lay where at the end, over all layers.
        fetched_bytes: Bytes fetched in these steps.
    """

    recall: Tensor
    error: Tensor
    overlap: Tensor
    retrieved: Tensor
    ahead_rate: float | None
    attended: list[Tensor]
    tiers: Tiers
    fetched_bytes: int


@dataclass(frozen=True)
class Probe:
    """What several methods did beside the same pass of full attention.

    Attributes:
        layers: Index of each layer in the model.
        cosine: [steps, L, N] cosine of neighbouring queries, mean over the query group; NaN at the first step.
        seen: What each method did.
    """

    layers: list[int]
    cosine: Tensor
    seen: list[Seen]


@torch.inference_mode()
def probe(
    model: PreTrainedModel,
    prompt: Prompt,
    output: Tensor,
    methods: Sequence[Method],
    watched: tuple[int, int] = (0, 0),
    progress: Callable[[int], None] = lambda _: None,
    impl: str | None = None,
) -> Probe:
    """Feed an output to full attention while methods are given the same keys, values and queries.

    No method's output goes on through the model: all see the same queries, and errors of layers do not mix.

    Args:
        model: The model, attached to nothing.
        prompt: What was taken in before.
        output: [B, steps] tokens.
        methods: The methods, ready for the model (`Method.for_model`).
        watched: Place among the managed layers, and row, of which the attended positions are kept.
        progress: Called with the number of tokens fed.
        impl: Implementation of the operations.
    """
    with attach(model, _Watched(methods=tuple(methods)), impl=impl) as kv_cache:
        prompt.replay(kv_cache)
        layers = [layer.state for layer in kv_cache.managed if isinstance(layer.state, _WatchedLayer)]
        for watcher in layers[watched[0]].watchers:
            watcher.row = watched[1]
        steps = Steps(model, kv_cache, prompt)
        for step, tokens in enumerate(output.unbind(1)):
            steps.feed(tokens)
            progress(step + 1)
    by_method = zip(*(layer.watchers for layer in layers), strict=True)
    return Probe(
        layers=[layer.index for layer in kv_cache.managed],
        cosine=torch.stack([torch.stack(layer.cosine) for layer in layers], dim=1).cpu(),
        seen=[_seen(watchers) for watchers in by_method],
    )


def _seen(watchers: "Sequence[_Watcher]") -> Seen:
    """What the watchers of one method in all layers have noted."""

    def noted(name: str) -> Tensor:
        return torch.stack([torch.stack(getattr(watcher, name)) for watcher in watchers], dim=1).cpu()

    ahead = [watcher.state.telemetry.ahead.tensor().float() for watcher in watchers]
    rates = [float(each.mean()) for each in ahead if each.numel()]
    return Seen(
        recall=noted("recall"),
        error=noted("error"),
        overlap=noted("overlap"),
        retrieved=noted("retrieved"),
        ahead_rate=sum(rates) / len(rates) if rates else None,
        attended=[positions.cpu() for watcher in watchers for positions in watcher.attended],
        tiers=reduce(add, (watcher.state.tiers() for watcher in watchers)),
        fetched_bytes=sum(watcher.state.traffic.fetched_bytes - watcher.fetched_before for watcher in watchers),
    )


@dataclass(frozen=True, kw_only=True)
class _Watched(Full):
    """Full attention, with methods beside it."""

    methods: tuple[Method, ...]

    def layer(self, layer_index: int, impl: str | None = None) -> "_WatchedLayer":
        return _WatchedLayer([_Watcher(method, layer_index, impl) for method in self.methods], impl)


class _WatchedLayer(FullLayer):
    """One layer of full attention that hands all it is given to the watchers as well."""

    def __init__(self, watchers: "list[_Watcher]", impl: str | None) -> None:
        super().__init__(impl)
        self.watchers = watchers
        self.cosine: list[Tensor] = []
        self._direction: Tensor | None = None

    def prompt(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        valid: Tensor | None,
        options: AttentionOptions,
        dense: DenseAttention,
    ) -> Tensor:
        for watcher in self.watchers:
            watcher.state.prompt(query, keys, values, mask, valid, options, dense)
        return super().prompt(query, keys, values, mask, valid, options, dense)

    def _append(self, keys: Tensor, values: Tensor) -> None:
        super()._append(keys, values)
        for watcher in self.watchers:
            watcher.state.append(keys, values)

    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        grouped = self.group(query)
        direction = torch.nn.functional.normalize(grouped.float(), dim=-1)
        before = torch.full_like(direction, torch.nan) if self._direction is None else self._direction
        self.cosine.append((direction * before).sum(-1).mean(1))
        self._direction = direction
        out, weights, _ = attention_with_weights(
            grouped[:, :, None],
            self.keys,
            self.values,
            self._present()[:, None],
            scaling=options.scaling,
            softcap=options.softcap,
            attention_sinks=options.sinks_by_row(self.batch_size, self.num_kv_heads),
            impl=self.impl,
        )
        for watcher in self.watchers:
            watcher.see(query, options, out[:, :, 0], weights[:, :, 0].mean(1), self.lengths)
        return out.to(query.dtype).reshape(self.batch_size, -1, 1, out.shape[-1])


class _Watcher:
    """The state of one method in one layer, and notes on what it does beside full attention."""

    def __init__(self, method: Method, layer_index: int, impl: str | None) -> None:
        self.state = method.layer(layer_index, impl)
        settings = method.values()
        self.sink, self.window = settings.get("sink", 0), settings.get("window", 0)
        self.recall: list[Tensor] = []
        self.error: list[Tensor] = []
        self.overlap: list[Tensor] = []
        self.retrieved: list[Tensor] = []
        self.attended: list[Tensor] = []
        self.row: int | None = None
        self.fetched_before = 0
        self._former: Tensor | None = None

    def see(self, query: Tensor, options: AttentionOptions, full: Tensor, share: Tensor, lengths: Tensor) -> None:
        """Attend, and note how far that is from full attention: its output [N, G, Dv], its weights' mean [N, T]."""
        if not self.recall:
            self.fetched_before = self.state.traffic.fetched_bytes
        fired = self.state.telemetry.fired
        num_fired = fired.length
        out = self.state.group(self.state.attend(query, options)).float()
        retrieves = fired.length > num_fired
        retrieved = fired.last.flatten() if retrieves else torch.zeros_like(lengths, dtype=torch.bool)

        positions = self.state.attended_positions().to(share.device)
        if self.row is not None:
            self.attended.append(positions[self.row][positions[self.row] >= 0])
        # Empty slots write into a column of their own.
        here = torch.zeros(len(share), share.shape[1] + 1, dtype=torch.bool, device=share.device)
        here = here.scatter_(1, positions.where(positions >= 0, share.shape[1]), True)[:, :-1]
        self.recall.append((share * here).sum(1) / share.sum(1))
        self.error.append((out - full).flatten(1).norm(dim=1) / full.flatten(1).norm(dim=1))
        self.retrieved.append(retrieved)
        self.overlap.append(self._overlap(here, lengths).masked_fill(~retrieved & retrieves, torch.nan))

    def _overlap(self, here: Tensor, lengths: Tensor) -> Tensor:
        """[N] Jaccard overlap with the step before, sinks and window left out; NaN at the first step."""
        former, self._former = self._former, here
        if former is None:
            return torch.full_like(lengths, torch.nan, dtype=torch.float32)
        token = torch.arange(here.shape[1], device=here.device)
        inner = (token >= self.sink) & (token < lengths[:, None] - self.window)
        chosen = here & inner
        former = torch.nn.functional.pad(former, (0, here.shape[1] - former.shape[1])) & inner
        overlap: Tensor = (chosen & former).sum(1) / (chosen | former).sum(1)
        return overlap
