"""Axes of bytes, of counts, and of what spans several powers of ten."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from louiskv.telemetry import format_bytes


def bytes_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic horizontal axis of bytes, with a place for 0 if there is a 0."""
    moved = [value for value in values if value > 0]
    if not moved:
        axes.set_xlim(-1, 1)
        axes.xaxis.set_major_locator(FixedLocator([0]))
        axes.xaxis.set_major_formatter(lambda *_: "0")
        return
    low, high = math.floor(math.log2(min(moved))), math.ceil(math.log2(max(moved)))
    step = max(1, -(-(high - low) // 5))
    ticks = [2.0**power for power in range(low, high + step, step)]
    if len(moved) < len(values):
        # 0 stands as far left of the least as two steps are wide.
        axes.set_xscale("symlog", base=2, linthresh=ticks[0], linscale=step)
        axes.set_xlim(-0.15 * ticks[0], ticks[-1] * 1.15)
        ticks.insert(0, 0)
    else:
        axes.set_xscale("log", base=2)
        axes.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: "0" if value <= 0 else format_bytes(value).replace(".0 ", " "))


def doubling_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic horizontal axis with a tick at each value."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def bars_axis(axes: Axes, count: int) -> None:
    """A vertical axis of so many bars, the first on top, and room for numbers at their ends."""
    axes.set_ylim(count - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)


def whole_axis(axes: Axes) -> None:
    """A horizontal axis of whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic vertical axis with plain numbers, as many as the values span."""
    axes.set_yscale("log")
    told = [value for value in values if value > 0]
    span = max(told) / min(told) if told else 1
    subs = (1.0,) if span > 1000 else (1.0, 2.0, 5.0) if span > 10 else (1.0, 2.0, 3.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
