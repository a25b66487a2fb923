"""The seam to transformers: an attention function that asks the cache to attend, put in place and taken away again."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache as once
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from louiskv.cache import CACHE_ARGUMENTS, LouisKVCache, cache_argument, check_config
from louiskv.errors import SettingsError, UnsupportedModelError
from louiskv.handles import Handle
from louiskv.methods.base import AttentionOptions, Method
from louiskv.ops.partial_attention import dim_by_attention_sinks, partial_attention
from louiskv.shard import Shard, check_heads, kv_heads_of, on_this_rank

NAME = "louiskv"


@contextmanager
def attach(model: PreTrainedModel, method: Method, *, impl: str | None = None) -> Iterator[LouisKVCache]:
    """Let a model decode with its keys and values managed by a method, and leave it as it was afterwards.

    Inside the `with` block the model uses the cache that the block yields. A call without a cache (plain `generate`, a
    pipeline, a harness) starts it anew; to go on in a conversation, pass it as `cache`, or as `past_key_values` before
    transformers 5.24.

    Args:
        model: A decoder of transformers whose attention goes through the attention interface.
        method: What to keep where, such as `LouisKV(budget=1024)`.
        impl: Implementation of the operations; None takes the best that can run.

    Yields:
        The cache; `cache.report()` tells what it did, also after the block.

    Raises:
        UnsupportedModelError: The model is an encoder, has no full-attention layers, caches latents (MLA), has
            attention of its own, or is split over ranks that cannot share its KV heads evenly.
        SettingsError: The model is attached already, or what the method was given is of another model.
        NotCalibratedError: The method needs something that was not measured on the model yet.
    """
    check_model(model)
    _register()
    config, shard = model.config.get_text_config(decoder=True), shard_of(model)
    kv_cache = LouisKVCache(config, method.for_model(model), impl, shard)
    hook = model.register_forward_pre_hook(_CacheSwap(kv_cache, config, cache_argument(model)), with_kwargs=True)
    try:
        with using_attention(model, NAME):
            yield kv_cache
    finally:
        hook.remove()


@contextmanager
def using_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let a model's decoder use the attention registered as `name`, and put back the one it had.

    Raises:
        UnsupportedModelError: The model has attention of its own.
    """
    config = model.config.get_text_config(decoder=True)
    key = _key_of_decoder(model, config)
    before = config._attn_implementation

    def set_attention(name: str) -> None:
        model.set_attn_implementation(name if key is None else {key: name})

    try:
        set_attention(name)
        if config._attn_implementation != name:
            raise UnsupportedModelError(
                f"{type(model).__name__} has attention of its own and cannot use louiskv: it does not go through the "
                "attention interface of transformers."
            )
        yield
    finally:
        set_attention(before)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function `louiskv` of transformers' attention interface.

    Args:
        module: The model's attention layer.
        query: [B, Hq, Tq, D].
        key: Handle of a managed layer, or keys [B, Hkv, T, D] of a layer left alone.
        value: Like `key`.
        attention_mask: [B, 1, Tq, T] True where a query may attend; None for causal.
        dropout: Probability in training.
        scaling: Factor of the logits; 1/sqrt(D) if None.
        softcap: Cap of the logits.
        s_aux: [Hq] learned attention sinks.
        **kwargs: What else the model gives.

    Returns:
        Output [B, Tq, Hq, Dv], and no weights.

    Raises:
        UnsupportedModelError: The model asks of a managed layer what cannot be done there.
    """
    sinks = None if s_aux is None else on_this_rank(s_aux)
    options = AttentionOptions(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, sinks)

    def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
        )[0]
        return out.transpose(1, 2)

    if isinstance(key, Handle):
        unmet = [name for name in ("sliding_window", "position_bias") if kwargs.get(name) is not None]
        if unmet or getattr(module, "layer_idx", key.layer.index) != key.layer.index:
            why = f"uses {unmet[0]} in a full-attention layer" if unmet else "shares keys and values between layers"
            raise UnsupportedModelError(f"{type(module).__name__} {why}, which louiskv cannot manage.")
        out = key.layer.attend(query, attention_mask, options, dense)
    elif options.plain and (attention_mask is not None or not _is_chunk(module, query, key, kwargs)):
        out = dense(query, key, value, attention_mask)
    else:
        out = _unmanaged(query, key, value, attention_mask, options)
    return out.transpose(1, 2).contiguous(), None


def _is_chunk(module: nn.Module, query: Tensor, key: Tensor, options: dict[str, Any]) -> bool:
    """Whether queries are the last of several keys, each seeing those before: SDPA takes them for the first."""
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return bool(is_causal) and query.shape[2] not in (1, key.shape[2]) and options.get("position_bias") is None


def _unmanaged(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: AttentionOptions) -> Tensor:
    """Dense attention that SDPA does not have, for layers that are left alone (sliding windows)."""
    batch_size, num_heads, num_queries, _ = query.shape
    num_kv_heads = key.shape[1]
    grouped = query.unflatten(1, (num_kv_heads, -1)).flatten(0, 1)
    out, lse = partial_attention(
        grouped,
        key.flatten(0, 1),
        value.flatten(0, 1),
        None if mask is None else mask.repeat_interleave(num_kv_heads, dim=0),
        scaling=options.scaling,
        causal=mask is None,
        softcap=options.softcap,
    )
    sinks = options.sinks_by_row(batch_size, num_kv_heads)
    if sinks is not None:
        out = dim_by_attention_sinks(out, lse, sinks)
    return out.to(query.dtype).view(batch_size, num_heads, num_queries, -1)


class _CacheSwap:
    """Forward pre-hook: puts our cache where the model would start with an empty default one."""

    def __init__(self, kv_cache: LouisKVCache, config: Any, argument: str) -> None:
        self.cache = kv_cache
        self.argument = argument
        self.config = config
        self.replaced: Cache | None = None

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        others = {key: value for key, value in kwargs.items() if key not in CACHE_ARGUMENTS}
        given = next((kwargs[key] for key in CACHE_ARGUMENTS if kwargs.get(key) is not None), None)
        if isinstance(given, LouisKVCache):
            given.check_whole()
            return args, {**others, self.argument: given}
        use_cache = kwargs.get("use_cache")
        if given is None and not (self.config.use_cache if use_cache is None else use_cache):
            return None
        if given is not None and type(given) is not DynamicCache:
            raise UnsupportedModelError(
                f"The model is attached to louiskv but was given a {type(given).__name__}. Pass the cache that "
                f"`attach` yields as {self.argument}, or no cache."
            )
        if given is not None and given.get_seq_length() > 0:
            raise UnsupportedModelError(
                "The model is attached to louiskv but was given a DynamicCache that already holds tokens. Start with "
                "the cache that `attach` yields."
            )
        if given is None or given is not self.replaced:
            self.cache.reset()
            self.replaced = given
        self.cache.check_whole()
        return args, {**others, self.argument: self.cache}


def causal_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **others: Any,
) -> Tensor | None:
    """The mask that transformers makes for SDPA; None also where new tokens follow others and nothing is padding.

    SDPA counts queries from the first key there, louiskv from the last. And such a mask would be as large as all that
    is attended to, for each new token.
    """
    is_causal = allow_is_causal_skip and mask_function is causal_mask_function and q_offset + q_length == kv_length
    # What a short mask does not cover is taken for padding.
    if is_causal and (attention_mask is None or _is_of_ones(attention_mask, kv_length)):
        return None
    mask: Tensor | None = sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        **others,
    )
    return mask


def _is_of_ones(mask: Tensor, length: int) -> bool:
    return mask.shape[-1] >= length and bool(mask.all())


@once
def _register() -> None:
    AttentionInterface.register(NAME, attention)
    # Without a mask function of the same name the mask would always be None, and padding be ignored in silence.
    AttentionMaskInterface.register(NAME, causal_mask)


def check_model(model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` if a model cannot be attached, `SettingsError` if it is attached already."""
    check_config(model.config)
    name = type(model).__name__
    if not model.can_generate():
        raise UnsupportedModelError(f"{name} has no language head, so it cannot generate: use AutoModelForCausalLM.")
    if model.config.get_text_config(decoder=True)._attn_implementation == NAME:
        raise SettingsError(f"{name} is attached to louiskv already; leave that `with` block first.")


def shard_of(model: PreTrainedModel) -> Shard:
    """Which of a model's heads this process holds; raises `UnsupportedModelError` if ranks cannot share them evenly."""
    shard = Shard.of(model)
    if shard.num_parts > 1:
        check_heads(type(model).__name__, kv_heads_of(model.config.get_text_config(decoder=True)), shard.num_parts)
    return shard


def _key_of_decoder(model: PreTrainedModel, decoder: Any) -> str | None:
    """Name of the decoder's part of the config, None where the model is nothing but a decoder."""
    if decoder is model.config:
        return None
    keys: list[str] = list(model.config.sub_configs)
    return next(key for key in keys if getattr(model.config, key) is decoder)
