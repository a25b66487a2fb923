"""The pool: keys and values of every unit of one layer, in host memory or (for methods that save work only) not."""

import os
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from louiskv.errors import HostMemoryError
from louiskv.ops.moving import store_rows
from louiskv.ops.pinned import free_bytes
from louiskv.ops.ragged import append_rows, grown, left_aligned, take_rows
from louiskv.store.coding import Coding

_CGROUP = Path("/sys/fs/cgroup")

# Room beyond what is needed whenever the pool grows: at least this many tokens a row, or a sixteenth of what it holds.
# A pool that is full would be copied whole in the middle of decoding.
MIN_ROOM = 256
# Tokens of a row, at the most, that one kernel writes to the host for all rows: copies, one for each, begin slower than
# they carry so few.
FEW = 1024


def capacity_for(num_tokens: int) -> int:
    """Tokens of a row that a pool makes room for when it must hold `num_tokens`."""
    return num_tokens + max(MIN_ROOM, num_tokens // 16)


class Pool:
    """Tokens of one layer as their coding makes them, those of one unit side by side, each key beside its value.

    Attributes:
        coding: What is kept of a token; it codes and decodes on the device, beside the pool.
        rows: [N, capacity, C] coded tokens; in host memory pinned when the device is a GPU.
        positions: [N, capacity] int32, where each token stands in its sequence (padding not counted).
        lengths: [N] int64, tokens held by each row; on the device.
        tier: "host", or "device" where the tokens stay on the device and are only picked from.
        expected: Tokens of a row that are known to come, in all: when the pool grows, so far at the least.
    """

    def __init__(self, num_rows: int, coding: Coding, device: torch.device, tier: str = "host") -> None:
        self.coding, self.tier, self.expected = coding, tier, 0
        self.device = torch.device("cpu") if tier == "host" else device
        self.pinned = tier == "host" and device.type == "cuda"
        shape = (num_rows, 0, coding.size)
        self.rows = torch.empty(shape, dtype=coding.dtype, device=self.device, pin_memory=self.pinned)
        self.positions = torch.empty(num_rows, 0, dtype=torch.int32, device=self.device, pin_memory=self.pinned)
        self.lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)

    @property
    def in_place(self) -> bool:
        """Whether the device can attend to tokens where they lie here."""
        return self.device == self.lengths.device and self.coding.exact

    @property
    def num_bytes(self) -> int:
        """Bytes of memory this pool has allocated."""
        return self.rows.nbytes + self.positions.nbytes + self.lengths.nbytes

    @property
    def token_size(self) -> int:
        """Bytes of one coded token."""
        return self.coding.token_size

    def append(
        self,
        rows: Tensor,
        positions: Tensor,
        counts: Tensor,
        stream: "torch.cuda.Stream | None" = None,
        known: tuple[list[int], list[int]] | None = None,
    ) -> Tensor:
        """Copy tokens of a prompt to the end of the pool.

        Args:
            rows: [N, T, C] coded tokens, on any device.
            positions: [N, T].
            counts: [N] tokens of each row.
            stream: Where they are copied, beside what follows; None for the current one. All but the copies is of the
                current one.
            known: `lengths` and `counts`, on the host; None to read them, which waits for the device.

        Returns:
            [N] where each row's new tokens begin.

        Raises:
            HostMemoryError: There is no room for them.
        """
        counts = counts.to(self.lengths.device)
        held, new = torch.stack([self.lengths, counts]).tolist() if known is None else known
        ends = [length + count for length, count in zip(held, new, strict=True)]
        self.reserve(max(ends), filled=min(ends))
        positions = positions.to(torch.int32)
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(rows.device))
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            if self.pinned and max(new) <= FEW:
                store_rows(self.rows, self.lengths, rows, counts)
            else:
                append_rows(self.rows, held, rows, new)
            store_rows(self.positions, self.lengths, positions, counts)
        if stream is not None:
            for each in (rows, positions, self.lengths, counts):
                each.record_stream(stream)
        return self._lengthen(counts)

    def append_few(self, rows: Tensor, positions: Tensor, counts: Tensor, impl: str | None = None) -> Tensor:
        """The same for the tokens of one run, for which room was reserved; waits for nothing."""
        store_rows(self.rows, self.lengths, rows, counts, impl=impl)
        store_rows(self.positions, self.lengths, positions.to(torch.int32), counts, impl=impl)
        return self._lengthen(counts)

    def _lengthen(self, counts: Tensor) -> Tensor:
        begin = self.lengths
        self.lengths = begin + counts
        return begin

    def take(self, row: Tensor, index: Tensor) -> Tensor:
        """Read coded tokens: [J, C] in the memory of the pool, from the rows [J] and the places [J] in them."""
        flat = self.rows.flatten(0, 1)
        source = (row * self.rows.shape[1] + index).to(self.device)
        if not self.pinned:
            return flat.index_select(0, source)
        staging = torch.empty(len(source), flat.shape[1], dtype=flat.dtype, pin_memory=True)
        return torch.index_select(flat, 0, source, out=staging)

    def decoded(self) -> Tensor:
        """[N, capacity, Dk + Dv] all that it holds, decoded where it lies."""
        return self.coding.decode(self.rows, torch.arange(len(self.rows), device=self.device)[:, None])

    def keep_before(self, ends: Tensor) -> Tensor:
        """Remove every token whose position is not below its row's end, closing the gaps.

        Args:
            ends: [N], on any device.

        Returns:
            [N, T] True for the tokens kept, in the places they had.
        """
        token = torch.arange(self.rows.shape[1], device=self.device)
        held = token < self.lengths.to(self.device)[:, None]
        keep = held & (self.positions < ends.to(self.device)[:, None])
        order, lengths = left_aligned(keep)
        self.lengths = lengths.to(self.lengths.device)
        self._replace(take_rows(self.rows, order), self.positions.gather(1, order))
        self.coding.forget(self.lengths == 0)
        return keep

    def select_rows(self, index: Tensor) -> None:
        """Make row i a copy of the former row `index[i]`."""
        here = index.to(self.device)
        self._replace(self.rows.index_select(0, here), self.positions.index_select(0, here))
        self.lengths = self.lengths.index_select(0, index.to(self.lengths.device))
        self.coding.select_rows(index)

    def blank(self, num_rows: int) -> "Pool":
        """A pool of the same kind for so many rows, empty."""
        return Pool(num_rows, self.coding.blank(num_rows), self.lengths.device, self.tier)

    def put_rows(self, rows: slice, other: "Pool", others: slice) -> None:
        """Overwrite rows by those of another pool of the same kind; others are copied only if there is no room.

        Raises:
            HostMemoryError: There is no room.
        """
        count = int(other.lengths[others].max())
        self.reserve(count)
        self.rows[rows, :count] = other.rows[others, :count]
        self.positions[rows, :count] = other.positions[others, :count]
        self.lengths[rows] = other.lengths[others]
        self.coding.put_rows(rows, other.coding, others)

    def clear_rows(self, rows: slice) -> None:
        """Empty rows, in place."""
        self.lengths[rows] = 0
        self.coding.clear_rows(rows)

    def _replace(self, rows: Tensor, positions: Tensor) -> None:
        if self.pinned:
            rows, positions = (grown(part, part.shape[1], pinned=True) for part in (rows, positions))
        self.rows, self.positions = rows, positions

    def reserve(self, needed: int, filled: int = 0) -> bool:
        """Make room for so many tokens of each row; whether there was too little.

        Args:
            needed: Tokens of each row.
            filled: The first of them that every row holds or is about to be given.

        Raises:
            HostMemoryError: There is none.
        """
        capacity = self.rows.shape[1]
        if needed <= capacity:
            return False
        wanted = max(capacity_for(needed), self.expected)
        if self.pinned and capacity:
            # The host copies what it holds, and a stream may still be writing there.
            torch.cuda.synchronize(self.lengths.device)
        try:
            self.rows = grown(self.rows, wanted, self.pinned, filled)
            self.positions = grown(self.positions, wanted, self.pinned, filled)
        except (OSError, RuntimeError, MemoryError) as error:
            size = self.rows.shape[0] * wanted * self.token_size
            raise HostMemoryError(
                f"The {self.tier} pool of one layer cannot grow to {wanted} tokens ({size / 2**20:.0f} MiB): {error}. "
                "Use a shorter context, a smaller batch or a 16-bit dtype; `louiskv plan` shows the need beforehand."
            ) from error
        return True


def available_host_memory() -> int:
    """Bytes of memory that can still be taken: free or reclaimable, within the limit of the control group if any.

    What is locked for pools and not used at present counts, for it is used again or given back. Where the system does
    not tell (no Linux), all physical memory.
    """
    return _of_the_system() + free_bytes()


def _of_the_system() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return available
    if limit == "max":
        return available
    return min(available, int(limit) - int(used) + int(statistics["inactive_file"]))
