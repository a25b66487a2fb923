"""What a decode step leaves behind, in C++."""

import torch
from torch import Tensor

from louiskv.ops import native

native.load()
_record_step = torch.ops.louiskv.record_step.default


def record_step(step: Tensor, series: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> None:
    """As `louiskv.ops.recording.record_step`."""
    absent = (None,) * (3 - len(series))
    _record_step(step, *series, *absent, *(value.contiguous() for value in values), *absent)


@native.fake("record_step")
def _nothing(*_arguments: object) -> None:
    return None
