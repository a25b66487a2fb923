"""How much a query attends to some keys altogether: each implementation against the reference in float32."""

from importlib import import_module

import pytest
import torch
from torch import Tensor

from louiskv.ops.log_sums import log_sums
from tests.ops.devices import on_each_device, repeated, wait
from tests.ops.implementations import each, here, on, on_each_instruction_set, on_the_best_instruction_set

# Twice what the dtype rounds the sum of a product to, for logits of order 1.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SHAPES = [(1, 1, 1, 64), (3, 3, 15, 80), (3, 4, 17, 128), (3, 8, 63, 10), (3, 4, 80, 256), (2, 6, 200, 33)]


def case_of(shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys as a view and bias as a view; the second row is closed, the third open."""
    num_rows, group_size, num_keys, dim = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(num_rows, dim, group_size, generator=generator).to(dtype).transpose(1, 2)
    rows = torch.randn(num_rows, num_keys + 2, dim + 5, generator=generator).to(dtype)
    bias = torch.zeros(num_rows, 1, num_keys + 3, dtype=dtype)
    bias.masked_fill_(torch.rand(bias.shape, generator=generator) < 0.4, -torch.inf)
    bias[1:2], bias[2:3] = -torch.inf, 0
    return query, rows[:, :num_keys, :dim], bias[..., :num_keys]


@each("log_sums")
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_what_the_reference_sums(impl: str, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    if impl not in here("log_sums", dtype):
        return
    query, keys, bias = case_of(shape, dtype, seed=0)
    sinks = torch.randn(shape[:2]).to(dtype)
    sinks[0, 0] = -torch.inf
    # Where a key is closed there may be anything, but for the reference.
    closed = bias[:, 0, :, None] == -torch.inf
    keys.masked_fill_(closed & (impl != "torch"), torch.nan)
    for attention_sinks in (None, sinks):
        got = log_sums(query, keys, bias, scaling=0.1, attention_sinks=attention_sinks, impl=impl)
        wide = (query.float(), keys.float().masked_fill(closed, 0), bias.float())
        expected = log_sums(*wide, scaling=0.1, attention_sinks=attention_sinks, impl="torch")
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@on_each_device("log_sums", torch.float32, torch.bfloat16, torch.float16)
def test_sums_the_same_wherever_it_runs(impl: str, device: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        case = case_of(shape, dtype, seed=1)
        sinks = torch.randn(shape[:2])
        got = log_sums(*(each.to(device) for each in case), scaling=0.1, attention_sinks=sinks.to(device), impl=impl)
        expected = log_sums(*(each.float() for each in case), scaling=0.1, attention_sinks=sinks, impl="torch")
        torch.testing.assert_close(got.cpu(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@on_each_instruction_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_instruction_set_sums_the_same(isa: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        query, keys, bias = case_of(shape, dtype, seed=2)
        # Keys may also count as more or less than one.
        bias = bias + torch.linspace(-3, 3, bias.shape[-1]).to(dtype)
        with on(isa):
            got = log_sums(query, keys, bias[:1], scaling=0.1, impl="cpu")
        expected = log_sums(query.float(), keys.float(), bias[:1].float(), scaling=0.1, impl="torch")
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@on_each_device("log_sums")
def test_repeats_with_other_keys(impl: str, device: str) -> None:
    query, keys, bias = (each.to(device) for each in case_of(SHAPES[2], torch.float32, seed=3))
    out = torch.empty(query.shape[:2], device=device)
    again = repeated(lambda: out.copy_(log_sums(query, keys, bias, scaling=0.1, impl=impl)), impl, device)
    other = case_of(SHAPES[2], torch.float32, seed=4)
    for mine, new in zip((query, keys, bias), other, strict=True):
        mine.copy_(new)
    again()
    wait(device)
    torch.testing.assert_close(out.cpu(), log_sums(*other, scaling=0.1, impl="torch"), atol=2e-5, rtol=2e-5)


@on_the_best_instruction_set
def test_what_torch_checks_and_what_does_not_fit_is_refused(isa: str) -> None:
    import_module("louiskv.ops.log_sums_cpu")
    query, keys, bias = case_of(SHAPES[2], torch.float32, seed=5)
    arguments = (query, keys, bias, 0.5, torch.randn(query.shape[:2]))
    torch.library.opcheck(torch.ops.louiskv.log_sums.default, arguments)
    for number, wrong in ((1, keys[..., 1:]), (1, keys.bfloat16()), (2, bias[..., 1:]), (4, torch.zeros(3, 3))):
        with pytest.raises(RuntimeError, match="louiskv: "):
            torch.ops.louiskv.log_sums(*(wrong if at == number else each for at, each in enumerate(arguments)))
