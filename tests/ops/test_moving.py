"""Operations that move tokens, in every implementation, against loops."""

import pytest
import torch

from louiskv.ops.moving import append_token, fetch_rows, store_rows
from tests.ops.implementations import each, on_the_best_instruction_set

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]


def some(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (100 * torch.randn(*sizes)).to(dtype)


@each("append_token")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_sinks", [0, 2])
def test_tokens_go_round_the_window(impl: str, dtype: torch.dtype, num_sinks: int) -> None:
    window, key_dim, value_dim = 3, 5, 4
    size = num_sinks + window + 2
    rows = torch.zeros(2, size, key_dim + value_dim, dtype=dtype)
    bias = torch.full((2, 1, size), -torch.inf, dtype=dtype)
    lengths = torch.tensor([0, 4])
    expected_rows, expected_bias = rows.clone(), bias.clone()
    for step in range(9):
        # One token of each row, as it lies in a projection: keys and values are views.
        token = some(2, 2 * (key_dim + value_dim), dtype=dtype)
        keys, values = token[:, :key_dim], token[:, key_dim + 1 : key_dim + 1 + value_dim]
        append_token(rows, bias, lengths, keys, values, num_sinks=num_sinks, window=window, impl=impl)
        for row, first in enumerate((0, 4)):
            position = first + step
            slot = position if position < num_sinks else num_sinks + (position - num_sinks) % window
            expected_rows[row, slot] = torch.cat([keys[row], values[row]])
            expected_bias[row, 0, slot] = 0
        assert lengths.tolist() == [step + 1, step + 5]
        assert torch.equal(rows, expected_rows) and torch.equal(bias, expected_bias)


@each("fetch_rows")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_slots", [1, 15, 63])
def test_what_is_missing_is_fetched(impl: str, dtype: torch.dtype, num_slots: int) -> None:
    source = some(3, 40, 17, dtype=dtype)
    place = torch.randint(0, 40, (3, num_slots), dtype=torch.int32)
    missing = torch.rand(3, num_slots) < 0.5
    missing[1] = False
    # Anything where nothing is missing.
    place[~missing] = 10**6
    whole = some(3, num_slots + 4, 17, dtype=dtype)
    expected = whole.clone()
    for row in range(3):
        for slot in range(num_slots):
            if missing[row, slot]:
                expected[row, 4 + slot] = source[row, place[row, slot]]
    fetch_rows(source, place, missing, whole[:, 4:], impl=impl)
    assert torch.equal(whole, expected)


@each("store_rows")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", [(), (1,), (7,), (3, 5)], ids=str)
@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_rows_are_stored_behind_others(
    impl: str, dtype: torch.dtype, inner: tuple[int, ...], index: torch.dtype
) -> None:
    target = some(3, 20, *inner, dtype=dtype)
    lengths, counts = torch.tensor([0, 7, 15], dtype=index), torch.tensor([4, 0, 5], dtype=index)
    dense = some(3, 5, *inner, dtype=dtype)
    spread = some(5, 6, *inner[::-1], dtype=dtype)[:, ::2].transpose(0, 1)
    spread = spread.permute(0, 1, *range(spread.ndim - 1, 1, -1))
    for rows in (dense, spread):
        expected = target.clone()
        for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
            expected[row, length : length + count] = rows[row, :count]
        store_rows(target, lengths, rows, counts, impl=impl)
        assert torch.equal(target, expected)


@on_the_best_instruction_set
@pytest.mark.parametrize("op", ["append_token", "fetch_rows", "store_rows"])
def test_what_torch_checks_of_an_operation(isa: str, op: str) -> None:
    rows, lengths = torch.randn(2, 6, 8), torch.tensor([1, 2])
    arguments = {
        "append_token": (rows, torch.zeros(2, 1, 6), lengths, torch.randn(2, 4), torch.randn(2, 4), 1, 3),
        "fetch_rows": (rows, torch.zeros(2, 3, dtype=torch.int32), torch.rand(2, 3) < 0.5, torch.randn(2, 3, 8)),
        "store_rows": (rows, lengths, torch.randn(2, 3, 8), torch.tensor([2, 3])),
    }
    torch.library.opcheck(getattr(torch.ops.louiskv, op).default, arguments[op])


@on_the_best_instruction_set
def test_moving_compiles(isa: str) -> None:
    def step(rows: torch.Tensor, lengths: torch.Tensor) -> None:
        store_rows(rows, lengths, torch.ones(2, 1, 3), torch.ones_like(lengths), impl="cpu")

    rows = torch.zeros(2, 4, 3)
    torch.compile(step, fullgraph=True, backend="aot_eager")(rows, torch.tensor([0, 3]))
    assert rows.sum(2).tolist() == [[3, 0, 0, 0], [0, 0, 0, 3]]
