"""What a decode step leaves behind: a value of each of some series, written where its step stands."""

from torch import Tensor

from louiskv.ops.dispatch import choose, implementations

# Series that are written at once, at the most.
MOST = 3


def record_step(
    step: Tensor, series: tuple[Tensor, ...], values: tuple[Tensor, ...], *, impl: str | None = None
) -> None:
    """Write a value to each series at the step that it is, and count the step; all in place.

    Args:
        step: [1] int64, how many steps the series have; one more afterwards.
        series: Up to MOST tensors [steps, ...], contiguous, with room; changed.
        values: For each series the value of the step, in its dtype.
        impl: Implementation; None takes the best that can run.

    Raises:
        ImplementationError: `impl` cannot run on this device.
    """
    assert 1 <= len(series) == len(values) <= MOST
    function = choose("record_step", RECORD_STEP, impl, step)
    function(step, series, values)


def _record_step(step: Tensor, series: tuple[Tensor, ...], values: tuple[Tensor, ...]) -> None:
    for held, value in zip(series, values, strict=True):
        held.index_copy_(0, step, value[None])
    step += 1


RECORD_STEP = implementations("recording", _record_step, ("triton", "cpu"))
