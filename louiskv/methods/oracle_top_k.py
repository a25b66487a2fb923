"""The tokens that get the most attention, known by computing it all: a bound for every method that selects tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from louiskv.errors import check_count
from louiskv.methods.base import AttentionOptions, Footprint, KVLayer, LayerShape, Method, setting
from louiskv.methods.full import FullLayer
from louiskv.ops.attention import attention_with_weights, decode_attention


@dataclass(frozen=True, kw_only=True)
class OracleTopK(Method):
    """Attend to the best tokens of each query group at each step; saves nothing, since finding them reads all keys."""

    paper: ClassVar[str] = "no paper: what perfect selection would do"
    keeps: ClassVar[str] = "everything on the device; attends to the tokens with the most attention"

    budget: int = setting(1024, "tokens a KV head attends to exactly, sinks and window included")
    dense_layers: int = setting(2, "first layers that keep everything on the device")

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("budget", self.budget, 1)
        check_count("dense_layers", self.dense_layers, 0)

    def layer(self, layer_index: int, impl: str | None = None) -> KVLayer:
        """Full attention in the first layers, the best tokens in the others."""
        return FullLayer(impl) if layer_index < self.dense_layers else OracleTopKLayer(self.budget, impl)

    def footprint(self, layer_index: int, shape: LayerShape, num_tokens: int) -> Footprint:
        """All tokens on the device."""
        return Footprint(resident=num_tokens * shape.token_bytes, index=0, host=0, retrieval=0)


class OracleTopKLayer(FullLayer):
    """Everything on the device, of which each step attends to a part."""

    def __init__(self, budget: int, impl: str | None = None) -> None:
        super().__init__(impl)
        self.budget = budget
        self._chosen: Tensor | None = None

    @property
    def waits_for_nothing(self) -> bool:
        """No: a step looks at as many tokens as there are."""
        return False

    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        """Attend to the tokens with the most attention, by its mean over the query group."""
        grouped, sinks = self.group(query), options.sinks_by_row(self.batch_size, self.num_kv_heads)
        keys, values, present = self.keys, self.values, self.bias[..., : self.longest] == 0
        with self.telemetry.clock.time("selection", query.device):
            _, weights, _ = attention_with_weights(
                grouped[:, :, None],
                keys,
                values,
                present[:, None],
                scaling=options.scaling,
                softcap=options.softcap,
                attention_sinks=sinks,
                impl=self.impl,
            )
            # What is not there comes last, also behind what is there and gets no attention.
            scores = weights[:, :, 0].mean(1).masked_fill(~present[:, 0], -1)
            best = scores.topk(min(self.budget, self.longest), dim=1)
            self._chosen = best.indices.where(best.values >= 0, -1)
            chosen = torch.zeros_like(present[:, 0]).scatter_(1, best.indices, best.values >= 0)
        with self.telemetry.clock.time("attention", query.device):
            bias = torch.zeros_like(chosen, dtype=query.dtype).masked_fill_(~chosen, -torch.inf)[:, None]
            out = decode_attention(
                grouped,
                keys,
                values,
                bias,
                scaling=options.scaling,
                softcap=options.softcap,
                attention_sinks=sinks,
                impl=self.impl,
            )
        return out.reshape(self.batch_size, -1, 1, out.shape[-1])

    def attended_positions(self) -> Tensor:
        """What the last step chose; everything before there was one."""
        return super().attended_positions() if self._chosen is None else self._chosen

    def _look_around(self, lengths: list[int] | None = None) -> None:
        """What was chosen is over."""
        super()._look_around(lengths)
        self._chosen = None
