"""Decode attention in Triton against the reference in float32."""

import pytest
import torch
from torch import Tensor

from louiskv.ops.attention import Chosen, Rest, decode_attention
from louiskv.ops.quantize import to_int8
from tests.ops.test_attention import TOLERANCE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALING = 0.3


class Case:
    """Inputs of one call, in closed slots and unused places NaN; and the same without NaN in float32."""

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        num_rows: int = 2,
        group_size: int = 4,
        num_slots: int = 17,
        num_chosen: int = 0,
        num_entries: int = 0,
        dim: int = 64,
        value_dim: int = 64,
        seed: int = 0,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.query = self.normal(num_rows, group_size, dim).to(dtype)
        # Slots, keys and values are views: each second row of memory with room behind.
        self.rows = self.normal(2 * num_rows, num_slots + 3, dim + value_dim + 8).to(dtype)[::2, :num_slots]
        self.dim, self.behind = dim, dim + value_dim
        closed = self.drawn(num_rows, num_slots) < 0.4
        closed[:, 0] = False
        self.bias = torch.zeros(num_rows, 1, num_slots, dtype=dtype, device=DEVICE)
        self.bias.masked_fill_(closed[:, None], -torch.inf)
        self.rows.masked_fill_(closed[..., None], torch.nan)
        self.sinks = self.normal(num_rows, group_size)
        self.chosen, self.rest = None, None
        if num_chosen:
            pool = self.normal(num_rows, 2 * num_chosen, dim + value_dim).to(dtype)
            pool[:, num_chosen:] = torch.nan
            place = torch.randint(-1, num_chosen, (num_rows, num_chosen), generator=self.generator, dtype=torch.int32)
            self.chosen = Chosen(pool, place.to(DEVICE))
        if num_entries:
            codes, steps = to_int8(self.normal(num_rows, num_entries, value_dim))
            counts = torch.randint(0, 3, (num_rows, num_entries), generator=self.generator).to(DEVICE)
            logits = self.normal(num_rows, group_size, num_entries)
            all_steps = torch.stack([steps, steps.clone().fill_(torch.nan)], dim=-1)
            self.rest = Rest(logits, counts, codes, all_steps[..., 0])

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(DEVICE)

    def drawn(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(DEVICE)

    def attend(self, *, impl: str, with_bias: bool = True, softcap: float | None = None, sinks: bool = False) -> Tensor:
        query, rows, bias, chosen = self.query, self.rows, self.bias, self.chosen
        if impl == "torch" or not with_bias:
            rows = rows.nan_to_num(0.0)
        if impl == "torch":
            query, rows, bias = query.float(), rows.float(), bias.float()
            chosen = None if chosen is None else Chosen(chosen.rows.float().nan_to_num(0.0), chosen.place)
        return decode_attention(
            query,
            rows[..., : self.dim],
            rows[..., self.dim : self.behind],
            bias if with_bias else None,
            scaling=SCALING,
            softcap=softcap,
            attention_sinks=self.sinks if sinks else None,
            chosen=chosen,
            rest=self.rest,
            impl=impl,
        )

    def check(self, *, with_bias: bool = True, softcap: float | None = None, sinks: bool = False) -> None:
        got = self.attend(impl="triton", with_bias=with_bias, softcap=softcap, sinks=sinks)
        expected = self.attend(impl="torch", with_bias=with_bias, softcap=softcap, sinks=sinks)
        assert got.dtype == self.query.dtype
        tolerance = TOLERANCE[got.dtype]
        torch.testing.assert_close(got.float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("group_size", range(1, 9))
def test_every_group_size(group_size: int, dtype: torch.dtype) -> None:
    Case(dtype, group_size=group_size, num_chosen=15, num_entries=17).check(sinks=True, softcap=2.0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("dim", "value_dim"), [(80, 80), (96, 64), (128, 128), (256, 256)])
def test_head_dims(dim: int, value_dim: int, dtype: torch.dtype) -> None:
    Case(dtype, dim=dim, value_dim=value_dim, num_chosen=3, num_entries=15).check(sinks=True)


@pytest.mark.parametrize("num_slots", [1, 15, 17, 63, 64, 65])
@pytest.mark.parametrize(("num_chosen", "num_entries"), [(0, 0), (63, 0), (0, 63), (65, 1), (1, 65)])
def test_parts_of_any_size(num_slots: int, num_chosen: int, num_entries: int) -> None:
    case = Case(torch.float32, num_slots=num_slots, num_chosen=num_chosen, num_entries=num_entries, group_size=3)
    case.check()
    case.check(with_bias=False, softcap=2.0)


@pytest.mark.parametrize("programs", [1, 4, 9])
def test_rows_are_split_as_fills_the_device(monkeypatch: pytest.MonkeyPatch, programs: int) -> None:
    monkeypatch.setattr("louiskv.ops.attention_triton.PROGRAMS", programs)
    Case(torch.float16, num_slots=140, num_chosen=70, num_entries=130, group_size=2, dim=16, value_dim=8).check()


def test_the_same_inputs_give_the_same_bits() -> None:
    case = Case(torch.float16, num_slots=200, num_chosen=63, num_entries=63)
    assert torch.equal(case.attend(impl="triton"), case.attend(impl="triton"))


def test_one_bias_for_all_rows_and_queries_with_strides() -> None:
    case = Case(torch.float32)
    case.bias = torch.zeros(1, 1, 17, device=DEVICE)
    case.bias[..., 5:] = -torch.inf
    case.rows = case.normal(2, 17, 128)
    case.query = case.normal(2, 64, 4).transpose(1, 2)
    case.check()


def test_where_all_slots_are_closed_the_rest_is_everything() -> None:
    case = Case(torch.float32, num_entries=17)
    case.bias.fill_(-torch.inf)
    case.check()
