"""Scores, the choice of units and the change of slots in Triton against the reference."""

import pytest
import torch
from torch import Tensor

from louiskv.ops import selection as ops
from louiskv.ops.quantize import pack_bits, to_int8

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Twice what the dtype rounds the sum of a product to, for logits of order 1: the reference in float32 is compared to.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
KINDS = ("dot", "sketch", "bound", "one_bit")
SIZES = (1, 15, 17, 63)


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator_of(seed + sum(shape))).to(DEVICE)


def integers(most: int, *shape: int, dtype: torch.dtype = torch.int32, least: int = 0, seed: int = 0) -> Tensor:
    drawn = torch.randint(least, most + 1, shape, generator=generator_of(seed + sum(shape)), dtype=dtype)
    return drawn.to(DEVICE)


def wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.is_floating_point else tensor


def summaries_of(kind: str, num_units: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    if kind == "dot":  # A view with room behind.
        return (normal(2, num_units + 2, dim + 8).to(dtype)[:, :num_units, :dim],)
    if kind == "sketch":
        codes, steps = to_int8(normal(2, num_units, dim))
        return codes, codes[..., :3], torch.stack([steps, steps * torch.nan, steps], dim=-1)
    if kind == "bound":
        low, high = normal(2, 2, num_units, dim).sort(dim=0).values
        return (torch.cat([high, low], dim=-1).to(dtype),)
    bits = pack_bits(normal(2, 3 * num_units, dim) > 0)
    return bits, torch.cat([normal(2, num_units, dim).abs(), normal(2, num_units, dim, seed=1)], dim=-1).to(dtype)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_units", "group_size", "dim"), [(1, 1, 64), (15, 3, 80), (17, 4, 128), (63, 8, 96), (17, 4, 256), (15, 17, 20)]
)
def test_unit_logits(kind: str, dtype: torch.dtype, num_units: int, group_size: int, dim: int) -> None:
    query = normal(2, group_size, dim).to(dtype)
    summaries = summaries_of(kind, num_units, dim, dtype)
    got = ops.unit_logits(query, summaries, kind=kind, scaling=dim**-0.5, impl="triton")
    reference = (query.float(), tuple(wide(part) for part in summaries))
    expected = ops.unit_logits(*reference, kind=kind, scaling=dim**-0.5, impl="torch")
    torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_unit_logits_of_the_rows_that_are_asked_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    query, summaries = normal(2, 4, 64), summaries_of(kind, 17, 64, torch.float32)
    where = torch.tensor([False, True], device=DEVICE)
    got = ops.unit_logits(query, summaries, kind=kind, scaling=0.2, where=where, impl="triton")
    expected = ops.unit_logits(query, summaries, kind=kind, scaling=0.2, impl="torch")
    assert got[0].eq(0).all()
    torch.testing.assert_close(got[1], expected[1], atol=2e-5, rtol=2e-5)


def scored(num_units: int, group_size: int, dtype: torch.dtype = torch.int32) -> tuple[Tensor, Tensor]:
    """Logits, as a view, and sizes; where there is no unit NaN."""
    logits = 3 * normal(3, num_units, group_size + 1)[..., :group_size].transpose(1, 2)
    sizes = integers(3, 3, num_units, dtype=dtype)
    sizes[2] = 0
    return logits.masked_fill((sizes == 0)[:, None], torch.nan), sizes


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("num_units", [*SIZES, 300])
@pytest.mark.parametrize(
    ("group_size", "dtype"), [(1, torch.int64), (3, torch.int32), (4, torch.int32), (8, torch.int64)]
)
@pytest.mark.parametrize("with_beside", [False, True])
def test_unit_shares(num_units: int, group_size: int, dtype: torch.dtype, with_beside: bool) -> None:
    logits, sizes = scored(num_units, group_size, dtype)
    beside = normal(3, group_size) if with_beside else None
    got = ops.unit_shares(logits, sizes, beside, impl="triton")
    expected = ops.unit_shares(logits.nan_to_num(0.0), sizes, beside, impl="torch")
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("reduce", ops.REDUCES)
@pytest.mark.parametrize("num_units", [1, 17, 300])
@pytest.mark.parametrize("group_size", [1, 3, 8])
def test_agree(reduce: str, num_units: int, group_size: int) -> None:
    logits, sizes = scored(num_units, 1 if reduce == "query_mean" else group_size)
    logits[0, 0] = -torch.inf if reduce == "share_mean" else logits[0, 0]
    got = ops.agree(logits, sizes, reduce, impl="triton")
    expected = ops.agree(logits.nan_to_num(0.0, neginf=-torch.inf), sizes, reduce, impl="torch")
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("reduce", ops.REDUCES)
def test_agree_in_the_rows_that_are_asked_for(reduce: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    logits, sizes = normal(2, 1, 17), integers(3, 2, 17)
    where = torch.tensor([True, False], device=DEVICE)
    got = ops.agree(logits, sizes, reduce, where=where, impl="triton")
    assert got[1].eq(0).all()
    torch.testing.assert_close(got[0], ops.agree(logits, sizes, reduce, impl="torch")[0], atol=2e-5, rtol=2e-5)


def test_partial_sums_of_many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    # As many units as make parts of several blocks.
    logits, sizes = normal(1, 2, 70_000), integers(3, 1, 70_000)
    got = ops.unit_shares(logits, sizes, impl="triton")
    torch.testing.assert_close(got, ops.unit_shares(logits, sizes, impl="torch"), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("num_units", SIZES)
@pytest.mark.parametrize(("dtype", "few_scores"), [(torch.int32, False), (torch.int64, True)])
def test_select_units(num_units: int, dtype: torch.dtype, few_scores: bool) -> None:
    scores, sizes = normal(4, num_units), integers(9, 4, num_units, dtype=dtype)
    if few_scores:
        scores = scores.round()
        scores[:, ::3], scores[:, 1::5] = -torch.inf, torch.inf
    total = sizes.sum(1)
    budget = torch.stack([total // 2, total + 5, total * 0 - 4, total.clamp(max=1)]).diagonal()
    assert torch.equal(
        ops.select_units(scores, sizes, budget, impl="triton"), ops.select_units(scores, sizes, budget, impl="torch")
    )
    for number in (7, 10**12):
        assert torch.equal(
            ops.select_units(scores, sizes, number, impl="triton"),
            ops.select_units(scores, sizes, number, impl="torch"),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_select_units_by_scores_of_little_precision_and_some_that_are_none(dtype: torch.dtype) -> None:
    scores, sizes = normal(2, 17).to(dtype), integers(3, 2, 17)
    scores[0, 3], scores[0, 5], scores[1, ::2], scores[1, 1] = torch.nan, -torch.nan, 0.0, -0.0
    for budget in (0, 1, 5, 9, 14, 40):
        assert torch.equal(
            ops.select_units(scores, sizes, budget, impl="triton"),
            ops.select_units(scores, sizes, budget, impl="torch"),
        )


def test_select_among_more_units_than_are_kept_in_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("louiskv.ops.selection_triton.WHOLE", 100)
    monkeypatch.setattr("louiskv.ops.selection_triton.BLOCK", 64)
    scores, sizes = normal(2, 200).round(), integers(5, 2, 200)
    budget = torch.tensor([170, 390], device=DEVICE)
    where = torch.tensor([True, False], device=DEVICE)
    got = ops.select_units(scores, sizes, budget, where=where, impl="triton")
    expected = ops.select_units(scores, sizes, budget, impl="torch")
    assert torch.equal(got[0], expected[0])
    assert torch.equal(ops.select_units(scores, sizes, budget, impl="triton"), expected)


@pytest.mark.parametrize("num_units", SIZES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_places_of(num_units: int, dtype: torch.dtype) -> None:
    held = integers(4, 3, num_units, dtype=dtype)
    held[1] = 0
    held[0, 0] = 1
    take = torch.minimum(held, integers(4, 3, num_units, dtype=dtype, seed=1))
    offsets = (held.cumsum(1) - held).to(dtype)
    for width in (1, 40, 300):
        (place, unit), (expected, of_units) = (ops.places_of(take, offsets, width, impl=i) for i in ("triton", "torch"))
        assert place.dtype == unit.dtype == torch.int64
        assert torch.equal(place, expected) and torch.equal(unit, of_units)


@pytest.mark.parametrize("num_slots", [*SIZES, 1100])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_assign_slots(num_slots: int, dtype: torch.dtype) -> None:
    num_places = 2 * num_slots
    slots = torch.full((3, num_slots), -1, dtype=torch.int32, device=DEVICE)
    for seed in range(3):
        order = torch.stack([torch.randperm(num_places, generator=generator_of(10 * seed + row)) for row in range(3)])
        wanted = torch.cat([order[:, :num_slots], torch.full((3, 5), -1)], dim=1).to(DEVICE, dtype)
        wanted[1, : num_slots // 2], wanted[2] = -1, -1 if seed == 1 else wanted[2]
        wanted = wanted[:, torch.randperm(num_slots + 5, generator=generator_of(seed))]
        (place, missing), (expected, filled) = (
            ops.assign_slots(slots, wanted, impl=impl) for impl in ("triton", "torch")
        )
        assert place.dtype == torch.int32 and missing.dtype == torch.bool
        assert torch.equal(place, expected) and torch.equal(missing, filled)
        slots = place


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("group_size", "dim", "num_tokens"), [(1, 64, 1), (3, 80, 15), (4, 20, 63), (8, 128, 17)])
def test_score_tokens(dtype: torch.dtype, group_size: int, dim: int, num_tokens: int) -> None:
    query, shares = normal(2, group_size, dim).to(dtype), normal(2, group_size, 5)
    shares[:, 0, 2], shares[:, :, 3] = -torch.inf, -torch.inf
    bits, steps = pack_bits(normal(2, 9, dim) > 0), normal(2, 5, 3).abs()[..., 2]
    unit, place = integers(4, 2, num_tokens, dtype=torch.int64), integers(8, 2, num_tokens, dtype=torch.int64)
    got = ops.score_tokens(query, shares, bits, steps, unit, place, scaling=0.1, impl="triton")
    expected = ops.score_tokens(query.float(), shares, bits, steps, unit, place, scaling=0.1, impl="torch")
    torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
