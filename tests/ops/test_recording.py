"""What a decode step leaves behind, in every implementation."""

import pytest
import torch
from torch import Tensor

from louiskv.ops.recording import record_step
from tests.ops.devices import on_each_device, repeated, wait
from tests.ops.implementations import each, on, on_each_instruction_set


def values_of(batch: int, heads: int, seed: int) -> tuple[Tensor, ...]:
    """Of a step: flags of all heads, of which the second may be a view, and numbers."""
    generator = torch.Generator().manual_seed(seed)
    flags, more = torch.rand(2, batch, heads, generator=generator) < 0.5
    return flags, more[:, :1].expand(-1, heads), torch.randn(batch, generator=generator)


def series_for(values: tuple[Tensor, ...], num_steps: int) -> tuple[Tensor, ...]:
    return tuple(value.new_zeros(num_steps, *value.shape) for value in values)


@each("record_step")
@pytest.mark.parametrize("num_series", [1, 2, 3])
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (3, 15), (2, 17), (17, 63)])
def test_each_step_stands_behind_those_before(impl: str, num_series: int, batch: int, heads: int) -> None:
    told = [values_of(batch, heads, seed)[:num_series] for seed in range(4)]
    series, step = series_for(told[0], 5), torch.zeros(1, dtype=torch.int64)
    for values in told:
        record_step(step, series, values, impl=impl)
    assert step.tolist() == [4]
    for number, held in enumerate(series):
        assert torch.equal(held[:4], torch.stack([values[number] for values in told]))
        assert not held[4].any()


@on_each_device("record_step")
def test_repeats(impl: str, device: str) -> None:
    values = [each.to(device).contiguous() for each in values_of(2, 8, 0)]
    series, step = series_for(tuple(values), 8), torch.zeros(1, dtype=torch.int64, device=device)
    again = repeated(lambda: record_step(step, series, tuple(values), impl=impl), impl, device)
    step.fill_(2)
    other = values_of(2, 8, 1)
    for value, new in zip(values, other, strict=True):
        value.copy_(new)
    again()
    wait(device)
    assert step.tolist() == [3]
    for held, new in zip(series, other, strict=True):
        assert torch.equal(held[2].cpu(), new) and not held[3:].any()


@on_each_instruction_set
def test_on_each_instruction_set(isa: str) -> None:
    values = values_of(2, 8, 0)
    series, step = series_for(values, 4), torch.ones(1, dtype=torch.int64)
    with on(isa):
        record_step(step, series, values, impl="cpu")
    assert all(torch.equal(held[1], value) for held, value in zip(series, values, strict=True))
    given = (step, *series, values[0], values[0].clone(), values[2])
    torch.library.opcheck(torch.ops.louiskv.record_step.default, given)


def test_a_series_without_room_is_refused() -> None:
    values = values_of(2, 8, 0)
    step = torch.full((1,), 4)
    with pytest.raises(RuntimeError, match="no room"):
        record_step(step, series_for(values, 4), values, impl="cpu")
    with pytest.raises(RuntimeError, match="one dtype"):
        record_step(step, series_for(values, 9), (values[0].int(), *values[1:]), impl="cpu")
