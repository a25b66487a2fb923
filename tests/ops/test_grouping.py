"""Tokens in the order of their groups, in every implementation."""

import pytest
import torch
from torch import Tensor

from louiskv.ops.grouping import group_by_label
from tests.ops.devices import on_each_device
from tests.ops.implementations import each, on, on_each_instruction_set


def some_labels(num_rows: int, num_tokens: int, num_labels: int) -> Tensor:
    """Labels of which some do not occur; the last tokens of a row have none, and in one row no token has."""
    generator = torch.Generator().manual_seed(num_tokens + num_labels)
    labels = torch.randint(0, num_labels, (num_rows, num_tokens), generator=generator)
    labels = labels.masked_fill(labels % 3 == 1, 0)
    token = torch.arange(num_tokens)
    return labels.masked_fill(token >= num_tokens - torch.arange(num_rows)[:, None], -1)


def by_hand(labels: list[int], num_labels: int) -> tuple[list[int], list[int]]:
    whole = [num_labels if label < 0 else label for label in labels]
    sizes = [whole.count(label) for label in range(num_labels) if label in whole]
    return sorted(range(len(labels)), key=lambda token: whole[token]), sizes + [0] * (num_labels - len(sizes))


@pytest.mark.usefixtures("poisoned_memory")
@each("group_by_label")
@pytest.mark.parametrize("num_labels", [1, 4, 31, 32, 63, 100])
@pytest.mark.parametrize("num_tokens", [1, 15, 17, 63, 130])
def test_tokens_lie_beside_those_of_their_label(impl: str, num_tokens: int, num_labels: int) -> None:
    num_rows = min(3, num_tokens + 1)
    labels = some_labels(num_rows, num_tokens, num_labels)
    wide = torch.stack([labels, labels], dim=-1)[..., 0]
    for given in (labels, wide):
        order, sizes = group_by_label(given, num_labels, impl=impl)
        assert order.dtype == sizes.dtype == torch.int64
        for row, of_row in enumerate(labels.tolist()):
            assert (order[row].tolist(), sizes[row].tolist()) == by_hand(of_row, num_labels)


@on_each_device("group_by_label")
def test_on_each_device(impl: str, device: str) -> None:
    for num_tokens, num_labels in ((32, 4), (2000, 300)):
        labels = some_labels(9, num_tokens, num_labels)
        got = group_by_label(labels.to(device), num_labels, impl=impl)
        for part, expected in zip(got, group_by_label(labels, num_labels, impl="torch"), strict=True):
            assert torch.equal(part.cpu(), expected)


@on_each_instruction_set
def test_on_each_instruction_set(isa: str) -> None:
    labels = some_labels(3, 130, 40)
    with on(isa):
        got = group_by_label(labels, 40, impl="cpu")
    for part, expected in zip(got, group_by_label(labels, 40, impl="torch"), strict=True):
        assert torch.equal(part, expected)
    torch.library.opcheck(torch.ops.louiskv.group_by_label.default, (labels, 40))
