"""Pinned memory: blocks are used again, and given back; without a GPU what CUDA does is watched only."""

import gc
from collections import deque
from collections.abc import Iterator

import pytest
import torch

from louiskv.ops import pinned
from louiskv.ops.pinned import LARGE_PAGE, empty_pinned, free_bytes, release_pinned

ON_GPU = torch.cuda.is_available()


class Watched:
    """What CUDA was told: addresses that it knows, and their sizes."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}
        self.most: int | None = None
        self.waits = 0


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    watched = Watched()
    register, unregister, wait = pinned._register, pinned._unregister, torch.cuda.synchronize

    def registers(address: int, size: int) -> None:
        if watched.most is not None and sum(watched.known.values()) + size > watched.most:
            raise RuntimeError("out of memory")
        if ON_GPU:
            register(address, size)
        assert address not in watched.known
        watched.known[address] = size

    def unregisters(address: int) -> None:
        if ON_GPU:
            unregister(address)
        del watched.known[address]

    def waits() -> None:
        watched.waits += 1
        if ON_GPU:
            wait()

    monkeypatch.setattr(pinned, "_register", registers)
    monkeypatch.setattr(pinned, "_unregister", unregisters)
    monkeypatch.setattr(torch.cuda, "synchronize", waits)
    monkeypatch.setattr(pinned._Free, "blocks", [])
    monkeypatch.setattr(pinned._Free, "unsettled", [])
    monkeypatch.setattr(pinned._Free, "returned", deque())
    yield watched
    gc.collect()
    release_pinned()
    assert not watched.known, "what is given back is no longer locked"


def test_any_shape_and_type(watched: Watched) -> None:
    for shape, dtype in (((3, 5, 7), torch.bfloat16), ((1,), torch.int32), ((2, LARGE_PAGE), torch.uint8)):
        made = empty_pinned(shape, dtype)
        assert made.shape == shape and made.dtype == dtype and made.is_contiguous()
        assert made.is_pinned() == ON_GPU
        made.fill_(3)
        assert bool((made == 3).all())
        del made


def test_a_block_is_used_again(watched: Watched) -> None:
    first = empty_pinned((1000, 4), torch.float32)
    address = first.data_ptr()
    view = first[10:20].fill_(7)
    del first
    assert free_bytes() == 0, "a view holds it"
    del view
    assert free_bytes() == LARGE_PAGE
    assert [watched.waits] == [0]
    second = empty_pinned((900, 4), torch.float32)
    assert second.data_ptr() == address
    assert [watched.waits] == [1], "what was launched may still have read it"
    assert free_bytes() == 0
    third = empty_pinned((1000, 4), torch.float32)
    assert third.data_ptr() != address
    assert len(watched.known) == 2
    assert [watched.waits] == [1], "nothing was given back since"


def test_a_block_that_is_too_large_is_not_wasted(watched: Watched) -> None:
    large = empty_pinned((20, LARGE_PAGE), torch.uint8)
    address = large.data_ptr()
    del large
    small = empty_pinned((2, LARGE_PAGE), torch.uint8)
    assert small.data_ptr() != address
    again = empty_pinned((17, LARGE_PAGE), torch.uint8)
    assert again.data_ptr() == address, "a quarter more is little"


def test_before_there_is_too_little_what_is_free_is_given_back(watched: Watched) -> None:
    watched.most = 12 * LARGE_PAGE
    first = empty_pinned((8, LARGE_PAGE), torch.uint8)
    del first
    second = empty_pinned((12, LARGE_PAGE), torch.uint8)
    assert sum(watched.known.values()) == second.nbytes
    with pytest.raises(RuntimeError, match="out of memory"):
        empty_pinned((1, 5), torch.uint8)


def test_nothing_needs_no_block(watched: Watched) -> None:
    assert empty_pinned((3, 0, 4), torch.float32).shape == (3, 0, 4)
    assert free_bytes() == 0
