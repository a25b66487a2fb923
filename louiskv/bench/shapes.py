"""What operations are measured on: the shapes of a layer of a model, and inputs as a decode step has them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.errors import SettingsError
from louiskv.ops.selection import places_of, select_units

# As the methods have them unless it is said otherwise.
NUM_SINKS = 16
WINDOW = 64
UNIT_SIZE = 16
OVERSAMPLE = 4
# Tokens of a run that leaves the window.
RUN = 32
# Tokens that share a scale, where a key is kept in one bit a channel.
BIT_GROUP = 32
# One slot of so many must be filled anew.
MISSING = 4


@dataclass(frozen=True)
class Shape:
    """One layer of a model.

    Attributes:
        num_kv_heads: KV heads.
        group_size: Query heads of each.
        dim: Numbers of a key, and of a value.
        dtype: Their type.
    """

    num_kv_heads: int
    group_size: int
    dim: int
    dtype: torch.dtype


SHAPES = {
    "smollm2": Shape(3, 3, 64, torch.float32),
    "llama8b": Shape(8, 4, 128, torch.bfloat16),
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decode step: N rows (a KV head of a sequence each), G heads, U units, L slots, R of them retrieved.

    Attributes:
        shape: The layer.
        context: Tokens of each sequence.
        batch: Sequences.
        budget: Slots of each row.
    """

    shape: Shape
    context: int
    batch: int = 1
    budget: int = 512

    def __post_init__(self) -> None:
        """Check that there is something to retrieve, and enough to retrieve it from."""
        least = NUM_SINKS + WINDOW + UNIT_SIZE
        if self.budget < least:
            raise SettingsError(f"budget={self.budget} leaves no unit to retrieve: give at least {least}.")
        if self.num_tokens < 2 * self.budget:
            raise SettingsError(
                f"A context of {self.context} tokens is too short for budget={self.budget}: give at least twice as "
                f"many, in whole groups of {BIT_GROUP}."
            )

    @property
    def num_rows(self) -> int:
        """N."""
        return self.batch * self.shape.num_kv_heads

    @property
    def num_tokens(self) -> int:
        """Tokens in units: whole groups, so that there is an even number of units."""
        return self.context // BIT_GROUP * BIT_GROUP

    @property
    def num_units(self) -> int:
        """U."""
        return self.num_tokens // UNIT_SIZE

    @property
    def num_retrieved(self) -> int:
        """R, the slots that are neither sinks nor window."""
        return self.budget - NUM_SINKS - WINDOW

    @property
    def num_looked(self) -> int:
        """Single tokens that are scored."""
        return min(OVERSAMPLE * self.num_retrieved, self.num_tokens)

    @property
    def num_missing(self) -> int:
        """Slots of a row that are filled anew."""
        return self.num_retrieved // MISSING

    def token_bytes(self, num_tokens: int) -> int:
        """Bytes of the keys and values of so many tokens of each row."""
        return self.num_rows * num_tokens * 2 * self.shape.dim * self.shape.dtype.itemsize


class Inputs:
    """Makes inputs: the same seed makes the same.

    Attributes:
        sizes: Their sizes.
        device: Where the kernels run.
    """

    def __init__(self, sizes: Sizes, device: torch.device, seed: int = 0) -> None:
        self.sizes, self.device = sizes, device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._pools: dict[str, Tensor] = {}

    @property
    def shared(self) -> set[int]:
        """Where the memory begins that all inputs made here have in common."""
        return {pool.untyped_storage().data_ptr() for pool in self._pools.values()}

    def numbers(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normally distributed numbers [N, *shape], of the model's type unless another is given."""
        made = torch.randn(self.sizes.num_rows, *shape, generator=self._generator, device=self.device)
        return made.to(dtype or self.sizes.shape.dtype)

    def whole(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Whole numbers [N, *shape] from `low` to `high - 1`."""
        size = (self.sizes.num_rows, *shape)
        return torch.randint(low, high, size, generator=self._generator, device=self.device, dtype=dtype)

    def filled(self, value: float, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """One number [N, *shape]."""
        size = (self.sizes.num_rows, *shape)
        return torch.full(size, value, dtype=dtype or self.sizes.shape.dtype, device=self.device)

    def query(self) -> Tensor:
        """[N, G, D]."""
        return self.numbers(self.sizes.shape.group_size, self.sizes.shape.dim)

    def grouped_keys(self, num_tokens: int) -> Tensor:
        """Keys [N, num_tokens, D] that lie about as many centres as there are units, all of them off the origin."""
        dim, num_centres = self.sizes.shape.dim, max(1, num_tokens // UNIT_SIZE)
        centre = self.whole(0, num_centres, num_tokens)[..., None].expand(-1, -1, dim)
        centres = self.numbers(num_centres, dim, dtype=torch.float32).gather(1, centre)
        off = self.numbers(1, dim, dtype=torch.float32)
        return (centres + off + 0.5 * self.numbers(num_tokens, dim, dtype=torch.float32)).to(self.sizes.shape.dtype)

    def slots(self, num_slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values [N, num_slots, D], each key beside its value."""
        key, value = self.numbers(num_slots, 2 * self.sizes.shape.dim).chunk(2, dim=-1)
        return key, value

    def pool(self, tier: str) -> Tensor:
        """[N, T, 2 D], one for all inputs; in the tier "host" in host memory, pinned if the device is a GPU."""
        if tier not in self._pools:
            made = self.numbers(self.sizes.num_tokens, 2 * self.sizes.shape.dim)
            moves = tier == "host" and self.device.type == "cuda"
            self._pools[tier] = made.cpu().pin_memory() if moves else made
        return self._pools[tier]

    def unit_sizes(self) -> Tensor:
        """[N, U] int32, tokens of each unit: different ones, and all tokens together."""
        half = self.whole(1, 2 * UNIT_SIZE, self.sizes.num_units // 2, dtype=torch.int32)
        return torch.cat([half, 2 * UNIT_SIZE - half], dim=1)

    def taken(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """[N, U] int32 how many tokens of each unit are taken, `num_tokens` of each row, and where the units begin."""
        sizes = self.unit_sizes()
        scores = self.numbers(self.sizes.num_units, dtype=torch.float32)
        offsets = (sizes.cumsum(1) - sizes).to(torch.int32)
        return select_units(scores, sizes, num_tokens, impl="torch"), offsets

    def chosen(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """[N, num_tokens] places of the tokens of units that are taken, and these units."""
        return places_of(*self.taken(num_tokens), num_tokens, impl="torch")

    def missing(self) -> Tensor:
        """[N, R] True for the slots that are filled anew."""
        order = self.numbers(self.sizes.num_retrieved, dtype=torch.float32).argsort(dim=1)
        return order < self.sizes.num_missing

    def selections(self) -> tuple[Tensor, Tensor]:
        """[N, R] int32 places in the slots, and [N, R] those wanted, of which all but the missing are there."""
        num_slots = self.sizes.num_retrieved
        place, _ = self.chosen(num_slots + self.sizes.num_missing)
        order = self.numbers(num_slots, dtype=torch.float32).argsort(dim=1)
        return place[:, :num_slots].gather(1, order).to(torch.int32), place[:, self.sizes.num_missing :].contiguous()
