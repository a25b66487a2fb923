"""What is measured on a model once: which of its heads retrieve."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from louiskv.attach import check_model, shard_of, using_attention
from louiskv.cache import managed_layers
from louiskv.errors import SettingsError, check_count
from louiskv.heads import HeadScores
from louiskv.measured import ModelIdentity
from louiskv.methods.base import AttentionOptions
from louiskv.ops.attention import attention_with_weights
from louiskv.shard import Shard, on_this_rank

NAME = "louiskv_head_scores"
# Weights held at once (float32, so 256 MiB).
MAX_WEIGHTS = 64 * 1024 * 1024


def score_heads(
    model: PreTrainedModel,
    *,
    block: int = 2500,
    copies: int = 4,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> HeadScores:
    """Measure which heads look back to where a token stood before (RazorAttention, section 3.2 of arXiv 2407.15891).

    The model reads a block of random tokens several times over. The scores are saved in the cache folder, where
    `RazorAttention` finds them.

    Args:
        model: A model that `attach` can manage, attached to nothing.
        block: Tokens of the block; fewer if the model has no positions for all copies.
        copies: Times that it is read.
        seed: Of the random tokens.
        progress: Called with the number of layers done and of all layers.

    Raises:
        SettingsError: The model has too few positions, or is attached.
        UnsupportedModelError: As `attach`.
    """
    check_count("block", block, 2)
    check_count("copies", copies, 2)
    check_model(model)
    config, shard = model.config.get_text_config(decoder=True), shard_of(model)
    start = [] if config.bos_token_id is None else [config.bos_token_id]
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        block = min(block, (positions - len(start)) // copies)
    if block < 2:
        raise SettingsError(f"copies={copies} is too many for a model of {positions} positions: give fewer.")
    tokens = torch.randint(config.vocab_size, (block,), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = torch.tensor([start + tokens * copies], device=model.device)
    watch = _HeadWatch(len(start), block, managed_layers(config), progress)
    AttentionInterface.register(NAME, watch)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    with using_attention(model, NAME), torch.inference_mode():
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    scores = HeadScores(
        model=ModelIdentity.of(model),
        echo=_of_all_heads(watch.echo, config.num_hidden_layers, shard),
        induction=_of_all_heads(watch.induction, config.num_hidden_layers, shard),
        settings={"block": block, "copies": copies, "seed": seed},
    )
    scores.save()
    return scores


def _of_all_heads(scores: dict[int, list[float]], num_layers: int, shard: Shard) -> list[list[float]]:
    """The scores of each layer's heads, also of those that lie with other ranks; none where a layer has none."""
    parts = shard.gather(scores)[: shard.num_parts]
    return [[score for part in parts for score in part.get(layer, [])] for layer in range(num_layers)]


class _HeadWatch:
    """An attention function that notes how much each KV head attends to earlier copies of a block.

    Attributes:
        echo: By layer, for each KV head the attention to the same token in earlier copies: mean over the positions
            behind the first copy, maximum over the group.
        induction: The same for the token behind it.
    """

    def __init__(self, start: int, block: int, layers: list[int], progress: Callable[[int, int], None]) -> None:
        self.start, self.block, self.layers, self.progress = start, block, layers, progress
        self.echo: dict[int, list[float]] = {}
        self.induction: dict[int, list[float]] = {}

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attend causally; query [1, Hq, T, D], key [1, Hkv, T, D]."""
        sinks = None if s_aux is None else on_this_rank(s_aux)
        options = AttentionOptions(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, sinks)
        num_kv_heads, num_tokens = key.shape[1:3]
        column = torch.arange(num_tokens, device=query.device)
        grouped = query.unflatten(1, (num_kv_heads, -1)).flatten(0, 1)
        step = max(1, MAX_WEIGHTS // (query.shape[1] * num_tokens))
        outs, sums = [], torch.zeros(2, *grouped.shape[:2], dtype=torch.float64, device=query.device)
        for first in range(0, num_tokens, step):
            queries = slice(first, min(first + step, num_tokens))
            # No query sees what comes after it.
            last = queries.stop
            mask = column <= column[queries, None] if attention_mask is None else attention_mask[0, 0, queries]
            out, weights, _ = attention_with_weights(
                grouped[:, :, queries],
                key[0, :, :last],
                value[0, :, :last],
                mask[None, None, :, :last],
                scaling=options.scaling,
                softcap=options.softcap,
                attention_sinks=options.sinks_by_row(1, num_kv_heads),
            )
            outs.append(out.to(query.dtype))
            sums += torch.stack([self._looks(weights, column[queries], ahead) for ahead in (0, 1)])
        layer: int = module.layer_idx  # type: ignore[assignment]
        if layer in self.layers:
            means = (sums / (num_tokens - self.start - self.block)).amax(2)
            self.echo[layer], self.induction[layer] = means.tolist()
            self.progress(len(self.echo), len(self.layers))
        return torch.cat(outs, 2).flatten(0, 1).transpose(0, 1)[None].contiguous(), None

    def _looks(self, weights: Tensor, query: Tensor, ahead: int) -> Tensor:
        """[N, G] attention of the queries [Tq] to the tokens `ahead` of their own in earlier copies of the block."""
        total = weights.new_zeros(weights.shape[:2], dtype=torch.float64)
        back = query - self.block
        while bool((back >= self.start).any()):
            token = (back + ahead).clamp(min=0).expand(*weights.shape[:3])[..., None]
            total += (weights.gather(3, token)[..., 0] * (back >= self.start)).sum(2, dtype=torch.float64)
            back = back - self.block
        return total
