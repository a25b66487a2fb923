"""The logic of the kernels in CUDA, compiled for the host."""

import ctypes
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

from louiskv.ops.candidates import UnitTable
from louiskv.ops.compiling import SOURCES, Library, Unit
from louiskv.ops.native import cpu_library

_INT, _LONG, _ADDRESS = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p


@cache
def kernels() -> Any:
    """The library; compiled anew in each session, with warnings as errors."""
    library = Library(
        name="on_host",
        language="C++",
        compilers=cpu_library().compilers,
        variable="CXX",
        units=(Unit("on_host.cpp"),),
        flags=("-std=c++17", "-O2", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror"),
        include=(SOURCES,),
        sources=Path(__file__).parent / "on_host",
    )
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOUISKV_CACHE", folder)
        loaded = ctypes.CDLL(str(library.build(tell=False)))
    loaded.keys_of.argtypes = (_ADDRESS, _ADDRESS, _LONG)
    loaded.select_units.argtypes = (*(_ADDRESS, _LONG, _ADDRESS, _INT, _ADDRESS), *(_ADDRESS, _LONG, _LONG, _INT))
    loaded.list_candidates.argtypes = (
        *(_ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _LONG),
        *(_ADDRESS, _ADDRESS, _ADDRESS, _LONG, _LONG, _LONG, _LONG, _LONG, _INT),
    )
    rest = (_ADDRESS, _LONG, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _LONG, _LONG, _INT)
    loaded.count_rest.argtypes = rest
    loaded.best_tokens.argtypes = (
        *(_ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, ctypes.c_float),
        *(_ADDRESS, _LONG, _LONG, _LONG, _INT),
    )
    loaded.assign_slots.argtypes = (
        *(_ADDRESS, _ADDRESS, _INT, _ADDRESS, _ADDRESS, _ADDRESS),
        *(_ADDRESS, _LONG, _INT, _LONG, _ADDRESS, _LONG, _LONG, _LONG, _LONG, _INT),
    )
    loaded.word_bytes.argtypes = (ctypes.c_uint64,)
    ends = (_LONG, _LONG, _LONG, _INT, _INT)
    loaded.fetch_rows.argtypes = (
        *(_ADDRESS, _LONG, _LONG, _ADDRESS, _INT, _ADDRESS),
        *(_ADDRESS, _LONG, _LONG, *ends),
    )
    loaded.store_rows.argtypes = (_ADDRESS, _LONG, _ADDRESS, _ADDRESS, _LONG, _LONG, _ADDRESS, *ends)
    return loaded


def keys_of(scores: Tensor) -> Tensor:
    """Keys [U] of scores [U] float32, as int64."""
    keys = torch.empty(len(scores), dtype=torch.int32)
    kernels().keys_of(scores.data_ptr(), keys.data_ptr(), len(scores))
    return keys.long() & 0xFFFFFFFF


def select_units(scores: Tensor, sizes: Tensor, budgets: Tensor, *, threads: int) -> Tensor:
    """As `louiskv.ops.selection.select_units`; scores and sizes have the same strides."""
    assert scores.stride() == sizes.stride() and scores.stride(1) == 1 and budgets.dtype == torch.int64
    take = torch.full(sizes.shape, -7, dtype=sizes.dtype)
    where = (scores.data_ptr(), scores.stride(0), sizes.data_ptr(), sizes.itemsize, budgets.data_ptr())
    kernels().select_units(*where, take.data_ptr(), *sizes.shape, threads)
    return take


def list_candidates(
    take: Tensor, offsets: Tensor, slot_place: Tensor, units: UnitTable, width: int, *, threads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `louiskv.ops.candidates.list_candidates`, of int32."""
    num_rows, num_slots = slot_place.shape
    place, entry = (torch.full((num_rows, width + num_slots), -7, dtype=torch.int32) for _ in range(2))
    resident = torch.ones(place.shape, dtype=torch.bool)
    first_entry = 0 if units.first_entry is None else units.first_entry.data_ptr()
    kernels().list_candidates(
        *(take.data_ptr(), offsets.data_ptr(), slot_place.data_ptr(), units.offsets.data_ptr()),
        *(units.counts.data_ptr(), first_entry, units.stretch),
        *(place.data_ptr(), entry.data_ptr(), resident.data_ptr()),
        *(*take.shape, num_slots, units.offsets.shape[1], width, threads),
    )
    return place, entry, resident


def best_tokens(
    scores: Tensor, place: Tensor, resident: Tensor, room: Tensor, num_wanted: int, *, hold: float, threads: int
) -> Tensor:
    """As `louiskv.ops.candidates.best_tokens`, of int32."""
    wanted = torch.full((len(place), num_wanted), -7, dtype=torch.int32)
    where = (scores.data_ptr(), place.data_ptr(), resident.data_ptr(), room.data_ptr(), hold, wanted.data_ptr())
    kernels().best_tokens(*where, *place.shape, num_wanted, threads)
    return wanted


def count_rest(place: Tensor, sizes: Tensor, units: UnitTable, *, threads: int) -> Tensor:
    """As `louiskv.ops.candidates.count_rest`, of int32."""
    left = torch.full_like(sizes, -7)
    where = (place.data_ptr(), place.shape[1], sizes.data_ptr(), units.offsets.data_ptr(), units.counts.data_ptr())
    kernels().count_rest(*where, left.data_ptr(), *sizes.shape, threads)
    return left


def assign_slots(
    slot_place: Tensor,
    wanted: Tensor,
    *,
    threads: int,
    map_words: int = 1024,
    where: Tensor | None = None,
    counts: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `louiskv.ops.selection.assign_slots`, of int32, with a map of so many words."""
    place = torch.full_like(slot_place, -7) if out is None else out
    missing = torch.ones(slot_place.shape, dtype=torch.bool)
    none = torch.tensor(-torch.inf, dtype=torch.float32 if bias is None else bias.dtype)
    bits = int(none.view(torch.int32 if none.itemsize == 4 else torch.int16)) & (2 ** (8 * none.itemsize) - 1)
    stride = 0 if bias is None else bias.stride(0) * bias.itemsize
    kernels().assign_slots(
        *(slot_place.data_ptr(), wanted.data_ptr(), wanted.itemsize, None if where is None else where.data_ptr()),
        *(place.data_ptr(), missing.data_ptr()),
        *(None if bias is None else bias.data_ptr(), stride, none.itemsize, bits),
        *(None if counts is None else counts.data_ptr(), *place.shape, wanted.shape[1], map_words, threads),
    )
    return place, missing


def fetch_rows(source: Tensor, place: Tensor, missing: Tensor, target: Tensor, *, group: int, most_bytes: int) -> None:
    """As `louiskv.ops.moving.fetch_rows`, in groups of slots and words of at most so many bytes."""
    size = target.itemsize
    strides = [stride * size for stride in (*source.stride()[:2], *target.stride()[:2])]
    token_bytes = target.shape[2] * size
    word = word_bytes(source, target, *strides, token_bytes, most_bytes)
    kernels().fetch_rows(
        *(source.data_ptr(), *strides[:2], place.data_ptr(), place.itemsize, missing.data_ptr()),
        *(target.data_ptr(), *strides[2:], *place.shape, token_bytes, group, word),
    )


def store_rows(target: Tensor, lengths: Tensor, rows: Tensor, counts: Tensor, *, group: int) -> None:
    """As `louiskv.ops.moving.store_rows`, in groups of entries."""
    strides = [stride * rows.itemsize for stride in rows.stride()[:2]]
    entry_bytes = rows[0, 0].numel() * rows.itemsize
    word = word_bytes(target, rows, *strides, entry_bytes)
    kernels().store_rows(
        *(target.data_ptr(), target.shape[1], lengths.data_ptr(), rows.data_ptr(), *strides),
        *(counts.data_ptr(), *rows.shape[:2], entry_bytes, group, word),
    )


def word_bytes(*parts: Tensor | int) -> int:
    """Bytes of the words in which is copied what lies at some addresses, in some strides and sizes."""
    bits = 0
    for part in parts:
        bits |= part.data_ptr() if isinstance(part, Tensor) else part
    word: int = kernels().word_bytes(bits)
    return word
