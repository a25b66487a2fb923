"""One layer of the cache: hands out handles instead of keys and values, and stands between batches and a state."""

from collections.abc import Callable
from copy import copy
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from louiskv.errors import UnsupportedModelError
from louiskv.handles import Handle
from louiskv.methods.base import AttentionOptions, Begun, DenseAttention, KVLayer, Method
from louiskv.ops.ragged import asked_once, counts_of
from louiskv.shard import WHOLE, Shard
from louiskv.telemetry import LayerReport, LayerTelemetry

P = ParamSpec("P")
T = TypeVar("T")


def _require(holds: Tensor, otherwise: str) -> None:
    """Raise `UnsupportedModelError` unless a mask is one that the cache can honour; on a GPU nothing waits for that."""
    message = (
        f"The attention mask {otherwise}. louiskv knows padding in a prompt, and causal attention: take the prompt in "
        "as a whole, with its mask, and add ones to the mask for each new token."
    )
    if holds.is_cuda:
        torch._assert_async(holds, message)
    elif not holds:
        raise UnsupportedModelError(message)


def _without_autograd(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function so that the state it makes can be changed later in any mode.

    Tensors made under `torch.inference_mode` could not be changed outside it, by a crop or the next `generate`.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return wrapper


@asked_once
def _valid_of(mask: Tensor, batch_size: int, num_new: int) -> Tensor | None:
    """Which of the new tokens a mask [B or 1, 1, Tq, T] shows to the last: [B, num_new], None if all of them.

    A tensor of its own, for the mask may be large; on a GPU this waits for the device.
    """
    visible = mask[:, 0, -1, -num_new:]
    return None if bool(visible.all()) else visible.expand(batch_size, -1).contiguous().clone()


class Tap(Protocol):
    """Hears what a model gives a layer, and may give it something else of the same shape: for measurements."""

    def states(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer takes in for the keys [B, Hkv, T, D] and values of new tokens."""

    def query(self, query: Tensor) -> Tensor:
        """What it attends with for their queries [B, Hq, T, D]."""


class CacheLayer(CacheLayerMixin):
    """One layer of the cache: between transformers' padded batches and a method's state.

    Attributes:
        state: What the method keeps of this layer.
        index: Index of the layer in the model.
        num_query_heads: Query heads of the layer that this process has.
        seq_length: Tokens seen, padding included.
        steps: Decode steps.
        checks_masks: Whether to look whether masks hide what was seen before; one layer of a cache does.
        lengths: Tokens of each row where rows come and go, 0 for one that is idle; None where all are as long.
        tap: What hears, or changes, all that comes in.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = True
    supports_early_init = False

    state: KVLayer
    _build: Callable[[], KVLayer]
    _waiting: tuple[Tensor, Tensor] | None
    _valid: Tensor | None
    _device: torch.device
    lengths: list[int] | None
    seq_length: int

    def __init__(
        self, method: Method, index: int, impl: str | None, num_query_heads: int, shard: Shard = WHOLE
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._build = lambda: method.layer(index, impl)
        self.index = index
        self.num_query_heads = num_query_heads // shard.num_parts
        self.shard = shard
        self.on_prompt: Callable[[int, int], None] | None = None
        self.checks_masks = False
        self.tap: Tap | None = None
        self.reset()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the state takes its sizes from the first prompt."""
        self.is_initialized = True

    @_without_autograd
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in new keys [B, Hkv, T, D] and values; returns handles of all that have been seen.

        A single token on top of others is a decode step and enters the state at once. Anything else is a prompt, which
        waits until the attention function brings its queries and mask.

        Raises:
            UnsupportedModelError: The prompt before was never attended to.
        """
        if self._waiting is not None:
            raise UnsupportedModelError(
                f"Layer {self.index} got new keys before the last ones were attended to: the model's attention does "
                "not reach louiskv (or an earlier forward pass was interrupted: then call `cache.reset()`)."
            )
        if self.tap is not None:
            key_states, value_states = self.tap.states(key_states, value_states)
        num_new = key_states.shape[-2]
        if self.lengths is not None and num_new > 1:
            raise UnsupportedModelError(
                "Rows of this cache come and go, and each step gives each of them one token. Take a prompt in with a "
                "cache of its own, and `put` it here."
            )
        if self.seq_length > 0 and len(key_states) != self.state.batch_size:
            raise UnsupportedModelError(
                f"The cache holds {self.state.batch_size} sequences, but the model was given {len(key_states)}. Give "
                "as many, or call `cache.reset()`."
            )
        if num_new == 1 and self.seq_length > 0:
            self.state.append(key_states, value_states)
            self.count_step()
        else:
            self._waiting = (key_states, value_states)
            self.seq_length += num_new
        self.is_initialized = True
        shapes = ((*states.shape[:2], self.seq_length, states.shape[3]) for states in (key_states, value_states))
        keys, values = (Handle(self, shape, key_states) for shape in shapes)
        return keys, values

    @_without_autograd
    def reserve(self, num_steps: int) -> None:
        """Make room for so many decode steps."""
        self.state.telemetry.reserve(num_steps)
        self.state.reserve(num_steps)

    @_without_autograd
    def begin_step(self) -> Begun:
        """Do the host's part of a decode step before the model runs, which else `update` does; see `KVLayer`."""
        return self.state.begin_step()

    @_without_autograd
    def catch_up(self) -> None:
        """Let what follows on the device wait for what the step has begun beside it."""
        self.state.catch_up()

    def count_step(self) -> None:
        """Count a decode step that the device has been told to do."""
        if self.lengths is not None:
            self.lengths = [length + (length > 0) for length in self.lengths]
            self.output_tokens += sum(length > 0 for length in self.lengths)
        else:
            self.output_tokens += self.state.batch_size
        self.steps += 1
        self.seq_length += 1

    @_without_autograd
    def attend(self, query: Tensor, mask: Tensor | None, options: AttentionOptions, dense: DenseAttention) -> Tensor:
        """Attend with the queries [B, Hq, Tq, D] of the tokens last given to `update`; returns [B, Hq, Tq, Dv]."""
        if self.tap is not None:
            query = self.tap.query(query)
        if self._waiting is None:
            if self.checks_masks and mask is not None:
                self._check_past(mask[:, 0, -1], 1)
            return self.state.attend(query, options)
        if self.shard.num_ranks > 1 and query.shape[1] != self.num_query_heads:
            raise UnsupportedModelError(
                f"Layer {self.index} has {query.shape[1]} query heads on this rank, not the {self.num_query_heads} of "
                f"{self.shard.num_ranks} ranks: louiskv does not manage heads that are split in this way."
            )
        keys, values = self._waiting
        num_new = keys.shape[-2]
        valid = None
        if mask is not None:
            if mask.dtype != torch.bool:
                raise UnsupportedModelError(f"Attention masks must be boolean, this one is {mask.dtype}.")
            valid = _valid_of(mask, len(keys), num_new)
            if self.checks_masks:
                own = mask[:, 0, :, -num_new:].diagonal(dim1=-2, dim2=-1)
                hidden = own & ~mask[:, 0, -1, -num_new:]
                _require(~hidden.any(), "hides tokens of a prompt from its last token")
                self._check_past(mask[:, 0, -1, :-num_new], 0)
            mask = mask[..., -num_new:].expand(len(keys), -1, -1, -1)
        elif self.checks_masks and self._valid is not None:
            self._check_past(self._valid.new_ones(len(keys), self.seq_length - num_new), 0)
        out = self.state.prompt(query, keys, values, mask, valid, options, dense)
        self.prompt_tokens += keys.shape[0] * num_new if valid is None else sum(counts_of(valid))
        self._note(valid, keys)
        self._waiting = None
        if self.on_prompt is not None:
            self.on_prompt(self.index, num_new)
        return out

    def _check_past(self, seen: Tensor, num_new: int) -> None:
        """Raise if a mask's last row, over what was seen before and `num_new` tokens, hides more than padding."""
        if self._valid is None:
            _require(seen.all(), "hides tokens that the cache holds, or pads a single token")
        else:
            decoded = self.seq_length - self._valid.shape[1] if num_new else seen.shape[1] - self._valid.shape[1]
            known = torch.nn.functional.pad(self._valid, (0, decoded), value=True)
            _require((seen == known).all(), "hides other tokens than the padding that the cache knows of")

    @_without_autograd
    def load(self, keys: Tensor, values: Tensor) -> None:
        """Take in keys [B, Hkv, T, D] and values that were computed elsewhere, as a prompt without padding."""
        self.state.begin(keys.shape[0], keys.shape[1], self.num_query_heads)
        self.state.absorb(keys, values, None)
        self.is_initialized = True
        self.seq_length += keys.shape[-2]
        self.prompt_tokens += keys.shape[0] * keys.shape[-2]
        self._device = keys.device

    def get_seq_length(self) -> int:
        """Tokens seen, padding included."""
        return self.seq_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys a mask must cover."""
        return self.seq_length + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.state = self._build()
        self.state.join(self.shard)
        self.seq_length = self.prompt_tokens = self.output_tokens = self.steps = 0
        self.lengths = None
        self.is_initialized = False
        self._waiting = None
        self._valid = None
        self._device = torch.device("cpu")

    @_without_autograd
    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens.

        Raises:
            ValueError: The number is positive, or more than there are tokens.
        """
        count = -tokens_to_remove
        if self.lengths is not None:
            raise UnsupportedModelError("Rows of this cache come and go: `take` one out and crop that.")
        if not 0 <= count <= self.seq_length:
            raise ValueError(
                f"crop({tokens_to_remove}) is not possible: give minus the number of tokens to remove, from "
                f"{-self.seq_length} to 0."
            )
        if self._waiting is not None:
            # A prompt that was never attended to is in no state yet.
            waiting = self._waiting[0].shape[-2]
            self._waiting = None
            self.seq_length -= waiting
            count = max(0, count - waiting)
        if count == self.seq_length:
            self.reset()
        elif count:
            counts = torch.full((self.state.batch_size,), count)
            if self._valid is not None:
                decoded = self.seq_length - self._valid.shape[1]
                padded = torch.nn.functional.pad(self._valid, (0, decoded), value=True)
                counts = padded[:, -count:].sum(1)
                self._valid = self._valid[:, : self.seq_length - count]
            self.state.crop(counts)
            self.seq_length -= count

    @_without_autograd
    def take(self, row: int) -> "CacheLayer":
        """A layer of its own that holds a copy of the sequence of a row."""
        length = self._length_of(row)
        return self._with(self.state.take(row), length, None)

    @_without_autograd
    def spread(self, rows: list[int], batch_size: int) -> "CacheLayer":
        """A layer whose rows come and go, `batch_size` in number: copies of these `rows` first, the others idle."""
        lengths = [self._length_of(row) for row in rows] + [0] * (batch_size - len(rows))
        longest_first = sorted(range(len(rows)), key=lambda place: -lengths[place])
        places = {rows[place]: place for place in longest_first}
        return self._with(self.state.spread(places, batch_size), max(lengths), lengths)

    @_without_autograd
    def put(self, row: int, other: "CacheLayer") -> None:
        """Let an idle row hold a copy of the one sequence of another layer, and count what was done there."""
        assert self.lengths is not None, "all rows are in use"
        self.state.put(row, other.state)
        self.take_over(other)
        self.lengths[row] = other._length_of(0)
        self.seq_length = max(self.lengths)

    @_without_autograd
    def clear(self, row: int) -> None:
        """Forget the sequence of a row, which is idle from now on."""
        assert self.lengths is not None, "all rows are in use"
        self.state.clear(row)
        self.lengths[row] = 0
        self.seq_length = max(self.lengths)

    @_without_autograd
    def take_over(self, other: "CacheLayer") -> None:
        """Count also what another layer has done."""
        self.state.take_over(other.state)
        for name in ("prompt_tokens", "output_tokens", "steps"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def _length_of(self, row: int) -> int:
        if self.lengths is not None:
            return self.lengths[row]
        padding = 0 if self._valid is None else int((~self._valid[row]).sum())
        return self.seq_length - padding

    def _with(self, state: KVLayer, seq_length: int, lengths: list[int] | None) -> "CacheLayer":
        """The same with another state, of which nothing was counted yet."""
        other = copy(self)
        other.state, other.seq_length, other.lengths = state, seq_length, lengths
        other.prompt_tokens = other.output_tokens = other.steps = 0
        other._valid = other.on_prompt = None
        return other

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make sequence i a copy of the former sequence `beam_idx[i]`."""
        self.batch_select_indices(beam_idx)

    @_without_autograd
    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences `indices`, in that order."""
        if self.seq_length == 0:
            return
        if self.lengths is not None:
            raise UnsupportedModelError("Rows of this cache come and go: `take` one out instead of reordering them.")
        if torch.equal(indices.cpu(), torch.arange(self.state.batch_size)):
            return
        self.state.select_batch(indices)
        if self._valid is not None:
            self._valid = self._valid.index_select(0, indices.to(self._valid.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence."""
        if self.seq_length:
            sequence = torch.arange(self.state.batch_size, device=self._device)
            self.batch_select_indices(sequence.repeat_interleave(repeats))

    def offload(self) -> None:
        """Nothing to do: the method decides what lies where."""

    def prefetch(self) -> None:
        """Nothing to do: the method decides what lies where."""

    def report(self) -> LayerReport:
        """The figures of this layer."""
        # First, for it waits for what runs in the background.
        tiers = self.state.tiers()
        telemetry: LayerTelemetry = self.state.telemetry
        selected = telemetry.selected.read()
        return LayerReport(
            layer=self.index,
            kind=type(self.state).__name__,
            tiers=tiers,
            steps=self.steps,
            retrieval_rate=telemetry.fired.mean() or 0.0,
            ahead_rate=telemetry.ahead.mean(),
            selected_tokens=selected,
            hit_rate=1 - telemetry.missed.read() / selected if selected else None,
            fetched_bytes=self.state.traffic.fetched_bytes,
            offloaded_bytes=self.state.traffic.offloaded_bytes,
            similarity=telemetry.similarity.quartiles(),
            segment_sizes=telemetry.segments.read(),
            coding_error=telemetry.coding_error.read(),
            seconds=telemetry.clock.read(),
        )

    def _note(self, valid: Tensor | None, keys: Tensor) -> None:
        """Remember which columns of the padded batch hold tokens; crop counts by them."""
        self._device = keys.device
        if valid is None and self._valid is None:
            return
        before = self.seq_length - keys.shape[-2]
        known = keys.new_ones(len(keys), 0, dtype=torch.bool) if self._valid is None else self._valid
        known = torch.nn.functional.pad(known, (0, before - known.shape[1]), value=True)
        new = keys.new_ones(len(keys), keys.shape[-2], dtype=torch.bool) if valid is None else valid
        self._valid = torch.cat([known, new], dim=1)
