"""Decode attention in C++ against its specification, on each instruction set."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from louiskv.ops import attention_cpu
from louiskv.ops.attention import DECODE_ATTENTION, Chosen, Rest, decode_attention
from louiskv.ops.quantize import to_int8
from tests.ops.implementations import on, on_each_instruction_set, on_the_best_instruction_set

# Tolerance by dtype against the specification in float32 on the same inputs, for entries of order 1.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
SHAPES = [
    (1, 1, 64, 64),
    (2, 3, 80, 80),
    (1, 4, 96, 64),
    (3, 8, 128, 128),
    (2, 3, 256, 256),
    (2, 6, 10, 7),
    (1, 5, 33, 1),
]


class Case:
    """Inputs of one call; slots that are closed, and rows that are not chosen, hold NaN."""

    def __init__(self, shape: tuple[int, int, int, int], size: int, dtype: torch.dtype) -> None:
        num_rows, group_size, key_dim, value_dim = shape
        generator = torch.Generator().manual_seed(size)

        def randn(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator)

        self.query = randn(num_rows, 2 * group_size, key_dim).to(dtype)[:, ::2]
        rows = randn(num_rows, size + 3, key_dim + value_dim).to(dtype)[:, 2:-1]
        closed = torch.rand(num_rows, size, generator=generator) < 0.4
        closed[:, 0] = False
        self.bias = torch.where(closed, -torch.inf, 0.5 * randn(num_rows, size))[:, None].to(dtype)
        self.safe = rows.masked_fill(closed[..., None], 0)
        self.rows = rows.masked_fill(closed[..., None], torch.nan)
        self.key_dim = key_dim
        pool = randn(num_rows, 2 * size + 5, key_dim + value_dim).to(dtype)
        place = torch.stack([torch.randperm(2 * size + 5, generator=generator)[:size] for _ in range(num_rows)])
        place[:, ::3] = -1
        self.place = place.to(torch.int32)
        unused = torch.ones(pool.shape[:2], dtype=torch.bool)
        for row, places in zip(unused, place, strict=True):
            row[places[places >= 0]] = False
        # The specification reads place 0 where nothing is chosen.
        self.safe_pool = pool.masked_fill(unused[..., None], 0)
        self.pool = pool.masked_fill(unused[..., None], torch.nan)
        self.sinks = randn(num_rows, group_size).to(dtype)
        codes, steps = to_int8(randn(num_rows, size, value_dim))
        counts = torch.randint(0, 4, (num_rows, size), generator=generator)
        self.rest = Rest(randn(num_rows, group_size, size), counts, codes, steps)

    def slots(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows[..., : self.key_dim], rows[..., self.key_dim :]

    def run(self, impl: str, dtype: torch.dtype, softcap: float | None, *beside: str) -> Tensor:
        """Run an implementation, with the parts that are named beside the slots."""
        rows, pool = (self.rows, self.pool) if impl == "cpu" else (self.safe, self.safe_pool)
        return decode_attention(
            self.query.to(dtype),
            *self.slots(rows.to(dtype)),
            self.bias.to(dtype),
            scaling=0.2,
            softcap=softcap,
            attention_sinks=self.sinks.to(dtype) if "sinks" in beside else None,
            chosen=Chosen(pool.to(dtype), self.place) if "chosen" in beside else None,
            rest=self.rest if "rest" in beside else None,
            impl=impl,
        )


@on_each_instruction_set
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [1, 15, 17, 63, 300])
def test_like_the_specification(isa: str, dtype: torch.dtype, shape: tuple[int, int, int, int], size: int) -> None:
    case = Case(shape, size, dtype)
    for softcap in (None, 3.0):
        for beside in ((), ("sinks",), ("chosen",), ("rest",), ("sinks", "chosen", "rest")):
            expected = case.run("torch", torch.float32, softcap, *beside)
            with on(isa):
                got = case.run("cpu", dtype, softcap, *beside)
            assert got.dtype == dtype
            torch.testing.assert_close(got.float(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@on_each_instruction_set
@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_rows_are_shared_among_threads(isa: str, num_threads: int, num_rows: int) -> None:
    query, keys, values = (torch.randn(num_rows, size, 64) for size in (3, 5000, 5000))
    bias = torch.zeros(1, 1, 5000).masked_fill(torch.rand(1, 1, 5000) < 0.3, -torch.inf)
    sinks, before = torch.randn(num_rows, 3), torch.get_num_threads()
    for each in (bias, None):
        exactly = (query.double(), keys.double(), values.double(), None if each is None else each.double())
        expected = decode_attention(*exactly, scaling=0.5, attention_sinks=sinks, impl="torch")
        torch.set_num_threads(num_threads)
        with on(isa):
            got = decode_attention(query, keys, values, each, scaling=0.5, attention_sinks=sinks, impl="cpu")
        torch.set_num_threads(before)
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


@on_the_best_instruction_set
@pytest.mark.parametrize("values", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("steps", [torch.float32, torch.bfloat16, torch.float16])
def test_the_rest_in_every_dtype(isa: str, values: torch.dtype, steps: torch.dtype) -> None:
    case = Case((2, 3, 16, 20), 40, torch.float32)
    rest = case.rest._replace(values=case.rest.values.to(values), steps=case.rest.steps.to(steps))
    rest = rest._replace(num_tokens=rest.num_tokens.to(torch.int32 if steps == torch.float32 else torch.int64))
    keys, safe = case.slots(case.safe)
    expected, got = (
        decode_attention(case.query, keys, safe, case.bias, scaling=0.2, rest=rest, impl=impl)
        for impl in ("torch", "cpu")
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@on_each_instruction_set
def test_threads_of_threads(isa: str) -> None:
    query, keys, values = (torch.randn(2, size, 64) for size in (3, 5000, 5000))
    expected, before = decode_attention(query, keys, values, None, scaling=0.5, impl="torch"), torch.get_num_threads()
    torch.set_num_threads(2)

    def attend(_number: int) -> Tensor:
        return decode_attention(query, keys, values, None, scaling=0.5, impl="cpu")

    with on(isa), ThreadPoolExecutor(3) as pool:
        for got in pool.map(attend, range(12)):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    torch.set_num_threads(before)


@on_the_best_instruction_set
def test_logits_far_apart_neither_overflow_nor_vanish(isa: str) -> None:
    query, keys, values = torch.full((1, 1, 16), 30.0), torch.zeros(1, 100, 16), torch.randn(1, 100, 8)
    keys[0, :, 0] = torch.linspace(-90, 90, 100)
    for order in (keys, keys.flip(1)):
        got = decode_attention(query, order, values, None, scaling=1.0, impl="cpu")
        expected = decode_attention(query, order, values, None, scaling=1.0, impl="torch")
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@on_the_best_instruction_set
def test_what_torch_checks_of_an_operation_and_compiles(isa: str) -> None:
    case = Case((2, 3, 16, 16), 17, torch.float32)
    keys, values = case.slots(case.safe)
    everything = (case.query, keys, values, case.bias, 0.2, 3.0, case.sinks, case.safe_pool, case.place, *case.rest)
    torch.library.opcheck(attention_cpu._decode_attention, everything)

    def attend(query: Tensor) -> Tensor:
        chosen = Chosen(case.safe_pool, case.place)
        out = decode_attention(query, keys, values, case.bias, scaling=0.2, chosen=chosen, rest=case.rest, impl="cpu")
        return out * 2

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(case.query), attend(case.query))
    assert {"cpu", "torch"} <= {candidate.name for candidate in DECODE_ATTENTION}


@on_the_best_instruction_set
def test_what_does_not_fit_is_refused(isa: str) -> None:
    query, keys = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    for wrong in (keys[:, :4], keys[:1], keys.bfloat16(), torch.randn(2, 8, 5).transpose(1, 2)):
        with pytest.raises(RuntimeError, match="louiskv: "):
            decode_attention(query, keys, wrong, None, scaling=1.0, impl="cpu")
