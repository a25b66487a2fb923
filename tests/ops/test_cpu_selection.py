"""Scores and choices in C++ against their specifications, on each instruction set."""

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from louiskv.ops import selection as ops
from louiskv.ops.quantize import pack_bits, to_int8
from tests.ops.implementations import on, on_each_instruction_set, on_the_best_instruction_set

# Tolerance by dtype against the specification in float32 on the same inputs, for logits of order 1.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-5}
SIZES = [1, 15, 17, 63, 500]
SHAPES = [(1, 1, 64), (2, 3, 80), (3, 4, 96), (1, 8, 128), (2, 3, 256), (2, 6, 10), (1, 5, 33)]


def summaries_of(kind: str, num_rows: int, num_units: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Summaries of units, each in memory that is NaN or anything behind them."""

    def behind(part: Tensor) -> Tensor:
        room = part.new_empty(num_rows, part.shape[1] + 2, part.shape[2] + 3)
        room.fill_(torch.nan if part.is_floating_point() else 77)
        room[:, : part.shape[1], : part.shape[2]] = part
        return room[:, : part.shape[1], : part.shape[2]]

    keys = torch.randn(num_rows, num_units, dim)
    if kind == "dot":
        return (behind(keys.to(dtype)),)
    if kind == "bound":
        return (behind(torch.cat([keys + torch.rand_like(keys), keys], dim=-1).to(dtype)),)
    if kind == "sketch":
        codes, steps = to_int8(keys)
        return behind(codes), codes, behind(torch.stack([steps] * 3, dim=-1))
    shared = next(size for size in (5, 3, 1) if num_units % size == 0)
    scales = torch.randn(num_rows, num_units // shared, 2 * dim).to(dtype)
    return behind(pack_bits(keys > 0)), behind(scales)


@on_each_instruction_set
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["dot", "bound", "sketch", "one_bit"])
def test_logits(isa: str, dtype: torch.dtype, shape: tuple[int, int, int], kind: str) -> None:
    num_rows, group_size, dim = shape
    torch.manual_seed(dim)
    query = torch.randn(num_rows, dim, group_size).to(dtype).transpose(1, 2)
    for num_units in SIZES:
        summaries = summaries_of(kind, num_rows, num_units, dim, dtype)
        exact = tuple(part.float() if part.dtype == dtype else part for part in summaries)
        scaling = dim**-0.5
        expected = ops.unit_logits(query.float(), exact, kind=kind, scaling=scaling, impl="torch")
        where = torch.rand(num_rows) < 0.5
        with on(isa):
            got = ops.unit_logits(query, summaries, kind=kind, scaling=scaling, impl="cpu")
            some = ops.unit_logits(query, summaries, kind=kind, scaling=scaling, where=where, impl="cpu")
        torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        assert torch.equal(some[where], got[where])


@on_each_instruction_set
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("group_size", [1, 3, 4, 8])
def test_agreement_and_shares(isa: str, index: torch.dtype, group_size: int) -> None:
    for num_units in SIZES:
        torch.manual_seed(num_units)
        logits = 4 * torch.randn(3, group_size, num_units + 5)[..., :num_units]
        sizes = torch.randint(0, 4, (3, num_units + 1), dtype=index)[:, :num_units]
        sizes[1] = 0
        # Where there is no unit there may be anything.
        logits = logits.masked_fill((sizes == 0)[:, None], torch.nan)
        safe, where = logits.nan_to_num(0), torch.tensor([True, True, False])
        for beside in (None, torch.randn(3, group_size), torch.full((3, group_size), -torch.inf)):
            expected = ops.unit_shares(safe, sizes, beside, impl="torch")
            with on(isa):
                got = ops.unit_shares(logits, sizes, beside, impl="cpu")
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        shares = got
        for reduce in ops.REDUCES:
            each = shares if reduce == "share_mean" else logits
            expected = ops.agree(each.nan_to_num(0, neginf=-torch.inf), sizes, reduce, impl="torch")
            with on(isa):
                got = ops.agree(each, sizes, reduce, impl="cpu")
                some = ops.agree(each, sizes, reduce, where=where, impl="cpu")
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
            assert torch.equal(some[where], got[where])


@on_each_instruction_set
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_token_scores(isa: str, index: torch.dtype, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    num_rows, group_size, dim = shape
    torch.manual_seed(dim)
    query = torch.randn(num_rows, group_size, dim).to(dtype)
    bits = pack_bits(torch.rand(num_rows, 90, dim) < 0.5)
    shares, steps = torch.randn(num_rows, group_size, 20), torch.rand(num_rows, 20).half()
    shares[:, 0, 3], shares[:, :, 4] = -torch.inf, -torch.inf
    for num_tokens in SIZES:
        unit = torch.randint(0, 20, (num_rows, num_tokens), dtype=index)
        place = torch.randint(0, 90, (num_rows, num_tokens), dtype=index)
        arguments = (shares, bits, steps, unit.long(), place.long())
        expected = ops.score_tokens(query.float(), *arguments, scaling=dim**-0.5, impl="torch")
        with on(isa):
            got = ops.score_tokens(query, shares, bits, steps, unit, place, scaling=dim**-0.5, impl="cpu")
        torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def scores_of(pattern: str, num_units: int) -> Tensor:
    """Scores that are all different, of few values, close to each other, or with zeros and infinities of both signs."""
    scores = torch.randn(3, num_units)
    if pattern == "ties":
        return scores.round()
    if pattern == "close":
        return 1 + torch.randint(0, 50, (3, num_units)) * torch.finfo(torch.float32).eps
    if pattern == "extremes":
        extremes = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38])
        return extremes[torch.randint(0, 8, (3, num_units))]
    return scores


@on_each_instruction_set
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("pattern", ["different", "ties", "close", "extremes"])
def test_the_choice_is_the_same_to_the_token(isa: str, index: torch.dtype, pattern: str) -> None:
    for num_units in SIZES:
        torch.manual_seed(num_units)
        scores = scores_of(pattern, num_units)
        sizes = torch.randint(0, 30, (3, num_units), dtype=index)
        total = int(sizes.sum(1).max())
        for budget in (0, 1, total // 3, total // 2, total - 1, total, total + 9):
            each = torch.tensor([budget, 2 * budget // 3, -1])
            for asked in (budget, each, each.to(torch.int32)):
                expected = ops.select_units(scores, sizes, asked, impl="torch")
                with on(isa):
                    got = ops.select_units(scores, sizes, asked, impl="cpu")
                assert got.dtype == index and torch.equal(got, expected)
        where = torch.tensor([True, False, True])
        some = ops.select_units(scores.T.contiguous().T, sizes, each, where=where, impl="cpu")
        assert torch.equal(some[where], expected[where]) and not some[1].any()


@on_each_instruction_set
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_places(isa: str, index: torch.dtype) -> None:
    for num_units in SIZES:
        torch.manual_seed(num_units)
        sizes = torch.randint(0, 40, (3, num_units), dtype=index)
        sizes[0, num_units // 2 :] = 0
        offsets, take = sizes.cumsum(1).to(index) - sizes, (sizes * torch.rand(3, num_units)).to(index)
        take[2] = 0
        for width in (1, 17, 40 * num_units):
            expected, unit = ops.places_of(take, offsets, width, impl="torch")
            with on(isa):
                got, got_unit = ops.places_of(take, offsets, width, impl="cpu")
            assert torch.equal(got, expected) and torch.equal(got_unit[got >= 0], unit[got >= 0])
            assert int(got_unit.min()) >= 0 and int(got_unit.max()) < num_units


@on_each_instruction_set
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("num_slots", [1, 15, 17, 63, 448])
def test_each_slot_gets_the_same_place(isa: str, index: torch.dtype, num_slots: int) -> None:
    torch.manual_seed(num_slots)
    held = torch.full((3, num_slots), -1, dtype=index)
    for number in range(8):
        wanted = torch.full((3, num_slots + 5), -1)
        for row in wanted:
            count = int(torch.randint(0, num_slots + 1, ()))
            row[torch.randperm(len(row))[:count]] = torch.randperm(700)[:count] * (1 + number % 2)
        expected, missing = ops.assign_slots(held, wanted, impl="torch")
        with on(isa):
            got, filled = ops.assign_slots(held, wanted.to(torch.int32) if number % 3 else wanted, impl="cpu")
        assert got.dtype == index and torch.equal(got, expected) and torch.equal(filled, missing)
        held = got


def cases() -> dict[str, tuple[Any, ...]]:
    """Arguments of each operation of the library."""
    torch.manual_seed(0)
    query, logits, scores = torch.randn(2, 3, 16), torch.randn(2, 3, 7), torch.randn(2, 7)
    sizes = torch.randint(1, 5, (2, 7), dtype=torch.int32)
    means = torch.randn(2, 7, 16)
    codes, steps = to_int8(means)
    bits, where = pack_bits(means > 0), torch.tensor([True, True])
    place = torch.randint(0, 7, (2, 4))
    return {
        "dot_logits": (query, means, 0.5, where),
        "sketch_logits": (query, codes, steps[..., None], 0.5, None),
        "bound_logits": (query, torch.randn(2, 7, 32), 0.5, None),
        "one_bit_logits": (query, bits, torch.randn(2, 1, 32), 0.5, None),
        "score_tokens": (query, logits, bits, steps, place, place, 0.5),
        "unit_shares": (logits, sizes, torch.randn(2, 3)),
        "agree": (logits, sizes, True, True, False, None),
        "select_units": (scores, sizes, torch.tensor([5, 6]), 0, where),
        "raise_newest": (scores, torch.tensor([3, 7]), 2),
        "places_of": (sizes, sizes, 9),
        "assign_slots": (
            *(torch.full((2, 4), -1, dtype=torch.int32), place, where, torch.empty(2, 4, dtype=torch.int32)),
            *(torch.zeros(2, dtype=torch.int64), torch.randn(2, 4)),
        ),
    }


@on_the_best_instruction_set
@pytest.mark.parametrize("op", cases())
def test_what_torch_checks_of_an_operation(isa: str, op: str) -> None:
    import_module("louiskv.ops.selection_cpu")
    torch.library.opcheck(getattr(torch.ops.louiskv, op).default, cases()[op])


@on_the_best_instruction_set
def test_a_step_compiles(isa: str) -> None:
    query, _, _, _ = arguments = cases()["dot_logits"]
    sizes = torch.randint(1, 5, (2, 7), dtype=torch.int32)

    def step(query: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        scores = ops.score_units(query, (arguments[1],), sizes, reduce="share_mean", scaling=0.5, impl="cpu")
        take = ops.select_units(scores, sizes, 6, impl="cpu")
        place, _ = ops.places_of(take, sizes.cumsum(1) - sizes, 6, impl="cpu")
        return ops.assign_slots(slots, place, impl="cpu")

    slots = torch.full((2, 6), -1, dtype=torch.int32)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(query, slots), step(query, slots), strict=True):
        assert torch.equal(got, expected)


@on_the_best_instruction_set
def test_what_does_not_fit_is_refused(isa: str) -> None:
    for op, changed in {
        "dot_logits": {1: torch.randn(2, 7, 15)},
        "sketch_logits": {1: torch.randn(2, 7, 16)},
        "one_bit_logits": {2: torch.randn(2, 2, 32)},
        "unit_shares": {1: torch.ones(2, 7)},
        "select_units": {1: torch.ones(2, 6, dtype=torch.int32)},
        "assign_slots": {3: torch.empty(2, 4, dtype=torch.int64)},
    }.items():
        wrong = [changed.get(number, argument) for number, argument in enumerate(cases()[op])]
        with pytest.raises(RuntimeError, match="louiskv: "):
            getattr(torch.ops.louiskv, op)(*wrong)
