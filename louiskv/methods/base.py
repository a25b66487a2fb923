"""The contract of a method: frozen settings that build the state of each layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn

from louiskv.errors import SettingsError
from louiskv.methods.rows import Rows
from louiskv.ops.partial_attention import dim_by_attention_sinks, merge_attention, partial_attention
from louiskv.shard import WHOLE, Shard
from louiskv.store.coding import token_size
from louiskv.store.pool import capacity_for
from louiskv.store.transfer import Traffic
from louiskv.telemetry import Tiers

DenseAttention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def setting(default: Any, help: str) -> Any:
    """A field of a method: its default, and what it does in one line for help pages."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class AttentionOptions:
    """How a model wants its logits treated.

    Attributes:
        scaling: Factor of the logits.
        softcap: Cap of the logits, None for none.
        attention_sinks: [Hq] learned logits that take mass and give no value, None for none.
    """

    scaling: float
    softcap: float | None = None
    attention_sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether a softmax over scaled logits is all there is to it."""
        return self.softcap is None and self.attention_sinks is None

    def sinks_by_row(self, batch_size: int, num_kv_heads: int) -> Tensor | None:
        """The attention sinks as [N, G]."""
        if self.attention_sinks is None:
            return None
        return self.attention_sinks.view(num_kv_heads, -1).repeat(batch_size, 1)


@dataclass(frozen=True)
class LayerShape:
    """Size of one layer's keys and values, for planning.

    Attributes:
        num_kv_heads: KV heads.
        key_dim: Numbers of a key.
        value_dim: Numbers of a value.
        item_size: Bytes of a number.
        group_size: Query heads of a KV head.
    """

    num_kv_heads: int
    key_dim: int
    value_dim: int
    item_size: int
    group_size: int = 1

    @property
    def token_bytes(self) -> int:
        """Bytes of a token of all KV heads."""
        return self.num_kv_heads * (self.key_dim + self.value_dim) * self.item_size

    def coded_bytes(self, bits: int | None) -> int:
        """Bytes of a token of all KV heads in a pool of so many bits a number; None for numbers as they are."""
        return self.num_kv_heads * token_size(bits, self.key_dim, self.value_dim, self.item_size)

    def pool_bytes(self, num_tokens: int, bits: int | None = None) -> int:
        """Bytes of a pool that holds so many tokens of all KV heads: their codes and positions, and room."""
        position_size = 4 * self.num_kv_heads
        return capacity_for(num_tokens) * (self.coded_bytes(bits) + position_size) if num_tokens else 0


@dataclass(frozen=True)
class Footprint:
    """Bytes that one layer will hold for one sequence, and what one retrieval moves at the most."""

    resident: int
    index: int
    host: int
    retrieval: int


class Begun(NamedTuple):
    """What the host knows of a decode step that has begun.

    Attributes:
        anew: Whether it has set parts of the state anew.
        leaves: Whether runs leave the window in this step, so that it is other work than most steps are.
    """

    anew: bool = False
    leaves: bool = False


class KVLayer(Rows):
    """State of one layer: everything that a method keeps of it, for N = batch x KV heads rows.

    Attributes:
        impl: Implementation of the operations; None takes the best that can run.
        shard: Where the layer's other heads are, if this process holds a part of them.
    """

    def __init__(self, impl: str | None = None) -> None:
        super().__init__()
        self.impl = impl
        self.shard = WHOLE
        self._step_begun = False

    def join(self, shard: Shard) -> None:
        """Learn where the other heads of the layer are, before the first prompt is taken in."""
        self.shard = shard

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
        """Attend densely with the queries of a prompt to all that is held and to the prompt itself, then take it in.

        Args:
            query: [B, Hq, Tq, D].
            keys: [B, Hkv, Tq, D].
            values: [B, Hkv, Tq, Dv].
            mask: [B, 1, Tq, Tq] True where a query may attend to a token of the prompt; None for causal.
            valid: [B, Tq] False for padding, None if there is none.
            options: Treatment of the logits.
            dense: Attention for a first prompt with plain logits.

        Returns:
            [B, Hq, Tq, Dv].
        """
        out = self.attend_densely(query, keys, values, mask, options, dense)
        self.absorb(keys, values, valid)
        return out

    def attend_densely(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        options: AttentionOptions,
        dense: DenseAttention,
    ) -> Tensor:
        """The attention of `prompt`, which takes nothing in."""
        first = self.batch_size == 0
        if first:
            self.begin(keys.shape[0], keys.shape[1], query.shape[1])
        with self.telemetry.clock.time("prefill", keys.device):
            if first and options.plain:
                return dense(query, keys, values, mask)
            return self._attend_beside_past(query, keys, values, mask, options, first)

    def _attend_beside_past(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        options: AttentionOptions,
        first: bool,
    ) -> Tensor:
        num_heads, num_queries = query.shape[1:3]
        grouped = query.unflatten(1, (self.num_kv_heads, -1)).flatten(0, 1)
        out, lse = partial_attention(
            grouped,
            keys.flatten(0, 1),
            values.flatten(0, 1),
            None if mask is None else mask.repeat_interleave(self.num_kv_heads, dim=0),
            scaling=options.scaling,
            causal=mask is None,
            softcap=options.softcap,
            impl=self.impl,
        )
        if not first:
            past = self.attend_past(grouped, scaling=options.scaling, softcap=options.softcap)
            out, lse = merge_attention(out, lse, *past)
        sinks = options.sinks_by_row(self.batch_size, self.num_kv_heads)
        if sinks is not None:
            out = dim_by_attention_sinks(out, lse, sinks)
        return out.to(query.dtype).view(self.batch_size, num_heads, num_queries, -1)

    def expect(self, num_tokens: int) -> None:
        """Learn that a sequence will have so many tokens in all, for which room can be made at once."""

    @abstractmethod
    def absorb(self, keys: Tensor, values: Tensor, valid: Tensor | None) -> None:
        """Take in a prompt's keys [B, Hkv, T, D] and values; `valid` [B, T] is False for padding."""

    @abstractmethod
    def reserve(self, num_steps: int) -> bool:
        """Make room for so many decode steps, so that none allocates what lasts; whether there was too little."""

    @property
    def waits_for_nothing(self) -> bool:
        """Whether a step that has begun is the same work on a GPU, whatever the values are: so it can be captured.

        Steps in which runs leave the window are the same among themselves.
        """
        return False

    def begin_step(self) -> Begun:
        """Do what the host must do before a decode step: make room, count on. What follows is for the device alone."""
        self._step_begun = True
        moved, begun = self.telemetry.begin_step(), self._begin_step()
        return begun._replace(anew=begun.anew or moved)

    def catch_up(self) -> None:
        """Let what follows on the device wait for what a step has begun beside it."""

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Take in one token of each sequence, keys [B, Hkv, 1, D] and values; begins the step if nobody has."""
        if not self._step_begun:
            self.begin_step()
        self._step_begun = False
        self._append(keys, values)

    @abstractmethod
    def _begin_step(self) -> Begun:
        """As `begin_step`."""

    @abstractmethod
    def _append(self, keys: Tensor, values: Tensor) -> None:
        """As `append`, in a step that has begun."""

    @abstractmethod
    def attend(self, query: Tensor, options: AttentionOptions) -> Tensor:
        """Attend with the query [B, Hq, 1, D] of the token just appended; returns [B, Hq, 1, Dv]."""

    @abstractmethod
    def attend_past(self, query: Tensor, *, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attend with queries [N, G, Tq, D] to every token held; returns output and log-sum-exp as a partial result."""

    def follow(self, other: Self) -> None:
        """Select from the next prompt on when another, empty state of the same method does; nothing without trigger."""
        return

    @abstractmethod
    def crop(self, counts: Tensor) -> None:
        """Forget the last `counts` [B] tokens of each sequence."""

    @abstractmethod
    def select_batch(self, index: Tensor) -> None:
        """Make sequence i a copy of the former sequence `index[i]`."""

    @abstractmethod
    def tiers(self) -> Tiers:
        """What lies where: tokens (units for the index) and bytes."""

    @abstractmethod
    def check_integrity(self) -> None:
        """Raise AssertionError if the redundant parts of the state disagree, or a token is lost or doubled."""

    @abstractmethod
    def attended_positions(self) -> Tensor:
        """[N, S] positions of the tokens that each row attends to exactly, -1 for none."""

    @property
    def attended(self) -> int:
        """Tokens that a KV head attends to exactly, the most over all rows."""
        return int((self.attended_positions() >= 0).sum(1).max())

    @property
    @abstractmethod
    def traffic(self) -> Traffic:
        """What has moved between the tiers."""

    def group(self, query: Tensor) -> Tensor:
        """The query [B, Hq, 1, D] of a decode step as [N, G, D]."""
        return query.reshape(self.batch_size * self.num_kv_heads, -1, query.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Settings of a method; builds the state of each layer."""

    paper: ClassVar[str]
    keeps: ClassVar[str]

    @abstractmethod
    def layer(self, layer_index: int, impl: str | None = None) -> KVLayer:
        """The state of the model's layer `layer_index`, empty."""

    @abstractmethod
    def footprint(self, layer_index: int, shape: LayerShape, num_tokens: int) -> Footprint:
        """What that layer will hold of one sequence of `num_tokens` prompt tokens."""

    def for_model(self, model: nn.Module) -> "Method":
        """The method as it is for this model; one that depends on what was measured on the model looks that up.

        Raises:
            NotCalibratedError: It was not measured yet.
        """
        return self

    def for_sequence(self, tau: float) -> Self:
        """The same where one sequence of a batch has a tau of its own; it can be decoded with all the others.

        Raises:
            SettingsError: The method compares nothing with a tau, or it is outside its range.
        """
        raise SettingsError(f"tau={tau} is not allowed: {type(self).__name__} compares nothing with it. Leave it out.")

    def at_budget(self, budget: int) -> Self:
        """The method with so many tokens for a KV head; itself if it has no budget.

        Sinks and window shrink with it: each takes a quarter at the most, in whole pages.

        Raises:
            SettingsError: The method cannot work with so few.
        """
        values = self.values()
        if "budget" not in values:
            return self
        page_size = values.get("page_size", 1)
        most = max(page_size, budget // 4 // page_size * page_size)
        changed: dict[str, int] = {name: min(values[name], most) for name in ("sink", "window") if name in values}
        return replace(self, **changed, budget=budget)  # type: ignore[call-arg]

    @classmethod
    def settings(cls) -> tuple[Field[Any], ...]:
        """The settings with their defaults and help."""
        return tuple(each for each in fields(cls) if "help" in each.metadata)

    def values(self) -> dict[str, Any]:
        """The settings as they are."""
        return {each.name: getattr(self, each.name) for each in self.settings()}


class Assembled(Method):
    """A method that is settings and a choice of parts."""

    def __post_init__(self) -> None:
        """Check the settings, as the parts do."""
        self.parts()

    @abstractmethod
    def parts(self) -> Method:
        """The parts put together."""

    def layer(self, layer_index: int, impl: str | None = None) -> KVLayer:
        """The state of one layer, empty."""
        return self.parts().layer(layer_index, impl)

    def footprint(self, layer_index: int, shape: LayerShape, num_tokens: int) -> Footprint:
        """What that layer will hold."""
        return self.parts().footprint(layer_index, shape, num_tokens)
