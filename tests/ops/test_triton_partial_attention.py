"""Attention of many queries in Triton against the reference in float32."""

from functools import partial

import pytest
import torch
from torch import Tensor

from louiskv.ops.partial_attention import merge_attention, partial_attention
from tests.ops.test_attention import TOLERANCE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALING = 0.3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def check(
    query: Tensor,
    rows: Tensor,
    mask: Tensor | None = None,
    *,
    key_dim: int,
    causal: bool = False,
    softcap: float | None = None,
) -> None:
    """Rows [N, T, Dk + Dv] may hold NaN where the mask lets nobody see."""
    tolerance = TOLERANCE[query.dtype]
    keys, values = rows[..., :key_dim], rows[..., key_dim:]
    attend = partial(partial_attention, scaling=SCALING, causal=causal, softcap=softcap)
    out, lse = attend(query, keys, values, mask, impl="triton")
    query, keys, values = (each.float().nan_to_num(0.0) for each in (query, keys, values))
    expected_out, expected_lse = attend(query, keys, values, mask, impl="torch")
    assert out.dtype == lse.dtype == torch.float32
    torch.testing.assert_close(out, expected_out, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse, expected_lse, atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("group_size", range(1, 9))
def test_every_group_size(group_size: int, dtype: torch.dtype) -> None:
    query, rows = drawn(2, group_size, 19, 16).to(dtype), drawn(2, 37, 32, seed=1).to(dtype)
    check(query, rows, key_dim=16, causal=True)
    check(query, rows, key_dim=16, softcap=2.0)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("key_dim", "value_dim"), [(80, 80), (96, 64), (128, 128), (256, 256), (3, 5)])
def test_head_dims(key_dim: int, value_dim: int, dtype: torch.dtype) -> None:
    rows = drawn(2, 70, key_dim + value_dim, seed=1).to(dtype)
    check(drawn(2, 2, 40, key_dim).to(dtype), rows, key_dim=key_dim, causal=True)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (1, 200), (127, 1), (128, 128), (129, 65), (33, 31)])
def test_sizes_beside_tiles_and_blocks(num_queries: int, num_keys: int) -> None:
    query, rows = drawn(2, 3, num_queries, 16), drawn(2, num_keys, 32, seed=1)
    for causal in (False, True):
        check(query, rows, key_dim=16, causal=causal)


def test_what_a_mask_closes_for_all_is_never_read() -> None:
    query, rows = drawn(2, 3, 40, 16), drawn(2, 90, 32, seed=1)
    closed = drawn(2, 90, seed=2) < 0.3
    rows = rows.masked_fill(closed[..., None], torch.nan)
    check(query, rows, ~closed[:, None, None], key_dim=16)
    some = (drawn(2, 1, 40, 90, seed=3) < 0.5) & ~closed[:, None, None]
    check(query, rows, some, key_dim=16)
    bias = drawn(2, 1, 40, 90, seed=4).masked_fill(~some, -torch.inf)
    check(query, rows, bias, key_dim=16, softcap=2.0)
    check(query, rows, bias[:, :, :1].masked_fill(closed[:, None, None], -torch.inf).half(), key_dim=16)


def test_parts_are_merged_to_the_whole() -> None:
    query, rows = drawn(2, 3, 40, 16), drawn(2, 90, 32, seed=1)
    attend = partial(partial_attention, query, scaling=SCALING, impl="triton")
    keys, values = rows.tensor_split([16], dim=-1)
    past, own = attend(keys[:, :50], values[:, :50], None), attend(keys[:, 50:], values[:, 50:], None, causal=True)
    merged, whole = merge_attention(*past, *own), attend(keys, values, None, causal=True)
    torch.testing.assert_close(merged, whole, atol=2e-5, rtol=2e-5)


def test_strides_of_any_kind() -> None:
    # As a model gives them: a token's heads side by side, keys and values of all KV heads of a token behind each other.
    query = drawn(1, 40, 6, 16).transpose(1, 2).unflatten(1, (2, 3)).flatten(0, 1)
    keys, values = drawn(40, 2, 16, seed=1).transpose(0, 1), drawn(40, 2, 16, seed=2).transpose(0, 1)
    got = partial_attention(query, keys, values, None, scaling=SCALING, causal=True, impl="triton")
    expected = partial_attention(query, keys, values, None, scaling=SCALING, causal=True, impl="torch")
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)
    mask = (drawn(2, 1, 40, 40, seed=3) < 0.5).transpose(2, 3)
    got = partial_attention(query, keys, values, mask, scaling=SCALING, impl="triton")
    expected = partial_attention(query, keys, values, mask, scaling=SCALING, impl="torch")
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


def test_nothing_to_attend_to() -> None:
    query = drawn(2, 3, 5, 16)
    out, lse = partial_attention(query, query[:, 0, :0], query[:, 0, :0], None, scaling=SCALING, impl="triton")
    assert out.eq(0).all() and lse.eq(-torch.inf).all()
    out, lse = partial_attention(query[:, :, :0], query[:, 0], query[:, 0], None, scaling=SCALING, impl="triton")
    assert out.shape == (2, 3, 0, 16) and lse.shape == (2, 3, 0)


def test_the_same_inputs_give_the_same_bits() -> None:
    query, rows = drawn(2, 3, 40, 16).half(), drawn(2, 200, 32, seed=1).half()
    first, second = (
        partial_attention(query, rows[..., :16], rows[..., 16:], None, scaling=SCALING, causal=True, impl="triton")
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))
