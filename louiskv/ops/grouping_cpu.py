"""Tokens in the order of their groups, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_group_by_label = torch.ops.louiskv.group_by_label.default


def group_by_label(labels: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """As `louiskv.ops.grouping.group_by_label`."""
    order, sizes = _group_by_label(labels, num_labels)
    return order, sizes


@native.fake("group_by_label")
def _like_group_by_label(labels: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    return labels.new_empty(labels.shape), labels.new_empty(len(labels), num_labels)
