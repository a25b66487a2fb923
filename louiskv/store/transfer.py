"""Copies between the tiers, counted where the bytes move."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from louiskv.ops.moving import fetch_rows
from louiskv.ops.ragged import left_aligned, width_of
from louiskv.store.background import urgent_stream
from louiskv.store.device import Change
from louiskv.store.pool import Pool


@dataclass
class Traffic:
    """What has moved between the tiers of one layer, in tokens of one KV head and in bytes."""

    fetched_tokens: int = 0
    fetched_bytes: int = 0
    offloaded_tokens: int = 0
    offloaded_bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Traffic(*(mine + theirs for mine, theirs in pairs))


class Transfer:
    """Moves tokens of one layer between its resident set and its pool, and counts what a bus between them carries.

    Where both are the same memory, as on a CPU, a fetch moves nothing and is counted all the same. No bus leads to
    a pool whose tier is the device.

    On a GPU the offload of a prompt runs on a side stream, beside the computation of the next layer.

    Attributes:
        chosen: [2] int64, tokens that selections chose, and those of them that were missing: whoever changes what slots
            hold counts them there, before they are fetched.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._read = Traffic()
        self.chosen = torch.zeros(2, dtype=torch.int64, device=device)
        self._offloaded = torch.zeros((), dtype=torch.int64, device=device)
        self._token_size = 0
        self._stream = urgent_stream(device)
        self._on_its_way = False

    @property
    def traffic(self) -> Traffic:
        """What has moved; on a GPU this waits for the device."""
        fetched, offloaded = (int(self.chosen[1]), int(self._offloaded)) if self._token_size else (0, 0)
        return self._read + Traffic(fetched, fetched * self._token_size, offloaded, offloaded * self._token_size)

    def offload(
        self,
        pool: Pool,
        rows: Tensor,
        positions: Tensor,
        counts: Tensor,
        known: tuple[list[int], list[int]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Code tokens of a prompt on the device, and copy what comes out to the end of the pool.

        Args:
            pool: The pool.
            rows: [N, T, Dk + Dv].
            positions: [N, T].
            counts: [N] tokens of each row.
            known: As `Pool.append` takes it.

        Returns:
            [N] where they begin in the pool, and [N, T, Dk + Dv] what it will give back, on the device.
        """
        coded, held = pool.coding.encode(rows, counts)
        self._count_offloaded(pool, counts, None if known is None else sum(known[1]))
        if self._stream is None or pool.tier == "device":
            return pool.append(coded, positions, counts, known=known), held
        begin = pool.append(coded, positions, counts, self._stream, known)
        self._on_its_way = True
        return begin, held

    def offload_few(
        self, pool: Pool, rows: Tensor, positions: Tensor, counts: Tensor, impl: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same for the tokens of one run of the output, for which the pool has room; waits for nothing."""
        self._join()
        coded, held = pool.coding.encode(rows, counts)
        self._count_offloaded(pool, counts)
        return pool.append_few(coded, positions, counts, impl), held

    def fetch(self, pool: Pool, change: Change, slots: Tensor, impl: str | None = None) -> None:
        """Bring the tokens that are missing into their slots [N, S, Dk + Dv]; tokens in place stay there."""
        self._join()
        self._note_bus(pool)
        if pool.in_place:
            return
        if pool.coding.exact:
            fetch_rows(pool.rows, change.place, change.missing, slots, impl=impl)
            return
        order, counts = left_aligned(change.missing)
        slot = order[:, : width_of(counts, order.shape[1])]
        missing = change.missing.gather(1, slot)
        coded = torch.empty(*slot.shape, pool.coding.size, dtype=pool.coding.dtype, device=self.device)
        fetch_rows(pool.rows, change.place.gather(1, slot), missing, coded, impl=impl)
        rows = pool.coding.decode(coded, torch.arange(len(slot), device=self.device)[:, None])
        index = slot[..., None].expand_as(rows)
        slots.scatter_(1, index, torch.where(missing[..., None], rows, slots.gather(1, index)))

    def gather(self, pool: Pool, row: Tensor, index: Tensor) -> Tensor:
        """Bring the tokens at the places `index` [J] of the pool rows `row` [J] to the device: [J, Dk + Dv]."""
        self.settle()
        coded = pool.take(row, index)
        self._count_read(pool, len(coded))
        return pool.coding.decode(coded.to(self.device, non_blocking=True), row)

    def read(
        self, pool: Pool, chunk_size: int, held: list[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Bring the whole pool to the device, a chunk at a time.

        Args:
            pool: The pool.
            chunk_size: Tokens of each row in a chunk.
            held: The pool's lengths, on the host; None to read them, which waits for the device.

        Yields:
            Tokens [N, chunk, Dk + Dv] on the device, and [N, chunk] True where there is one; None where all are.
        """
        self._join()
        held = pool.lengths.tolist() if held is None else held
        longest, shortest = max(held), min(held)
        # A row of a batch that holds no sequence has nothing to bring.
        num_rows = sum(length > 0 for length in held)
        for first in range(0, longest, chunk_size):
            end = min(first + chunk_size, longest)
            coded, present = pool.rows[:, first:end], None
            if shortest < end:
                present = torch.arange(first, end, device=self.device) < pool.lengths[:, None]
            self._count_read(pool, num_rows * (end - first))
            coded = self._brought(coded) if pool.pinned else coded.to(self.device, copy=pool.tier == "host")
            row = torch.arange(len(coded), device=self.device)[:, None]
            yield pool.coding.decode(coded, row), present

    def _brought(self, rows: Tensor) -> Tensor:
        """Copy rows [N, T, C] of pinned memory to the device; each is one run, which alone is copied as it lies."""
        brought = torch.empty_like(rows, device=self.device, memory_format=torch.contiguous_format)
        for target, source in zip(brought, rows, strict=True):
            target.copy_(source, non_blocking=True)
        return brought

    def take_over(self, other: "Transfer") -> None:
        """Count also what another has moved."""
        self._read = self._read + other._read
        self._token_size = self._token_size or other._token_size
        self.chosen += other.chosen
        self._offloaded += other._offloaded

    def settle(self) -> None:
        """Wait until everything offloaded so far has arrived in the pool."""
        if self._stream is not None:
            self._stream.synchronize()
            torch.cuda.current_stream(self.device).synchronize()
            self._on_its_way = False

    def _join(self) -> None:
        """Let the device wait, and not the caller, until a prompt has arrived in the pool."""
        if self._on_its_way and self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
            self._on_its_way = False

    def _count_offloaded(self, pool: Pool, counts: Tensor, known: int | None = None) -> None:
        self._note_bus(pool)
        if pool.tier == "host":
            self._offloaded += counts.sum() if known is None else known

    def _note_bus(self, pool: Pool) -> None:
        """Learn whether there is a bus to the pool, and what a token is on it."""
        self._token_size = pool.token_size if pool.tier == "host" else 0

    def _count_read(self, pool: Pool, num_tokens: int) -> None:
        if pool.tier == "host":
            self._read.fetched_tokens += num_tokens
            self._read.fetched_bytes += num_tokens * pool.token_size
