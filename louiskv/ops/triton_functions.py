"""Functions that kernels in Triton share."""

import triton
import triton.language as tl

from louiskv.ops.triton_runtime import INTERPRETED

NONE = tl.constexpr(float("-inf"))
# The interpreter cannot multiply in bfloat16.
WIDE = tl.constexpr(INTERPRETED)


@triton.jit
def operand(tile: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """A tile in the dtype in which products are taken."""
    if WIDE:
        return tile.to(tl.float32)
    else:  # noqa: RET505 (a branch that is not taken must not be compiled)
        return tile.to(dtype)


@triton.jit
def product(left: tl.tensor, right: tl.tensor) -> tl.tensor:
    """Matrix product in float32; that of float32 by three products of tensor cores, nearly exact."""
    return tl.dot(left, right, input_precision="tf32x3")


@triton.jit
def capped(logits: tl.tensor, softcap: tl.tensor) -> tl.tensor:
    """`softcap * tanh(logits / softcap)`; as they are where there is no softcap."""
    if softcap is None:
        return logits
    else:  # noqa: RET505
        shrunk = tl.exp(-2.0 * tl.abs(logits / softcap))
        size = softcap * (1.0 - shrunk) / (1.0 + shrunk)
        return tl.where(logits < 0.0, -size, size)


@triton.jit
def finite(top: tl.tensor) -> tl.tensor:
    """A maximum to subtract: 0 where there was nothing."""
    return tl.where(top == NONE, 0.0, top)


@triton.jit
def logarithm(total: tl.tensor) -> tl.tensor:
    """Logarithm of sums that are not negative, -inf of 0."""
    return tl.where(total > 0.0, tl.log(tl.where(total > 0.0, total, 1.0)), NONE)


@triton.jit
def is_asked(where: tl.tensor, row: tl.tensor) -> tl.tensor:
    """Whether a row is asked for, of flags [N] in bytes or None for all."""
    if where is None:
        return True
    else:  # noqa: RET505
        return tl.load(where + row) != 0
