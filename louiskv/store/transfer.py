"""Copies between the tiers, counted where the bytes move."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

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
    """Moves tokens of one layer between its resident set and its pool; a pool on the device moves nothing.

    On a GPU the offload of a prompt runs on a side stream, beside the computation of the next layer; `settle` waits
    for it before the pool is read.
    """

    def __init__(self, device: torch.device) -> None:
        self.traffic = Traffic()
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def offload(self, pool: Pool, rows: Tensor, positions: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Code tokens on the device, and copy what comes out to the end of the pool.

        Args:
            pool: The pool.
            rows: [N, T, Dk + Dv].
            positions: [N, T].
            counts: [N] tokens of each row.

        Returns:
            [N] where they begin in the pool, and [N, T, Dk + Dv] what it will give back, on the device.
        """
        coded, held = pool.coding.encode(rows, counts)
        if pool.tier == "device":
            return pool.append(coded, positions, counts), held
        tokens = int(counts.sum())
        self.traffic.offloaded_tokens += tokens
        self.traffic.offloaded_bytes += tokens * pool.token_size
        if self._stream is None:
            return pool.append(coded, positions, counts), held
        self._stream.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(self._stream):
            begin = pool.append(coded, positions, counts)
        coded.record_stream(self._stream)
        return begin, held

    def gather(self, pool: Pool, row: Tensor, index: Tensor) -> Tensor:
        """Bring the tokens at the places `index` [J] of the pool rows `row` [J] to the device: [J, Dk + Dv]."""
        self.settle()
        coded = pool.take(row, index)
        self._count_fetched(pool, len(coded))
        return pool.coding.decode(coded.to(self.device, non_blocking=True), row)

    def read(self, pool: Pool, chunk_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Bring the whole pool to the device, a chunk at a time.

        Args:
            pool: The pool.
            chunk_size: Tokens of each row in a chunk.

        Yields:
            Tokens [N, chunk, Dk + Dv] on the device, and [N, chunk] True where there is one.
        """
        self.settle()
        longest = int(pool.lengths.max())
        for first in range(0, longest, chunk_size):
            coded = pool.rows[:, first : min(first + chunk_size, longest)]
            token = torch.arange(first, first + coded.shape[1], device=pool.device)
            present = token < pool.lengths[:, None]
            self._count_fetched(pool, coded.shape[0] * coded.shape[1])
            coded = coded.to(self.device, copy=pool.tier == "host")
            row = torch.arange(len(coded), device=self.device)[:, None]
            yield pool.coding.decode(coded, row), present.to(self.device)

    def settle(self) -> None:
        """Wait until everything offloaded so far has arrived in the pool."""
        if self._stream is not None:
            self._stream.synchronize()

    def _count_fetched(self, pool: Pool, num_tokens: int) -> None:
        if pool.tier == "host":
            self.traffic.fetched_tokens += num_tokens
            self.traffic.fetched_bytes += num_tokens * pool.token_size
