"""Ragged sets of tokens as padded tensors: row n of [N, T, ...] uses its first `counts[n]` entries."""

import weakref
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from louiskv.ops.pinned import empty_pinned

P = ParamSpec("P")
T = TypeVar("T")

# Types of devices whose values the host can read without waiting for them.
READABLE = {"cpu"}


def is_readable(tensor: Tensor) -> bool:
    """Whether the host can read values without waiting for a device: only then a step may branch on them."""
    return tensor.device.type in READABLE


def may_hold(condition: Tensor) -> bool:
    """False if it is readable that no entry is True: then what follows can be left out."""
    return not is_readable(condition) or bool(condition.any())


def width_of(counts: Tensor, most: int) -> int:
    """Entries that the widest row needs; `most`, which none exceeds, where that is not readable."""
    return int(counts.max()) if is_readable(counts) else most


def asked_once(function: Callable[Concatenate[Tensor, P], T]) -> Callable[Concatenate[Tensor, P], T]:
    """Let a function that looks at a tensor not do so again when it is asked about the same one: all layers are."""
    last: list[tuple[weakref.ref[Tensor], object, T]] = []

    @wraps(function)
    def answer(tensor: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> T:
        asked = (args, kwargs)
        # One read of the list: threads may ask at the same time.
        for known, others, found in last[:1]:
            if known() is tensor and others == asked:
                return found
        result = function(tensor, *args, **kwargs)
        last[:] = [(weakref.ref(tensor), asked, result)]
        return result

    return answer


@asked_once
def counts_of(keep: Tensor) -> list[int]:
    """Count on the host the entries to keep of each row [N, T]; on a GPU this waits for the device."""
    counts: list[int] = keep.sum(1).tolist()
    return counts


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Pick entries of each row.

    Args:
        rows: [N, T, R], contiguous.
        index: [N, J] entries of each row, in 0 to T - 1.

    Returns:
        [N, J, R].
    """
    num_rows, num_tokens = rows.shape[:2]
    # Also of no tokens: then nothing is picked.
    first = torch.arange(0, max(1, num_rows * num_tokens), max(1, num_tokens), device=rows.device)[:, None]
    picked = rows.flatten(0, 1).index_select(0, (index + first).flatten())
    return picked.view(*index.shape, rows.shape[2])


def append_rows(buffer: Tensor, lengths: list[int], rows: Tensor, counts: list[int]) -> None:
    """Write the first `counts[n]` entries of each row behind the first `lengths[n]` of the buffer.

    Args:
        buffer: [N, C, ...], contiguous, changed in place.
        lengths: Entries in use before, of each row.
        rows: [N, T, ...], on any device; entries past a row's count may hold anything.
        counts: Entries of each row to write; `lengths + counts` is at most C.
    """
    alike = len(set(lengths)) == len(set(counts)) == 1
    if alike and buffer.device == rows.device:
        buffer[:, lengths[0] : lengths[0] + counts[0]].copy_(rows[:, : counts[0]], non_blocking=True)
        return
    # Each row is one run of memory, which alone can be copied to the host without waiting for it.
    for target, source, length, count in zip(buffer, rows, lengths, counts, strict=True):
        target[length : length + count].copy_(source[:count], non_blocking=True)


def grown(buffer: Tensor, capacity: int, pinned: bool = False, filled: int = 0) -> Tensor:
    """Return the buffer [N, C, ...] with room for `capacity` entries a row, keeping what it holds.

    New room is zero, but for the first `filled` entries, which the caller writes.
    """
    shape, held = (buffer.shape[0], capacity, *buffer.shape[2:]), buffer.shape[1]
    bigger = empty_pinned(shape, buffer.dtype) if pinned else buffer.new_empty(shape)
    if held:
        bigger[:, :held] = buffer
    bigger[:, max(held, filled) :].zero_()
    return bigger


def put_rows(buffer: Tensor, rows: slice, source: Tensor, others: slice, rest: float = 0) -> None:
    """Overwrite rows of a buffer by rows of another, in place.

    Args:
        buffer: [N, C, ...], changed in `rows` only.
        rows: As many rows as `others`.
        source: [M, c, ...], c <= C.
        others: Rows of the source.
        rest: What the entries behind the first c become.
    """
    width = source.shape[1]
    buffer[rows, :width] = source[others]
    buffer[rows, width:] = rest


def left_aligned(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Order that moves the kept entries of each row to its front, and how many they are.

    Args:
        keep: [N, T] True for entries to keep.

    Returns:
        [N, T] indices (kept entries first, in their order) and [N] counts.
    """
    return kept_first(keep), keep.sum(1)


def kept_first(keep: Tensor) -> Tensor:
    """The order alone [N, T]."""
    return keep.logical_not().view(torch.uint8).argsort(dim=1, stable=True)


def dense_ranks(numbers: Tensor) -> Tensor:
    """Number the different numbers of each row [N, T] from 0 on, the least first: [N, T] below T."""
    ordered, order = numbers.sort(dim=1)
    rank = torch.nn.functional.pad(ordered.diff(dim=1) > 0, (1, 0)).cumsum(1)
    return torch.empty_like(rank).scatter_(1, order, rank)


def count_by_label(labels: Tensor, num_labels: int) -> Tensor:
    """Count how often each label occurs in each row: [N, num_labels], from labels [N, T]."""
    if is_readable(labels):
        row = torch.arange(len(labels), device=labels.device)[:, None]
        flat = (labels + row * num_labels).flatten()
        return torch.bincount(flat, minlength=len(labels) * num_labels).view(len(labels), num_labels)
    # On a GPU bincount waits for the greatest label.
    return torch.zeros(len(labels), num_labels, dtype=torch.int64, device=labels.device).scatter_add_(
        1, labels, torch.ones_like(labels)
    )


def sort_by_label(labels: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """As `louiskv.ops.grouping.group_by_label`, by a sort."""
    whole = torch.where(labels < 0, num_labels, labels)
    sizes = count_by_label(whole, num_labels + 1)[:, :-1]
    # Of small numbers a sort takes fewer passes.
    small = whole.to(torch.int16 if num_labels < 2**15 else torch.int32)
    return small.argsort(dim=1, stable=True), sizes.gather(1, kept_first(sizes > 0))


def sum_by_label(points: Tensor, labels: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """Sum the points of each label, in a fixed order.

    Args:
        points: [N, T, D] float32.
        labels: [N, T] in 0 to num_labels - 1.
        num_labels: Number of labels.

    Returns:
        Sums [N, num_labels, D] and counts [N, num_labels].
    """
    row = torch.arange(len(points), device=points.device)[:, None]
    flat = (labels + row * num_labels).flatten()
    sums = points.new_zeros(len(points) * num_labels, points.shape[2])
    if sums.is_cuda:  # index_add_ would sum in whatever order the threads come; index_put_ sorts first.
        sums.index_put_((flat,), points.flatten(0, 1), accumulate=True)
    else:
        sums.index_add_(0, flat, points.flatten(0, 1))
    return sums.unflatten(0, (len(points), num_labels)), count_by_label(labels, num_labels)
