"""Tokens in the order of their groups, in Triton: few labels are looked for among the tokens of a row, all at once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.ragged import sort_by_label
from louiskv.ops.triton_runtime import dense, kernel

# Labels that are looked for, the one of no group included: of more, a sort is quicker. Tokens looked at together.
MOST_LABELS, MOST_TOKENS = 32, 64


@kernel(
    checks=(
        {"labels": "*i64", "order": "*i64", "sizes": "*i64", "num_tokens": "i32", "num_labels": "i32"}
        | {"label_block": 32, "block": 64},
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
    label_block: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Place the tokens of one row; what has no label counts for the one behind the last."""
    row = tl.program_id(0).to(tl.int64)
    label, lane = tl.arange(0, label_block), tl.arange(0, block)
    labels, order = labels + row * num_tokens, order + row * num_tokens
    sizes_of = tl.zeros([label_block, block], tl.int32)
    for start in range(0, num_tokens, block):
        found = tl.load(labels + start + lane, mask=start + lane < num_tokens, other=num_labels + 1).to(tl.int32)
        found = tl.where(found < 0, num_labels, found)
        sizes_of += (label[:, None] == found[None]).to(tl.int32)
    size = tl.sum(sizes_of, 1)
    place = tl.cumsum(size, 0) - size
    for start in range(0, num_tokens, block):
        token = start + lane
        found = tl.load(labels + token, mask=token < num_tokens, other=num_labels + 1).to(tl.int32)
        found = tl.where(found < 0, num_labels, found)
        is_of = ((label[:, None] == found[None]) & (label <= num_labels)[:, None]).to(tl.int32)
        at = place[:, None] + tl.cumsum(is_of, 1) - 1
        tl.store(order + at, (token[None] + at * 0).to(tl.int64), mask=is_of != 0)
        place += tl.sum(is_of, 1)
    # Labels that have tokens come first.
    is_label = label < num_labels
    occupied = (is_label & (size > 0)).to(tl.int32)
    rank = tl.cumsum(occupied, 0) - occupied
    column = tl.where(occupied != 0, rank, tl.sum(occupied, 0) + label - rank)
    tl.store(sizes + row * num_labels + column, size.to(tl.int64), mask=is_label)


def group_by_label(labels: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """Twin of the reference, for few labels."""
    if num_labels >= MOST_LABELS:
        return sort_by_label(labels, num_labels)
    num_rows, num_tokens = labels.shape
    order, labels = torch.empty(num_rows, num_tokens, dtype=torch.int64, device=labels.device), dense(labels)
    sizes = order.new_empty(num_rows, num_labels)
    block = min(MOST_TOKENS, triton.next_power_of_2(num_tokens))
    _group[num_rows,](labels, order, sizes, num_tokens, num_labels, triton.next_power_of_2(num_labels + 1), block)
    return order, sizes
