"""How much a query attends to some keys altogether, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_log_sums = torch.ops.louiskv.log_sums.default


def log_sums(query: Tensor, keys: Tensor, bias: Tensor, scaling: float, attention_sinks: Tensor | None) -> Tensor:
    """As `louiskv.ops.log_sums.log_sums`; closed keys are not read."""
    sums: Tensor = _log_sums(query, keys, bias, scaling, attention_sinks)
    return sums


@native.fake("log_sums")
def _like_log_sums(query: Tensor, *_others: object) -> Tensor:
    return query.new_empty(query.shape[:2], dtype=torch.float32)
