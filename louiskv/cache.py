"""The cache that a model of transformers sees: its full-attention layers are managed by a method."""

from collections.abc import Callable, Iterator
from copy import copy
from inspect import signature
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from louiskv.cache_layer import CacheLayer
from louiskv.errors import UnsupportedModelError
from louiskv.joint_report import joint_report
from louiskv.methods.base import Method
from louiskv.shard import WHOLE, Shard
from louiskv.telemetry import Report

# Names of the argument by which models take a cache, the newest first.
CACHE_ARGUMENTS = ("cache", "past_key_values")


def _tensors(attributes: dict[Any, Any]) -> Iterator[Tensor]:
    """Tensors among the attributes of a foreign layer, also those it keeps in dicts (linear layers do)."""
    for value in attributes.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value)


def check_config(config: PretrainedConfig) -> None:
    """Raise `UnsupportedModelError` if models of this config are of a kind that louiskv cannot manage."""
    decoder, name = config.get_text_config(decoder=True), config.model_type
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder; louiskv manages decoder-only models.")
    # Decoders do not have the attribute; families that are encoders first do, and say False.
    if getattr(decoder, "is_decoder", True) is False:
        raise UnsupportedModelError(f"{name} is an encoder: it attends both ways and keeps no cache to manage.")
    if getattr(decoder, "kv_lora_rank", None) is not None:
        raise UnsupportedModelError(f"{name} uses multi-head latent attention (MLA), which louiskv does not manage.")


def managed_layers(config: PretrainedConfig) -> list[int]:
    """Indices of the layers that louiskv manages in a model of this config: those of plain full attention."""
    layers = DynamicCache(config=config).layers
    return [index for index, layer in enumerate(layers) if type(layer) is DynamicLayer]


def cache_argument(model: nn.Module) -> str:
    """What a model calls the argument for its cache: `cache` since transformers 5.24, `past_key_values` before."""
    known = signature(model.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in known), CACHE_ARGUMENTS[0])


def passing(model: nn.Module, kv_cache: Cache | None) -> dict[str, Any]:
    """The argument that hands a model, or its `generate`, a cache, in every version of transformers."""
    return {cache_argument(model): kv_cache}


def cache_of(output: Any) -> Cache | None:
    """The cache in what a model returned, in every version of transformers."""
    return next((output[name] for name in CACHE_ARGUMENTS if name in output), None)


def chunks(first: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Where chunks of a prompt begin and end, from one token to another; the last may have one token more than `size`.

    A single token at the end would be taken for an output, and not attend to everything.
    """
    while first < end:
        behind = end if end - first <= size + 1 else first + size
        yield first, behind
        first = behind


class LouisKVCache(Cache):
    """A cache whose full-attention layers are managed by a method; other layers stay what they are.

    Attributes:
        method: The method.
        managed: The managed layers.
    """

    is_compileable: ClassVar[bool] = False

    def __init__(self, config: PretrainedConfig, method: Method, impl: str | None = None, shard: Shard = WHOLE) -> None:
        """Build the layers that a model of this config needs.

        Raises:
            UnsupportedModelError: The model has no full-attention layer with a cache of its own.
        """
        self.method = method
        self._config = config
        self._shard = shard
        layers = DynamicCache(config=config).layers
        for index in managed_layers(config):
            layers[index] = CacheLayer(method, index, impl, config.num_attention_heads, shard)
        super().__init__(layers=layers)
        self.managed = [layer for layer in layers if isinstance(layer, CacheLayer)]
        for layer in self.managed[:1]:
            layer.checks_masks = True
        if not self.managed:
            kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
            raise UnsupportedModelError(
                f"{config.model_type} has no full-attention layer to manage (its cache layers: {kinds}). Use the model "
                "without louiskv."
            )

    def reset(self) -> None:
        """Forget everything; the cache is as new."""
        for layer in self.managed:
            layer.reset()
        # Layers of transformers are made anew: not in every version do they forget all that they hold.
        for index, fresh in enumerate(DynamicCache(config=self._config).layers):
            if not isinstance(self.layers[index], CacheLayer):
                self.layers[index] = fresh

    def check_whole(self) -> None:
        """Raise `UnsupportedModelError` if an interrupted pass has left tokens in some layers and not in others."""
        lengths = [layer.seq_length for layer in self.managed]
        if len(set(lengths)) > 1:
            raise UnsupportedModelError(
                f"An earlier forward pass was interrupted: layers hold {min(lengths)} to {max(lengths)} tokens. "
                "Crop them to the same number, or call `cache.reset()`."
            )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, in a cache whose rows come and go; 0 for one that is idle."""
        lengths = self.managed[0].lengths
        assert lengths is not None, "all rows are in use"
        return lengths

    @property
    def crops_exactly(self) -> bool:
        """Whether a crop leaves all that there was before."""
        return all(layer.state.crops_exactly for layer in self.managed)

    def take(self, row: int) -> "LouisKVCache":
        """A cache of its own that holds a copy of the sequence of a row, to go on with alone."""
        return self._with([layer.take(row) for layer in self.managed])

    def spread(self, rows: list[int], batch_size: int) -> "LouisKVCache":
        """A cache whose rows come and go, `batch_size` in number: copies of these `rows` first, the others idle.

        Each step gives every row a token, and an idle one forgets it. What was counted stays here; see `take_over`.

        Raises:
            UnsupportedModelError: The model has layers that are not louiskv's, whose rows cannot differ in length.
        """
        return self._with([layer.spread(rows, batch_size) for layer in self.managed])

    def respread(self, rows: list[int], batch_size: int) -> None:
        """Become a cache of `batch_size` rows, copies of these `rows` first, layer by layer; what was counted stays."""
        for place, layer in enumerate(self.managed):
            other = layer.spread(rows, batch_size)
            other.take_over(layer)
            self.managed[place] = self.layers[place] = other

    def put(self, row: int, other: "LouisKVCache") -> None:
        """Let an idle row hold the one sequence of another cache, which is empty then; what was done there counts."""
        for mine, theirs in zip(self.managed, other.managed, strict=True):
            mine.put(row, theirs)
            # Layer by layer, so that at no time there are two copies of all.
            theirs.reset()

    def clear(self, row: int) -> None:
        """Forget the sequence of a row, which is idle from now on."""
        for layer in self.managed:
            layer.clear(row)

    def follow(self, other: "LouisKVCache") -> None:
        """Select from the next prompt on when another, empty cache of the same method does, whatever its tau is."""
        for mine, theirs in zip(self.managed, other.managed, strict=True):
            mine.state.follow(theirs.state)

    def take_over(self, other: "LouisKVCache") -> None:
        """Count also what another cache has done."""
        for mine, theirs in zip(self.managed, other.managed, strict=True):
            mine.take_over(theirs)

    def check_rows(self) -> None:
        """Raise `UnsupportedModelError` if rows of this model's caches cannot come and go."""
        left = sorted({type(layer).__name__ for layer in self.layers if not isinstance(layer, CacheLayer)})
        if left:
            raise UnsupportedModelError(
                f"{self._config.model_type} has cache layers that are not louiskv's ({', '.join(left)}): their rows "
                "must be equally long, so that sequences cannot come and go. Use louiskv.attach with whole batches."
            )

    def _with(self, layers: list[CacheLayer]) -> "LouisKVCache":
        self.check_rows()
        other = copy(self)
        other.layers, other.managed = list(layers), layers
        return other

    def expect(self, num_tokens: int) -> None:
        """Learn that a sequence will have so many tokens in all, so that each chunk of its prompt finds its room.

        To be told anew once the cache was reset.
        """
        for layer in self.managed:
            layer.state.expect(num_tokens)

    def reserve(self, num_steps: int) -> None:
        """Make room for so many decode steps, so that none of them allocates what lasts."""
        for layer in self.managed:
            layer.reserve(num_steps)

    def watch_prompt(self, listener: Callable[[int, int], None] | None) -> None:
        """Call `listener(layer, tokens)` when a managed layer has taken in a prompt or a chunk of one; None to stop."""
        for layer in self.managed:
            layer.on_prompt = listener

    def report(self, *, all_ranks: bool = False) -> Report:
        """What the cache holds and what it has done so far; on a GPU this waits for the device.

        Where a model is split over ranks, the report is of this one's part; with `all_ranks` it is of all together, and
        every rank must ask for it.
        """
        own = self._report()
        return joint_report(self._shard.gather(own)) if all_ranks else own

    def _report(self) -> Report:
        unmanaged = 0
        for layer in self.layers:
            if not isinstance(layer, CacheLayer):
                unmanaged += sum(tensor.nbytes for tensor in _tensors(vars(layer)))
        return Report(
            method=type(self.method).__name__,
            settings=self.method.values(),
            prompt_tokens=self.managed[0].prompt_tokens,
            output_tokens=self.managed[0].output_tokens,
            unmanaged_bytes=unmanaged,
            layers=[layer.report() for layer in self.managed if layer.state.batch_size],
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if the state of any layer contradicts itself, or a token is lost or doubled."""
        for layer in self.managed:
            if layer.state.batch_size:
                layer.state.check_integrity()
