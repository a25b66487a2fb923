"""Sketches: mean key and mean value of a unit in 8 bits, one bit a channel of each key, and the means of bundles."""

import torch
from torch import Tensor

from louiskv.ops.dispatch import choose, implementations
from louiskv.ops.quantize import pack_bits, to_int8
from louiskv.ops.ragged import sum_by_label, take_rows, width_of
from louiskv.ops.units import summarise_units, unit_of_place


def sketch_units(
    keys: Tensor, values: Tensor, sizes: Tensor, *, token_bits: bool = True, impl: str | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Sketch units, and their tokens.

    Args:
        keys: [N, T, D], tokens in the order of their units; the last dimension is dense.
        values: [N, T, Dv], likewise.
        sizes: [N, U], rows summing to at most T.
        token_bits: Whether tokens are sketched.
        impl: Implementation; None takes the best that can run.

    Returns:
        Codes of the mean key [N, U, D] int8 and of the mean value [N, U, Dv] int8; [N, U, 3] float16 the steps of both,
        and how far a number of a key is from the mean of its unit, on average; zeros for a unit without tokens. And
        [N, T, ceil(D / 8)] uint8 which numbers of a key are not below that mean, anything behind the last unit.

        The means are rounded to the dtype of the rows before they are to 8 bits. Where a sum is rounded otherwise, a
        code may be another by one.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("sketch_units", SKETCH_UNITS, impl, keys)
    key_codes, value_codes, steps, bits = function(keys, values, sizes, token_bits)
    return key_codes, value_codes, steps, bits


def _sketch_units(
    keys: Tensor, values: Tensor, sizes: Tensor, token_bits: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    key_codes, key_steps = to_int8(summarise_units(keys, sizes, "mean", impl="torch"))
    value_codes, value_steps = to_int8(summarise_units(values, sizes, "mean", impl="torch"))
    num_units, unit = sizes.shape[1], unit_of_place(sizes, keys.shape[1])
    # Behind the last unit there may be anything.
    centre = torch.nn.functional.pad(key_codes.float() * key_steps.float()[..., None], (0, 0, 0, 1))
    off = (keys.float() - take_rows(centre, unit)).masked_fill((unit == num_units)[..., None], 0.0)
    sums, _ = sum_by_label(off.abs().mean(-1, keepdim=True), unit, num_units + 1)
    spread = sums[:, :-1, 0] / sizes.clamp(min=1)
    steps = torch.stack([key_steps, value_steps, spread.half()], dim=-1)
    return key_codes, value_codes, steps, pack_bits(off >= 0) if token_bits else None


def bundle_sketches(
    sketches: tuple[Tensor, ...],
    sizes: Tensor,
    begin: Tensor,
    counts: Tensor,
    bundled: tuple[Tensor, ...],
    *,
    most: int,
    bundle_size: int,
    impl: str | None = None,
) -> None:
    """Sketch anew the bundles of consecutive units in which some have come, by their sketches; in place.

    Args:
        sketches: Of units, as `sketch_units` makes them: codes [N, U, D] and [N, U, Dv], and steps [N, U, 3].
        sizes: [N, U] tokens of the units, 0 for one that there is not.
        begin: [N] int64, the first unit that has come.
        counts: [N] int64, one more than the last.
        bundled: [N, U / bundle_size, ...] each, changed: the means over the tokens of a bundle; no bit stands for
            anything there, so the last step is 0.
        most: Units that have come to a row at the most.
        bundle_size: Units of a bundle.
        impl: Implementation; None takes the best that can run.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    function = choose("bundle_sketches", BUNDLE_SKETCHES, impl, counts)
    function(*sketches, sizes, begin, counts, *bundled, most, bundle_size)


def _bundle_sketches(
    key_codes: Tensor,
    value_codes: Tensor,
    steps: Tensor,
    sizes: Tensor,
    begin: Tensor,
    counts: Tensor,
    bundled_keys: Tensor,
    bundled_values: Tensor,
    bundled_steps: Tensor,
    most: int,
    bundle_size: int,
) -> None:
    first, behind = begin // bundle_size, -(-counts // bundle_size)
    width = width_of(behind - first, most // bundle_size + 2)
    # Where fewer have come to a row, others are made once more.
    bundle = first[:, None] + torch.arange(width, device=begin.device)
    bundle = bundle.clamp(max=max(0, bundled_steps.shape[1] - 1))
    unit = (bundle[..., None] * bundle_size + torch.arange(bundle_size, device=begin.device)).flatten(1)
    weights = sizes.gather(1, unit).float().unflatten(1, (width, bundle_size))[..., None]
    total = weights.sum(2).clamp(min=1)
    steps_of = take_rows(steps, unit).float().unflatten(1, (width, bundle_size))
    made = []
    for codes, which in ((key_codes, 0), (value_codes, 1)):
        means = take_rows(codes, unit).float().unflatten(1, (width, bundle_size)) * steps_of[..., which, None]
        made.append(to_int8((means * weights).sum(2) / total))
    (keys, key_steps), (values, value_steps) = made
    new = (keys, values, torch.stack([key_steps, value_steps, torch.zeros_like(key_steps)], dim=-1))
    for held, part in zip((bundled_keys, bundled_values, bundled_steps), new, strict=True):
        held.scatter_(1, bundle[..., None].expand_as(part), part)


SKETCH_UNITS = implementations("sketches", _sketch_units, ("triton", "cpu"))
BUNDLE_SKETCHES = implementations("sketches", _bundle_sketches, ("triton", "cpu"))
