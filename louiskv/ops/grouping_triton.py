"""Tokens in the order of their groups, in Triton: some labels are looked for among all tokens of a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.ragged import left_aligned
from louiskv.ops.triton_runtime import dense, kernel

# Labels that one program looks for, and tokens among which it looks at once, at the most.
MOST_LABELS, MOST_TOKENS = 32, 64


@kernel(
    checks=tuple(
        {"labels": "*i64", "order": "*i64", "sizes": "*i64", "num_tokens": "i32", "num_labels": "i32"}
        | {"at_once": at_once, "label_block": 32, "block": 64}
        for at_once in (False, True)
    ),
    configs=({"num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["num_tokens", "num_labels"])
def _group(
    labels: tl.tensor,
    order: tl.tensor,
    sizes: tl.tensor,
    num_tokens: tl.tensor,
    num_labels: tl.tensor,
    at_once: tl.constexpr,
    label_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Place the tokens of some labels of one row; what has none counts for the label behind the last."""
    row, first = tl.program_id(1).to(tl.int64), tl.program_id(0) * label_block
    label, lane = first + tl.arange(0, label_block), tl.arange(0, block)
    labels, order = labels + row * num_tokens, order + row * num_tokens
    sizes_of, before = tl.zeros([label_block, block], tl.int32), tl.zeros([block], tl.int32)
    for start in range(0, num_tokens, block):
        found = tl.load(labels + start + lane, mask=start + lane < num_tokens, other=num_labels + 1).to(tl.int32)
        found = tl.where(found < 0, num_labels, found)
        sizes_of += (label[:, None] == found[None]).to(tl.int32)
        before += (found < first).to(tl.int32)
    size = tl.sum(sizes_of, 1)
    place = tl.sum(before, 0) + tl.cumsum(size, 0) - size
    for start in range(0, num_tokens, block):
        token = start + lane
        found = tl.load(labels + token, mask=token < num_tokens, other=num_labels + 1).to(tl.int32)
        found = tl.where(found < 0, num_labels, found)
        is_of = ((label[:, None] == found[None]) & (label <= num_labels)[:, None]).to(tl.int32)
        at = place[:, None] + tl.cumsum(is_of, 1) - 1
        tl.store(order + at, (token[None] + at * 0).to(tl.int64), mask=is_of != 0)
        place += tl.sum(is_of, 1)
    is_label, column = label < num_labels, label
    if at_once:
        # All labels are here: those that have tokens come first.
        occupied = (is_label & (size > 0)).to(tl.int32)
        rank = tl.cumsum(occupied, 0) - occupied
        column = tl.where(occupied != 0, rank, tl.sum(occupied, 0) + label - rank)
    tl.store(sizes + row * num_labels + column, size.to(tl.int64), mask=is_label)


def group_by_label(labels: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """Twin of the reference."""
    num_rows, num_tokens = labels.shape
    order, labels = torch.empty(num_rows, num_tokens, dtype=torch.int64, device=labels.device), dense(labels)
    sizes = order.new_empty(num_rows, num_labels)
    label_block = min(MOST_LABELS, triton.next_power_of_2(num_labels + 1))
    block = min(MOST_TOKENS, triton.next_power_of_2(num_tokens))
    num_parts = triton.cdiv(num_labels + 1, label_block)
    _group[num_parts, num_rows](labels, order, sizes, num_tokens, num_labels, num_parts == 1, label_block, block)
    if num_parts == 1:
        return order, sizes
    occupied, _ = left_aligned(sizes > 0)
    return order, sizes.gather(1, occupied)
