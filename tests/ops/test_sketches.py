"""Sketches of units and of bundles, in every implementation."""

import pytest
import torch
from torch import Tensor

from louiskv.ops.quantize import unpack_bits
from louiskv.ops.sketches import bundle_sketches, sketch_units
from tests.ops.devices import on_each_device
from tests.ops.implementations import each, here, on, on_each_instruction_set
from tests.ops.test_units import units

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RUNS = [(impl, dtype) for dtype in DTYPES for impl in here("sketch_units", dtype)]
# Tokens, numbers of a key and of a value, units.
SHAPES = [(1, 1, 1, 1), (15, 17, 8, 3), (63, 80, 63, 9), (32, 128, 128, 4), (200, 15, 17, 70)]


def tokens(shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values side by side in memory, NaN behind the last unit, and sizes."""
    num_tokens, dim, value_dim, num_units = shape
    rows, sizes = units(num_tokens, dim + value_dim, dtype, num_units)
    keys, values = rows.tensor_split([dim], dim=-1)
    return keys, values, sizes


def check_near(got: Tensor, step: Tensor, mean: Tensor, dtype: torch.dtype) -> None:
    """Codes times steps are the mean, but for half a step and what is lost when the mean and the step are rounded."""
    off = (got.double() * step.double()[..., None] - mean).abs().amax(-1)
    most = mean.abs().amax(-1)
    assert bool((off <= 0.51 / 127 * most + (torch.finfo(dtype).eps + 1e-3) * most + 1e-6).all())


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("impl", "dtype"), RUNS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("index", [torch.int64, torch.int32], ids=str)
def test_sketches_by_hand(impl: str, shape: tuple[int, int, int, int], dtype: torch.dtype, index: torch.dtype) -> None:
    keys, values, sizes = tokens(shape, dtype)
    key_codes, value_codes, steps, bits = sketch_units(keys, values, sizes.to(index), impl=impl)
    assert bits is not None and steps.dtype == torch.float16
    assert bits.shape == (*keys.shape[:2], -(-keys.shape[2] // 8))
    signs = unpack_bits(bits, keys.shape[2])
    for row, of_row in enumerate(sizes.tolist()):
        ends = sizes[row].cumsum(0).tolist()
        for unit, (size, end) in enumerate(zip(of_row, ends, strict=True)):
            if not size:
                assert all(part[row, unit].eq(0).all() for part in (key_codes, value_codes, steps))
                continue
            inside = slice(end - size, end)
            for codes, which, held in ((key_codes, 0, keys), (value_codes, 1, values)):
                check_near(codes[row, unit], steps[row, unit, which], held[row, inside].double().mean(0), dtype)
            off = keys[row, inside].double() - key_codes[row, unit].double() * steps[row, unit, 0].double()
            assert torch.equal(signs[row, inside], off >= 0)
            assert float(steps[row, unit, 2]) == pytest.approx(float(off.abs().mean()), rel=1e-3, abs=1e-6)
    padding = unpack_bits(bits, 8 * bits.shape[2])[..., keys.shape[2] :]
    assert not any(padding[row, : int(end)].any() for row, end in enumerate(sizes.sum(1)))


def check_alike(got: tuple[Tensor | None, ...], expected: tuple[Tensor | None, ...], sizes: Tensor) -> None:
    """Codes may be another by one, where a sum was rounded otherwise; few are, and bits are others only there."""
    key_codes, value_codes, steps, bits = (None if part is None else part.cpu() for part in got)
    for codes, other in ((key_codes, expected[0]), (value_codes, expected[1])):
        assert codes is not None and other is not None and codes.dtype == torch.int8
        off = (codes.int() - other.int()).abs()
        assert int(off.max()) <= 1 and float(off.float().mean()) < 2e-3
    assert steps is not None and expected[2] is not None
    torch.testing.assert_close(steps, expected[2], rtol=2e-3, atol=1e-6)
    assert (bits is None) == (expected[3] is None)
    if bits is not None and expected[3] is not None:
        used = torch.arange(bits.shape[1]) < sizes.sum(1, keepdim=True)
        assert float((bits != expected[3])[used].float().mean()) < 1e-2


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("impl", "dtype"), RUNS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sketches_are_those_of_the_reference(impl: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    keys, values, sizes = tokens(shape, dtype)
    for token_bits in (True, False):
        got = sketch_units(keys, values, sizes, token_bits=token_bits, impl=impl)
        check_alike(got, sketch_units(keys, values, sizes, token_bits=token_bits, impl="torch"), sizes)


@on_each_device("sketch_units", *DTYPES)
def test_sketches_on_each_device(impl: str, device: str, dtype: torch.dtype) -> None:
    for shape in (*SHAPES, (3000, 128, 128, 200)):
        keys, values, sizes = tokens(shape, dtype)
        got = sketch_units(keys.to(device), values.to(device), sizes.to(device), impl=impl)
        check_alike(got, sketch_units(keys, values, sizes, impl="torch"), sizes)


@pytest.mark.usefixtures("poisoned_memory")
@each("sketch_units")
def test_a_unit_is_sketched_alike_wherever_it_lies(impl: str) -> None:
    keys, values, sizes = tokens((200, 15, 17, 70), torch.float32)
    whole = sketch_units(keys, values, sizes, impl=impl)
    begin = sizes.cumsum(1) - sizes
    for row, unit in ((0, 1), (1, 2), (3, 1)):
        first, size = int(begin[row, unit]), int(sizes[row, unit])
        inside, given = slice(first, first + size), sizes[row : row + 1, unit : unit + 1]
        alone = sketch_units(keys[row : row + 1, inside], values[row : row + 1, inside], given, impl=impl)
        for part, other in zip(alone[:3], whole[:3], strict=True):
            assert part is not None and other is not None and torch.equal(part[0, 0], other[row, unit])
        assert alone[3] is not None and whole[3] is not None and torch.equal(alone[3][0], whole[3][row, inside])


def some_sketches(num_units: int, dim: int, value_dim: int) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Sketches of units, of which those behind the last have no size, the sizes, and how many there are in each row."""
    generator = torch.Generator().manual_seed(num_units + dim)
    counts = torch.randint(0, num_units + 1, (5,), generator=generator)
    counts[0], counts[1] = num_units, 0
    sizes = torch.randint(1, 9, (5, num_units), generator=generator, dtype=torch.int32)
    sizes = sizes.masked_fill(torch.arange(num_units) >= counts[:, None], 0)
    codes = torch.randint(-127, 128, (5, num_units, dim + value_dim), generator=generator).to(torch.int8)
    steps = torch.rand(5, num_units, 3, generator=generator).half()
    return (codes[..., :dim].contiguous(), codes[..., dim:].contiguous(), steps), sizes, counts


def bundled_by_hand(sketches: tuple[Tensor, ...], sizes: Tensor, which: int, row: int, units_of: range) -> Tensor:
    """The mean key or value of the tokens of a bundle."""
    of_units = sketches[which][row].double() * sketches[2][row, :, which, None].double()
    total = max(1, int(sizes[row, units_of].sum()))
    return sum((of_units[unit] * int(sizes[row, unit]) / total for unit in units_of), torch.zeros(of_units.shape[1]))


@pytest.mark.usefixtures("poisoned_memory")
@each("bundle_sketches")
@pytest.mark.parametrize(("num_units", "bundle_size"), [(16, 16), (4, 1), (45, 15), (64, 4)])
@pytest.mark.parametrize(("dim", "value_dim"), [(1, 17), (80, 63), (128, 128)])
def test_bundles_by_hand(impl: str, num_units: int, bundle_size: int, dim: int, value_dim: int) -> None:
    sketches, sizes, counts = some_sketches(num_units, dim, value_dim)
    for most in (0, 3, num_units):
        begin = (counts - most).clamp(min=0)
        bundled = tuple(part[:, : num_units // bundle_size].clone().fill_(9) for part in sketches)
        bundle_sketches(sketches, sizes, begin, counts, bundled, most=most, bundle_size=bundle_size, impl=impl)
        for row in range(5):
            for bundle in range(num_units // bundle_size):
                inside = range(bundle * bundle_size, (bundle + 1) * bundle_size)
                if inside.stop <= int(begin[row]) or inside.start >= int(counts[row]):
                    # Nothing has come to it; of these the last one may have been made once more.
                    behind = bundle + 1 >= int(begin[row]) // bundle_size
                    assert behind or all(part[row, bundle].eq(9).all() for part in bundled)
                    continue
                for which in (0, 1):
                    expected = bundled_by_hand(sketches, sizes, which, row, inside)
                    check_near(bundled[which][row, bundle], bundled[2][row, bundle, which], expected, torch.float32)
                assert bundled[2][row, bundle, 2] == 0


@on_each_device("bundle_sketches")
def test_bundles_on_each_device(impl: str, device: str) -> None:
    sketches, sizes, counts = some_sketches(160, 128, 96)
    begin = (counts - 40).clamp(min=0)
    expected = tuple(torch.zeros_like(part[:, :10]) for part in sketches)
    bundle_sketches(sketches, sizes, begin, counts, expected, most=40, bundle_size=16, impl="torch")
    got = tuple(torch.zeros_like(part[:, :10], device=device) for part in sketches)
    there = (tuple(part.to(device) for part in sketches), sizes.to(device), begin.to(device), counts.to(device))
    bundle_sketches(*there, got, most=40, bundle_size=16, impl=impl)
    for part, other in zip(got[:2], expected[:2], strict=True):
        off = (part.cpu().int() - other.int()).abs()
        assert int(off.max()) <= 1 and float(off.float().mean()) < 1e-3
    torch.testing.assert_close(got[2].cpu(), expected[2], rtol=2e-3, atol=1e-6)


@on_each_instruction_set
def test_units_on_each_instruction_set(isa: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        keys, values, sizes = tokens((200, 15, 17, 70), dtype)
        with on(isa):
            got = sketch_units(keys, values, sizes, impl="cpu")
        check_alike(got, sketch_units(keys, values, sizes, impl="torch"), sizes)
    # What lies behind the last unit is not written, so two runs need not give the same.
    known = (keys.nan_to_num(0), values.nan_to_num(0), sizes, True)
    torch.library.opcheck(torch.ops.louiskv.sketch_units.default, known, test_utils=("test_schema", "test_faketensor"))


@on_each_instruction_set
def test_bundles_on_each_instruction_set(isa: str) -> None:
    sketches, sizes, counts = some_sketches(64, 15, 17)
    begin = torch.zeros_like(counts)
    expected, got = (tuple(torch.zeros_like(part[:, :16]) for part in sketches) for _ in range(2))
    bundle_sketches(sketches, sizes, begin, counts, expected, most=64, bundle_size=4, impl="torch")
    with on(isa):
        bundle_sketches(sketches, sizes, begin, counts, got, most=64, bundle_size=4, impl="cpu")
    for part, other in zip(got, expected, strict=True):
        tolerance = 1.0 if part.dtype == torch.int8 else 1e-6
        torch.testing.assert_close(part.float(), other.float(), atol=tolerance, rtol=2e-3)
    known = (*sketches, sizes, counts, counts, *got, 4)
    torch.library.opcheck(torch.ops.louiskv.bundle_sketches.default, known)


@on_each_instruction_set
def test_steps_are_rounded_as_torch_rounds_them(isa: str) -> None:
    # From numbers so small that their step is 0, over subnormal steps, to such as have none.
    rows = torch.logspace(-9, 7.5, 4000)[None, :, None] * 127
    sizes = torch.ones(1, 4000, dtype=torch.int64)
    with on(isa):
        _, _, steps, _ = sketch_units(rows, -rows, sizes, impl="cpu")
    assert torch.equal(steps[..., 0], (rows[..., 0] / 127).half()) and torch.equal(steps[..., 0], steps[..., 1])
