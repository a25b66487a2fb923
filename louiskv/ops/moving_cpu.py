"""Tokens on the way, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_append_token = torch.ops.louiskv.append_token.default
_fetch_rows = torch.ops.louiskv.fetch_rows.default
_store_rows = torch.ops.louiskv.store_rows.default


def append_token(
    rows: Tensor, bias: Tensor, lengths: Tensor, keys: Tensor, values: Tensor, num_sinks: int, window: int
) -> None:
    """As `louiskv.ops.moving.append_token`."""
    _append_token(rows, bias, lengths, keys, values, num_sinks, window)


def fetch_rows(source: Tensor, place: Tensor, missing: Tensor, target: Tensor) -> None:
    """As `louiskv.ops.moving.fetch_rows`."""
    _fetch_rows(source, place, missing, target)


def store_rows(target: Tensor, lengths: Tensor, rows: Tensor, counts: Tensor) -> None:
    """As `louiskv.ops.moving.store_rows`."""
    _store_rows(target, lengths, rows, counts)


@native.fake("append_token")
@native.fake("fetch_rows")
@native.fake("store_rows")
def _nothing(*_arguments: object) -> None:
    return None
