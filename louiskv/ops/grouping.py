"""Tokens in the order of their groups."""

from torch import Tensor

from louiskv.ops.dispatch import choose, implementations
from louiskv.ops.ragged import sort_by_label


def group_by_label(labels: Tensor, num_labels: int, *, impl: str | None = None) -> tuple[Tensor, Tensor]:
    """Put the tokens of a label side by side, the least label first; among themselves they keep their order.

    Args:
        labels: [N, T] int64, from 0 to `num_labels - 1`, and -1 for a token of no group.
        num_labels: Labels that there may be.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, T] int64 tokens in their new order, those of no group behind all others; and [N, num_labels] int64 how many
        each label has, without labels that have none, zeros last.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("group_by_label", GROUP_BY_LABEL, impl, labels)
    order, sizes = function(labels, num_labels)
    return order, sizes


def _group_by_label(labels: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    return sort_by_label(labels, num_labels)


GROUP_BY_LABEL = implementations("grouping", _group_by_label, ("triton", "cpu"))
