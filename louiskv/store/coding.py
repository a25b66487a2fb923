"""How a pool keeps a token: its numbers as they are, or in few bits."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from louiskv.ops.ragged import may_hold

# Bits of a number in a pool; None for the numbers as they are.
POOL_BITS = (None, 8, 4)
# Scale and offset, of the key and of the value, in 16 bits each.
STEPS_BYTES = 8
# The least scale above 0 that 16 bits can tell.
LEAST_SCALE = 2.0**-24
# A channel's spread is learnt as if this many tokens more had shown the mean spread of all channels: few tokens tell
# little of one channel, and one that stood still may move later.
PRIOR_TOKENS = 16


def token_size(bits: int | None, key_dim: int, value_dim: int, item_size: int) -> int:
    """Bytes that a pool keeps of a token of one KV head, exact numbers being of `item_size` bytes."""
    if bits is None:
        return (key_dim + value_dim) * item_size
    return _num_packed(key_dim, bits) + _num_packed(value_dim, bits) + STEPS_BYTES


def state_size(bits: int | None, key_dim: int) -> int:
    """Bytes that a coding keeps for each row: of every key channel two float32, and whether they are learnt."""
    return 0 if bits is None else 2 * 4 * key_dim + 1


class Coding(ABC):
    """What a pool keeps of the tokens of N rows.

    Attributes:
        size: Entries of a kept token.
        dtype: Their type.
        exact: Whether they are the numbers of its key and its value.
    """

    size: int
    dtype: torch.dtype
    exact: bool = False

    @property
    def token_size(self) -> int:
        """Bytes of a kept token."""
        return self.size * self.dtype.itemsize

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes of what it has learnt."""

    @abstractmethod
    def encode(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Code tokens; a row's first ones teach how to code all of it.

        Args:
            rows: [N, T, Dk + Dv].
            counts: [N] tokens of each row; what lies behind them may be anything.

        Returns:
            [N, T, size], and what `decode` makes of it: [N, T, Dk + Dv].
        """

    @abstractmethod
    def decode(self, coded: Tensor, row: Tensor) -> Tensor:
        """Decode tokens; each comes out the same in any company and on any device.

        Args:
            coded: [..., size].
            row: The row of each, of a shape that broadcasts to [...].

        Returns:
            [..., Dk + Dv] where `coded` lies.
        """

    @abstractmethod
    def forget(self, where: Tensor) -> None:
        """Learn rows `where` [N] anew from their next tokens; none that was coded is left."""

    @abstractmethod
    def select_rows(self, index: Tensor) -> None:
        """Make row i a copy of the former row `index[i]`."""

    @abstractmethod
    def blank(self, num_rows: int) -> "Coding":
        """The same for so many rows, with nothing learnt."""

    @abstractmethod
    def put_rows(self, rows: slice, other: "Coding", others: slice) -> None:
        """Know of rows what another coding of the same kind knows of others, in place."""

    @abstractmethod
    def clear_rows(self, rows: slice) -> None:
        """Learn rows anew, in place."""


class Exact(Coding):
    """A token is its key and its value, as they are."""

    exact = True

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.size, self.dtype = size, dtype

    @property
    def num_bytes(self) -> int:
        """Nothing."""
        return 0

    def encode(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The rows themselves, twice."""
        return rows, rows

    def decode(self, coded: Tensor, row: Tensor) -> Tensor:
        """The same tensor."""
        return coded

    def forget(self, where: Tensor) -> None:
        """Nothing to do."""

    def select_rows(self, index: Tensor) -> None:
        """Nothing to do."""

    def blank(self, num_rows: int) -> "Exact":
        """The same."""
        return self

    def put_rows(self, rows: slice, other: Coding, others: slice) -> None:
        """Nothing to do."""

    def clear_rows(self, rows: slice) -> None:
        """Nothing to do."""


class FewBits(Coding):
    """A token is codes of its key, codes of its value, then scale and offset of both in float16: one run of bytes.

    Each token is spread over all codes from its least number to its greatest. Keys have channels that are large in all
    tokens (KIVI, section 3.1 of arXiv 2402.02750), so each channel of a key is centred and scaled before, by the mean
    and the spread of the first tokens of its row.

    Attributes:
        mean: [N, Dk] float32 mean of each key channel.
        spread: [N, Dk] float32 standard deviation of each key channel.
        learnt: [N] whether there were tokens to learn them from.
    """

    def __init__(
        self, bits: int, num_rows: int, key_dim: int, value_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.bits, self.key_dim, self.value_dim = bits, key_dim, value_dim
        self.size, self.dtype = token_size(bits, key_dim, value_dim, dtype.itemsize), torch.uint8
        self.decoded_dtype = dtype
        self.mean = torch.zeros(num_rows, key_dim, dtype=torch.float32, device=device)
        self.spread = torch.ones_like(self.mean)
        self.learnt = torch.zeros(num_rows, dtype=torch.bool, device=device)

    @property
    def num_bytes(self) -> int:
        """Mean and spread of each channel, and who has learnt them."""
        return self.mean.nbytes + self.spread.nbytes + self.learnt.nbytes

    def encode(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, and what they stand for."""
        keys, values = rows[..., : self.key_dim], rows[..., self.key_dim :]
        self._learn(keys, counts)
        normal = (keys.float() - self.mean[:, None]) / self.spread[:, None]
        key_codes, key_steps = _quantise(normal, self.bits)
        value_codes, value_steps = _quantise(values.float(), self.bits)
        steps = torch.cat([key_steps, value_steps], dim=-1).view(torch.uint8)
        coded = torch.cat([key_codes, value_codes, steps], dim=-1)
        return coded, self.decode(coded, torch.arange(len(rows), device=rows.device)[:, None])

    def decode(self, coded: Tensor, row: Tensor) -> Tensor:
        """What the codes stand for."""
        row = row.to(coded.device)
        mean, spread = (part.to(coded.device)[row] for part in (self.mean, self.spread))
        sizes = [_num_packed(dim, self.bits) for dim in (self.key_dim, self.value_dim)]
        key_codes, value_codes, tail = coded.split([*sizes, STEPS_BYTES], dim=-1)
        # A copy even of a single token, whose tail may lie at an odd address.
        steps = tail.clone(memory_format=torch.contiguous_format).view(torch.float16)
        # One operation after the other: fused, the last bit would depend on the device.
        keys = _dequantise(key_codes, steps[..., :2], self.key_dim, self.bits) * spread + mean
        values = _dequantise(value_codes, steps[..., 2:], self.value_dim, self.bits)
        return torch.cat([keys.to(self.decoded_dtype), values.to(self.decoded_dtype)], dim=-1)

    def forget(self, where: Tensor) -> None:
        """Learn these rows anew."""
        self.learnt = self.learnt & ~where.to(self.learnt.device)

    def select_rows(self, index: Tensor) -> None:
        """Make row i a copy of the former row `index[i]`."""
        for name in ("mean", "spread", "learnt"):
            part = getattr(self, name)
            setattr(self, name, part.index_select(0, index.to(part.device)))

    def blank(self, num_rows: int) -> "FewBits":
        """The same for so many rows."""
        return FewBits(self.bits, num_rows, self.key_dim, self.value_dim, self.decoded_dtype, self.mean.device)

    def put_rows(self, rows: slice, other: Coding, others: slice) -> None:
        """Copy mean, spread, and whether they are learnt."""
        for name in ("mean", "spread", "learnt"):
            getattr(self, name)[rows] = getattr(other, name)[others]

    def clear_rows(self, rows: slice) -> None:
        """Learn rows anew, in place."""
        self.learnt[rows] = False

    def _learn(self, keys: Tensor, counts: Tensor) -> None:
        """Learn from keys [N, T, Dk] the rows that have tokens for the first time."""
        if not may_hold(~self.learnt):
            return
        fresh = ~self.learnt & (counts > 0)
        self.learnt = self.learnt | fresh
        here = fresh[:, None]
        present = (torch.arange(keys.shape[1], device=keys.device) < counts.to(keys.device)[:, None])[..., None]
        number = counts.to(keys.device).clamp(min=1)[:, None]
        # In float64 a sum is the same to float32 in any order, so that padding beside a row changes nothing.
        mean = (keys.float().where(present, 0).sum(1, dtype=torch.float64) / number).float()
        off = (keys.float() - mean[:, None]).where(present, 0)
        variance = off.square().sum(1, dtype=torch.float64) / number
        prior = variance.mean(-1, keepdim=True) * PRIOR_TOKENS
        spread = ((variance * number + prior) / (number + PRIOR_TOKENS)).sqrt().float()
        self.mean = torch.where(here, mean, self.mean)
        self.spread = torch.where(here, spread.where(spread > 0, 1), self.spread)


def _quantise(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes [..., packed] uint8 and steps [..., 2] float16, scale then offset, of float32 rows [..., D]."""
    most, levels = torch.finfo(torch.float16).max, 2**bits - 1
    offset = rows.amin(-1, keepdim=True).clamp(-most, most).half()
    reach = rows.amax(-1, keepdim=True) - offset.float()
    scale = (reach / levels).clamp(0, most).half()
    codes = ((rows - offset.float()) / scale.float().clamp(min=LEAST_SCALE)).round().clamp(0, levels)
    return _pack(codes.to(torch.uint8), bits), torch.cat([scale, offset], dim=-1)


def _dequantise(codes: Tensor, steps: Tensor, dim: int, bits: int) -> Tensor:
    """The float32 rows [..., dim] that codes [..., packed] and steps [..., 2] stand for."""
    steps = steps.float()
    return _unpack(codes, dim, bits).float() * steps[..., :1] + steps[..., 1:]


def _num_packed(dim: int, bits: int) -> int:
    return -(-dim * bits // 8)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes [..., D] uint8, two to a byte if they have 4 bits, the first in the lower half."""
    if bits == 8:
        return codes
    pairs: Tensor = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2)).unflatten(-1, (-1, 2))
    return pairs[..., 0] | pairs[..., 1] << 4


def _unpack(packed: Tensor, dim: int, bits: int) -> Tensor:
    """The codes [..., dim] that `_pack` packed."""
    if bits == 8:
        return packed
    codes: Tensor = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
    return codes[..., :dim]
