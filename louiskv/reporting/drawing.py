"""Figures as SVG that takes its ink from the page, so that it is readable on light and dark."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Stand for the page's colours while a figure is drawn.
INK, FAINT = "#010203", "#040506"
SIZE = (5.8, 4.2)
SMALL = (5.0, 3.5)

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "louiskv",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "image.interpolation": "none",
}


@dataclass
class Drawing:
    """A figure that is being drawn; `svg` is there when the drawing is done."""

    figure: Figure
    axes: Axes
    svg: str = ""


@contextmanager
def drawing(title: str, x: str, y: str, size: tuple[float, float] = SIZE) -> Iterator[Drawing]:
    """A figure with one pair of axes; what is drawn in the block is in its `svg` after it.

    Args:
        title: What stands above it.
        x: What the horizontal axis tells.
        y: What the vertical axis tells.
        size: Width and height, in inches.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=x, ylabel=y)
        axes.set_title(title)
        made = Drawing(figure, axes)
        yield made
        _legend(made)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        made.svg = _inlined(text.getvalue(), title)


def image(drawn: Drawing, rows: list[list[float]], what: str, low: float, high: float, places: list[float]) -> None:
    """A heat map over the axes of a drawing, with its scale beside it.

    Args:
        drawn: The drawing.
        rows: [y][x] values; NaN stays empty.
        what: What the colours tell.
        low: Value of the first colour.
        high: Value of the last.
        places: Where it begins and ends: x0, x1, y0, y1.
    """
    x0, x1, y0, y1 = places
    drawn.axes.grid(False)
    shown = drawn.axes.imshow(
        rows, aspect="auto", origin="lower", cmap="viridis", vmin=low, vmax=high, extent=(x0, x1, y0, y1)
    )
    bar = drawn.figure.colorbar(shown, ax=drawn.axes, label=what, pad=0.02, aspect=28)
    bar.outline.set_visible(False)


def _legend(made: Drawing) -> None:
    """A legend below the axes, where it covers nothing."""
    handles, labels = made.axes.get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    if known:
        longest = max(map(len, known))
        columns = max(1, min(len(known), 4, int(made.figure.get_figwidth() * 11 // (longest + 6))))
        rows = -(-len(known) // columns)
        width, height = made.figure.get_size_inches()
        # The axes keep their height, however many lines there are.
        made.figure.set_size_inches(width, height + 0.21 * rows)
        made.figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=columns, columnspacing=1.2)


def _inlined(svg: str, title: str) -> str:
    """What is drawn alone, in the page's ink and type, with ids of its own, scaled to where it stands."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<g|<image [^>]*?) id="[^"]*"', r"\1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"(?<![,\w])\n|\n(?=[LMCQz])", " ", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    # Of coordinates, not of what is written: a hundredth of a point is more than a screen shows.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg)
    unique = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{unique}-", svg)
    opening = rf'<svg viewBox="\1" role="img" aria-label="{escape(title, quote=True)}">'
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', opening, svg, count=1)
    return svg.replace(INK, "var(--ink)").replace(FAINT, "var(--line)").strip()
