"""Sketches of units and of bundles, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_sketch_units = torch.ops.louiskv.sketch_units.default
_bundle_sketches = torch.ops.louiskv.bundle_sketches.default


def sketch_units(
    keys: Tensor, values: Tensor, sizes: Tensor, token_bits: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """As `louiskv.ops.sketches.sketch_units`."""
    keys, values = (rows if rows.stride(-1) == 1 else rows.contiguous() for rows in (keys, values))
    key_codes, value_codes, steps, bits = _sketch_units(keys, values, sizes, token_bits)
    return key_codes, value_codes, steps, bits if token_bits else None


def bundle_sketches(
    key_codes: Tensor,
    value_codes: Tensor,
    steps: Tensor,
    sizes: Tensor,
    begin: Tensor,
    counts: Tensor,
    bundled_keys: Tensor,
    bundled_values: Tensor,
    bundled_steps: Tensor,
    _most: int,
    bundle_size: int,
) -> None:
    """As `louiskv.ops.sketches.bundle_sketches`."""
    bundled = (bundled_keys, bundled_values, bundled_steps)
    _bundle_sketches(key_codes, value_codes, steps, sizes, begin, counts, *bundled, bundle_size)


@native.fake("sketch_units")
def _like_sketch_units(keys: Tensor, values: Tensor, sizes: Tensor, token_bits: bool) -> tuple[Tensor, ...]:
    codes = (keys.new_empty(*sizes.shape, rows.shape[2], dtype=torch.int8) for rows in (keys, values))
    num_rows, num_tokens, dim = keys.shape
    bits = keys.new_empty(num_rows if token_bits else 0, num_tokens, -(-dim // 8), dtype=torch.uint8)
    return *codes, keys.new_empty(*sizes.shape, 3, dtype=torch.float16), bits


@native.fake("bundle_sketches")
def _nothing(*_arguments: object) -> None:
    return None
