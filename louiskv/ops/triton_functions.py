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
    else:
        return tile.to(dtype)


@triton.jit
def rounded(tile: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """What is left of numbers of float32 that were rounded to a dtype, in float32."""
    if WIDE and dtype == tl.bfloat16:
        # The interpreter cuts off where the nearest is asked for.
        bits = tile.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits & -0x10000).to(tl.float32, bitcast=True)
    else:
        return tile.to(dtype).to(tl.float32)


@triton.jit
def product(left: tl.tensor, right: tl.tensor) -> tl.tensor:
    """Matrix product in float32; that of float32 by three products of tensor cores, nearly exact."""
    return tl.dot(left, right, input_precision="tf32x3")


@triton.jit
def capped(logits: tl.tensor, softcap: tl.tensor) -> tl.tensor:
    """`softcap * tanh(logits / softcap)`; as they are where there is no softcap."""
    if softcap is None:
        return logits
    else:
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
def weighed(scores: tl.tensor, top: tl.tensor, total: tl.tensor) -> tl.tensor:
    """Go on with a softmax: the greatest score, the sum, what remains of former weights, and those of the scores."""
    higher = tl.maximum(top, tl.max(scores, 1))
    base = finite(higher)
    kept = tl.exp(top - base)
    weights = tl.exp(scores - base[:, None])
    return higher, total * kept + tl.sum(weights, 1), kept, weights


@triton.jit
def log_sum(logits: tl.tensor) -> tl.tensor:
    """Log-sum-exp over the first dimension."""
    top = finite(tl.max(logits, 0))
    return top + logarithm(tl.sum(tl.exp(logits - top[None]), 0))


@triton.jit
def order_of(scores: tl.tensor) -> tl.tensor:
    """Integers in the order of the scores: equal for equal ones, NaN above all, none the least or the greatest."""
    # Zero has two signs and NaN many forms.
    bits = (scores + 0.0).to(tl.int32, bitcast=True)
    bits = tl.where(scores != scores, 0x7FC00000, bits)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def first_over(ordered: tl.tensor, size: tl.tensor, halvings: tl.tensor, value: tl.tensor) -> tl.tensor:
    """The first of ascending entries that is over a value, or `size`; halved `size.bit_length()` times."""
    low = tl.zeros_like(value).to(tl.int32)
    high = low + size
    for _ in range(halvings):
        middle = (low + high) // 2
        searching = low < high
        is_right = tl.load(ordered + middle, mask=searching, other=0) <= value
        low = tl.where(searching & is_right, middle + 1, low)
        high = tl.where(searching & (is_right == 0), middle, high)
    return low
