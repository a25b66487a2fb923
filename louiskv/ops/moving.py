"""Tokens on the way: into the window, from the window to the pool, and from the pool into slots.

Rows may be of any dtype: what only copies them reads them as bytes, and is chosen by what says where they go.
"""

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations


def append_token(
    rows: Tensor,
    bias: Tensor,
    lengths: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    num_sinks: int,
    window: int,
    impl: str | None = None,
) -> None:
    """Write one token of each row into its slot, open the slot and count the token; all in place.

    The slot of position p is p if p < num_sinks, otherwise `num_sinks + (p - num_sinks) mod window`.

    Args:
        rows: [N, L, Dk + Dv], changed.
        bias: [N, 1, L], set to 0 at the slot.
        lengths: [N] int64, position of the token; one more afterwards.
        keys: [N, Dk], any strides with a dense last dimension.
        values: [N, Dv].
        num_sinks: Slots of the first tokens.
        window: Slots of the newest tokens.
        impl: Implementation; None takes the best that can run.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("append_token", APPEND_TOKEN, impl, rows)
    function(rows, bias, lengths, keys, values, num_sinks, window)


def _append_token(
    rows: Tensor, bias: Tensor, lengths: Tensor, keys: Tensor, values: Tensor, num_sinks: int, window: int
) -> None:
    num_rows, num_slots, _ = rows.shape
    ring = num_sinks + (lengths - num_sinks) % window
    slot = torch.where(lengths < num_sinks, lengths, ring) + torch.arange(num_rows, device=rows.device) * num_slots
    rows.flatten(0, 1).index_copy_(0, slot, torch.cat([keys, values], dim=-1))
    bias.view(-1).index_fill_(0, slot, 0)
    lengths += 1


def fetch_rows(source: Tensor, place: Tensor, missing: Tensor, target: Tensor, *, impl: str | None = None) -> None:
    """Copy tokens from the pool into the slots that miss them.

    Args:
        source: [N, C, R], on the device or in host memory, then pinned if the device is a GPU.
        place: [N, S] int32, place in the source of the token in each slot; anything where nothing is missing.
        missing: [N, S] True where a slot must be filled.
        target: [N, S, R], a view with dense last dimension, changed where `missing`.
        impl: Implementation; None takes the best that can run.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("fetch_rows", FETCH_ROWS, impl, place)
    function(source, place, missing, target)


def _fetch_rows(source: Tensor, place: Tensor, missing: Tensor, target: Tensor) -> None:
    row, slot = missing.nonzero(as_tuple=True)
    index = (row * source.shape[1] + place[row, slot]).to(source.device)
    target[row, slot] = source.flatten(0, 1).index_select(0, index).to(target.device)


def store_rows(target: Tensor, lengths: Tensor, rows: Tensor, counts: Tensor, *, impl: str | None = None) -> None:
    """Write the few tokens that leave a window behind those that the pool holds, or their units behind others.

    Args:
        target: [N, C, ...] contiguous, on the device or in host memory, then pinned if the device is a GPU; changed.
        lengths: [N] int64, entries in use before.
        rows: [N, T, ...] in the dtype of the target; entries past a row's count may hold anything.
        counts: [N] int64, entries to write; `lengths + counts` is at most C.
        impl: Implementation; None takes the best that can run.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("store_rows", STORE_ROWS, impl, lengths)
    function(target, lengths, rows, counts)


def _store_rows(target: Tensor, lengths: Tensor, rows: Tensor, counts: Tensor) -> None:
    entry = torch.arange(rows.shape[1], device=rows.device)
    row, entry = (entry < counts[:, None]).nonzero(as_tuple=True)
    place = (row * target.shape[1] + lengths[row] + entry).to(target.device)
    target.flatten(0, 1).index_copy_(0, place, rows[row, entry].to(target.device))


APPEND_TOKEN = implementations("moving", _append_token, ("triton", "cpu"))
FETCH_ROWS = implementations("moving", _fetch_rows, ("cuda", "triton", "cpu"))
STORE_ROWS = implementations("moving", _store_rows, ("cuda", "triton", "cpu"))
