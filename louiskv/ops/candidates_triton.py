"""What is left of units, in Triton."""

import triton
import triton.language as tl
from torch import Tensor

from louiskv.ops.triton_functions import first_over
from louiskv.ops.triton_runtime import dense, kernel


@kernel(
    checks=tuple(
        {"place": whole, "offsets": "*i32", "counts": "*i64", "left": whole}
        | dict.fromkeys(("place_row", "offsets_row", "num_places", "num_units", "halvings"), "i32")
        for whole in ("*i32", "*i64")
    ),
    configs=({"block": 256, "num_warps": 4, "num_stages": 1},),
)
@triton.jit(do_not_specialize=["place_row", "offsets_row", "num_places", "num_units", "halvings"])
def _take_out(
    place: tl.tensor,
    offsets: tl.tensor,
    counts: tl.tensor,
    left: tl.tensor,
    place_row: tl.tensor,
    offsets_row: tl.tensor,
    num_places: tl.tensor,
    num_units: tl.tensor,
    halvings: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Take some tokens out of their units; whole numbers add up to the same in any order."""
    row = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * block + tl.arange(0, block)
    at = tl.load(place + row * place_row + number, mask=number < num_places, other=-1).to(tl.int64)
    count = tl.load(counts + row).to(tl.int32)
    unit = first_over(offsets + row * offsets_row, count, halvings, at) - 1
    one = tl.full([block], -1, left.dtype.element_ty)
    tl.atomic_add(left + row * num_units + unit, one, mask=(at >= 0) & (unit >= 0), sem="relaxed")


def count_rest(place: Tensor, sizes: Tensor, units: tuple[Tensor, Tensor, Tensor | None, int]) -> Tensor:
    """Twin of the reference."""
    num_rows, num_units = sizes.shape
    place, offsets, counts = dense(place), dense(units[0]), dense(units[1])
    left = sizes.new_empty(sizes.shape)
    left.copy_(sizes)
    strides = (place.stride(0), offsets.stride(0), place.shape[1], num_units, num_units.bit_length())
    _take_out[num_rows, triton.cdiv(place.shape[1], 256)](place, offsets, counts, left, *strides)
    return left
