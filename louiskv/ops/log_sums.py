"""How much a query attends to some keys altogether, without attending to them."""

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations


def log_sums(
    query: Tensor,
    keys: Tensor,
    bias: Tensor,
    *,
    scaling: float,
    attention_sinks: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Log-sum-exp of the logits that each query head gives to some keys, and of its attention sink.

    Args:
        query: [N, G, D].
        keys: [N, L, D] in the dtype of the query; finite also where the bias is -inf.
        bias: [N, 1, L], added to the logits; -inf closes a key.
        scaling: Factor of the logits.
        attention_sinks: [N, G], a learned logit of each query head; None for none.
        impl: Implementation; None takes the best that can run.

    Returns:
        [N, G] float32; -inf of nothing.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("log_sums", LOG_SUMS, impl, query)
    sums: Tensor = function(query, keys, bias, scaling, attention_sinks)
    return sums


def _log_sums(query: Tensor, keys: Tensor, bias: Tensor, scaling: float, attention_sinks: Tensor | None) -> Tensor:
    logits = torch.bmm(query * scaling, keys.transpose(1, 2)).float() + bias
    if attention_sinks is not None:
        logits = torch.cat([logits, attention_sinks.float()[..., None]], dim=-1)
    return logits.logsumexp(-1)


LOG_SUMS = implementations("log_sums", _log_sums, ("triton", "cpu"))
