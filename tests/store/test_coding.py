"""Keys and values in few bits: how far off they are, and that nothing depends on the company of a token."""

import pytest
import torch
from torch import Tensor

from louiskv.store.coding import Coding, Exact, FewBits, state_size, token_size

CPU = torch.device("cpu")
DIMS = [(1, 1), (15, 17), (17, 15), (63, 1), (64, 63), (64, 64)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NUM_ROWS, NUM_TOKENS = 3, 200


def like_an_llm(key_dim: int, value_dim: int, num_tokens: int = NUM_TOKENS, seed: int = 0) -> Tensor:
    """Rows [N, T, Dk + Dv]: key channels of various spread about a large constant, values about 0."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(NUM_ROWS, num_tokens, key_dim + value_dim, generator=generator)
    spread = 0.2 + 2 * torch.rand(NUM_ROWS, 1, key_dim, generator=generator)
    constant = 4 * torch.randn(NUM_ROWS, 1, key_dim, generator=generator)
    return torch.cat([rows[..., :key_dim] * spread + constant, rows[..., key_dim:]], dim=-1)


def few_bits(bits: int, rows: Tensor, key_dim: int) -> FewBits:
    return FewBits(bits, len(rows), key_dim, rows.shape[2] - key_dim, rows.dtype, CPU)


def everything(rows: Tensor) -> Tensor:
    return torch.full((len(rows),), rows.shape[1])


def relative(off: Tensor, whole: Tensor) -> float:
    return float(off.float().norm() / whole.float().norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("key_dim", "value_dim"), DIMS)
@pytest.mark.parametrize("bits", [8, 4])
def test_what_comes_back_is_near(bits: int, key_dim: int, value_dim: int, dtype: torch.dtype) -> None:
    rows = like_an_llm(key_dim, value_dim).to(dtype)
    coding = few_bits(bits, rows, key_dim)
    coded, held = coding.encode(rows, everything(rows))
    assert (held.shape, held.dtype) == (rows.shape, dtype)
    assert torch.equal(coding.decode(coded, torch.arange(NUM_ROWS)[:, None]), held)
    off = held.float() - rows.float()
    keys, values = relative(off[..., :key_dim], rows[..., :key_dim]), relative(off[..., key_dim:], rows[..., key_dim:])
    # Values have nothing but what varies: a range of almost 5 deviations in 15 steps is off by 9 % at 64 channels.
    assert keys < {8: 0.01, 4: 0.06}[bits]
    assert values < {8: 0.01, 4: 0.1}[bits]
    # No number of a value is further off than half a step, and what float16 and the dtype round away.
    each = rows[..., key_dim:].float()
    half = (each.amax(-1) - each.amin(-1)) / (2**bits - 1) / 2
    rounding = (2.0**-10 + torch.finfo(dtype).eps) * each.abs().amax(-1)
    assert bool((off[..., key_dim:].abs().amax(-1) <= half + rounding).all())


@pytest.mark.parametrize("bits", [8, 4])
def test_keys_that_are_constant_but_for_a_little_keep_the_little(bits: int) -> None:
    rows = like_an_llm(64, 64)
    rows[..., :8] += 300
    coding = few_bits(bits, rows, 64)
    _, held = coding.encode(rows, everything(rows))
    vary, off = rows - rows.mean(1, keepdim=True), held - rows
    assert relative(off[..., :64], vary[..., :64]) < {8: 0.01, 4: 0.12}[bits]
    # Channels of different spread are all told apart, which no single step for the whole token could do.
    narrow = rows[..., :64].std(1).argmin(-1)
    of_narrow = [relative(off[n, :, channel], vary[n, :, channel]) for n, channel in enumerate(narrow.tolist())]
    assert max(of_narrow) < {8: 0.02, 4: 0.2}[bits]


@pytest.mark.parametrize("bits", [8, 4])
def test_later_tokens_are_coded_by_what_the_first_taught(bits: int) -> None:
    rows = like_an_llm(32, 32, 2 * NUM_TOKENS)
    coding = few_bits(bits, rows, 32)
    coding.encode(rows[:, :NUM_TOKENS], torch.full((NUM_ROWS,), NUM_TOKENS))
    mean, spread = coding.mean, coding.spread
    later = rows[:, NUM_TOKENS:]
    _, held = coding.encode(later, everything(later))
    assert torch.equal(coding.mean, mean) and torch.equal(coding.spread, spread)
    assert relative((held - later)[..., :32], later[..., :32]) < {8: 0.01, 4: 0.06}[bits]


@pytest.mark.parametrize("num_first", [1, 2, 4])
def test_a_few_first_tokens_are_enough(num_first: int) -> None:
    # No channel is taken to stand still because it did so in a handful of tokens.
    rows = like_an_llm(64, 64)
    coding = few_bits(8, rows, 64)
    coding.encode(rows[:, :num_first], torch.full((NUM_ROWS,), num_first))
    _, held = coding.encode(rows, everything(rows))
    assert relative((held - rows)[..., :64], rows[..., :64]) < 0.01


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 1e-6, 60000.0])
def test_a_constant_token_comes_back(bits: int, dtype: torch.dtype, value: float) -> None:
    rows = torch.full((NUM_ROWS, 5, 9 + 6), value, dtype=dtype)
    _, held = few_bits(bits, rows, 9).encode(rows, everything(rows))
    torch.testing.assert_close(held[..., :9], rows[..., :9], rtol=0, atol=0)
    # float16 tells the offset of a value to this.
    torch.testing.assert_close(held[..., 9:], rows[..., 9:], rtol=2.0**-11, atol=2.0**-25)


def test_extreme_numbers_stay_finite() -> None:
    rows = like_an_llm(16, 16)
    rows[:, 0] = 0
    rows[:, 1, ::2] *= 1e8
    rows[:, 2] = torch.finfo(torch.float32).tiny
    rows[:, 3, 0] = -1e8
    for bits in (8, 4):
        coding = few_bits(bits, rows, 16)
        _, held = coding.encode(rows, everything(rows))
        assert held.isfinite().all()
        assert coding.spread.gt(0).all() and coding.mean.isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_token_is_the_same_in_any_company(bits: int) -> None:
    rows = like_an_llm(15, 17)
    coding = few_bits(bits, rows, 15)
    coded, held = coding.encode(rows, everything(rows))
    row, place = torch.tensor([2, 0, 1, 2]), torch.tensor([0, 199, 7, 1])
    assert torch.equal(coding.decode(coded[row, place], row), held[row, place])
    assert torch.equal(coding.decode(coded[1:2, 5], row[2:3]), held[1:2, 5])
    assert coding.decode(coded[row, place][:0], row[:0]).shape == (0, 32)
    # What lies behind a row's tokens, more padding or other rows beside it teach nothing.
    alone = few_bits(bits, rows[1:2], 15)
    behind = torch.cat([rows[1:2, :150], torch.full((1, 900, 32), torch.nan)], dim=1)
    coded_alone, held_alone = alone.encode(behind, torch.tensor([150]))
    together = few_bits(bits, rows, 15)
    coded_together, held_together = together.encode(rows, torch.tensor([200, 150, 3]))
    assert torch.equal(alone.mean[0], together.mean[1]) and torch.equal(alone.spread[0], together.spread[1])
    assert torch.equal(coded_alone[0, :150], coded_together[1, :150])
    assert torch.equal(held_alone[0, :150], held_together[1, :150])


def test_a_row_learns_from_its_own_first_tokens_whenever_they_come() -> None:
    rows = like_an_llm(16, 8)
    coding, both = few_bits(8, rows, 16), few_bits(8, rows, 16)
    coding.encode(rows[:, :50], torch.tensor([50, 0, 20]))
    assert coding.learnt.tolist() == [True, False, True]
    coding.encode(rows[:, 50:], torch.tensor([0, 150, 10]))
    assert coding.learnt.all()
    both.encode(rows[:, 50:], torch.tensor([0, 150, 0]))
    assert torch.equal(coding.mean[1], both.mean[1]) and torch.equal(coding.spread[1], both.spread[1])
    torch.testing.assert_close(coding.mean[0], rows[0, :50, :16].mean(0))
    torch.testing.assert_close(coding.mean[2], rows[2, :20, :16].mean(0))


def test_rows_can_be_reordered_and_forgotten() -> None:
    rows = like_an_llm(16, 8)
    coding = few_bits(8, rows, 16)
    coded, held = coding.encode(rows, torch.tensor([200, 0, 200]))
    index = torch.tensor([2, 2, 1, 0])
    mean = coding.mean
    coding.select_rows(index)
    assert torch.equal(coding.mean, mean[index])
    assert coding.learnt.tolist() == [True, True, False, True]
    again = coding.decode(coded[index], torch.arange(4)[:, None])
    assert torch.equal(again[[0, 1, 3]], held[[2, 2, 0]])
    coding.forget(torch.tensor([True, False, False, False]))
    assert coding.learnt.tolist() == [False, True, False, True]
    coding.encode(rows[index, :10] + 1, torch.full((4,), 10))
    torch.testing.assert_close(coding.mean[0], rows[2, :10, :16].mean(0) + 1)
    assert torch.equal(coding.mean[1], mean[2])


@pytest.mark.parametrize(("key_dim", "value_dim"), DIMS)
def test_the_bytes_are_those_of_what_is_kept(key_dim: int, value_dim: int) -> None:
    for bits, expected in ((8, key_dim + value_dim + 8), (4, (key_dim + 1) // 2 + (value_dim + 1) // 2 + 8)):
        rows = like_an_llm(key_dim, value_dim)
        coding: Coding = few_bits(bits, rows, key_dim)
        coded, _ = coding.encode(rows, everything(rows))
        assert coded.dtype == torch.uint8
        assert coded.shape[2] == coding.size == coding.token_size == expected
        assert token_size(bits, key_dim, value_dim, 4) == token_size(bits, key_dim, value_dim, 2) == expected
        assert coding.num_bytes == NUM_ROWS * state_size(bits, key_dim)


def test_exact_is_the_rows_themselves() -> None:
    rows = like_an_llm(4, 2).half()
    coding = Exact(6, rows.dtype)
    coded, held = coding.encode(rows, everything(rows))
    assert coded is rows and held is rows and coding.decode(rows, torch.arange(3)[:, None]) is rows
    assert coding.token_size == token_size(None, 4, 2, 2) == 12
    assert coding.num_bytes == state_size(None, 4) == 0
