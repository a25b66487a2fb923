"""What moves tokens, and the cosines of queries, in Triton against the reference."""

import pytest
import torch
from torch import Tensor

from louiskv.ops.moving import append_token, fetch_rows, store_rows
from louiskv.ops.turning import query_cosines

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = (1, 15, 17, 63)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def on_host(tensor: Tensor) -> Tensor:
    """In host memory, which a GPU can reach."""
    return tensor.pin_memory() if DEVICE == "cuda" else tensor.clone()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("key_dim", "value_dim", "num_sinks", "window"), [(64, 64, 4, 5), (80, 96, 0, 1), (6, 8, 3, 7)]
)
def test_append_token(dtype: torch.dtype, key_dim: int, value_dim: int, num_sinks: int, window: int) -> None:
    states = []
    for impl in ("triton", "torch"):
        rows = torch.zeros(3, num_sinks + window + 2, key_dim + value_dim, dtype=dtype, device=DEVICE)
        bias = torch.full((3, 1, num_sinks + window + 2), -torch.inf, dtype=dtype, device=DEVICE)
        lengths = torch.tensor([0, num_sinks, num_sinks + window - 1], device=DEVICE)
        for step in range(2 * window):
            # One head of queries, keys and values side by side, as a projection gives them.
            new = normal(3, key_dim + value_dim + 9, seed=step).to(DEVICE, dtype)
            keys, values = new[:, 1 : 1 + key_dim], new[:, 5 + key_dim : 5 + key_dim + value_dim]
            append_token(rows, bias, lengths, keys, values, num_sinks=num_sinks, window=window, impl=impl)
        states.append((rows, bias, lengths))
    for got, expected in zip(*states, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8])
@pytest.mark.parametrize("num_slots", SIZES)
@pytest.mark.parametrize("size", [16, 160, 600])
@pytest.mark.parametrize("host", [False, True])
def test_fetch_rows(dtype: torch.dtype, num_slots: int, size: int, host: bool) -> None:
    source = (10 * normal(2, 40, size)).to(dtype)
    source = on_host(source) if host else source.to(DEVICE)
    missing = normal(2, num_slots).to(DEVICE) > 0
    place = torch.randint(0, 40, (2, num_slots), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    place = place.to(DEVICE).masked_fill(~missing, -(10**9))
    targets = []
    for impl in ("triton", "torch"):
        slots = torch.zeros(2, num_slots + 3, size + 8, dtype=dtype, device=DEVICE)
        target = slots[:, 3:, 4 : size + 4]
        fetch_rows(source, place, missing, target, impl=impl)
        targets.append(slots)
    assert torch.equal(*targets)


@pytest.mark.parametrize("shape", [(), (3,), (2, 40), (700,)])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8, torch.int32])
@pytest.mark.parametrize("host", [False, True])
def test_store_rows(shape: tuple[int, ...], dtype: torch.dtype, host: bool) -> None:
    rows = (10 * normal(9, 3, *shape)).to(DEVICE, dtype).transpose(0, 1)
    counts = torch.tensor([[0, 9, 4], [0, 0, 0]], device=DEVICE).T[:, 0]
    lengths = torch.tensor([5, 0, 7], device=DEVICE)
    targets = []
    for impl in ("triton", "torch"):
        target = torch.zeros(3, 16, *shape, dtype=dtype)
        target = on_host(target) if host else target.to(DEVICE)
        store_rows(target, lengths, rows, counts, impl=impl)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        targets.append(target)
    assert torch.equal(*targets)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "dim"), [(1, 64), (3, 80), (17, 20), (8, 256)])
def test_query_cosines(dtype: torch.dtype, num_heads: int, dim: int) -> None:
    query = normal(2, dim, num_heads).to(DEVICE, dtype).transpose(1, 2)
    other = normal(2, 3 * num_heads, dim, seed=1).to(DEVICE, dtype)[:, ::3]
    query[0, 0] = 0
    other[1, 0] = torch.nan
    got, expected = (query_cosines(query, other, impl=impl) for impl in ("triton", "torch"))
    assert got.dtype == torch.float32 and bool(got[1, 0].isnan()) and bool(got[0, 0] == 0)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0, equal_nan=True)
