"""Figures as SVG: in the page's ink, with all that is written on them."""

import math
import re

from louiskv.reporting.drawing import FAINT, INK, drawing, image


def test_numbers_are_written_in_full_and_coordinates_are_short() -> None:
    with drawing("a < b & c", "x", "y") as drawn:
        drawn.axes.plot([0, 1, 2], [0.1, 0.2, 0.4], marker="o", label="line")
        drawn.axes.set_yticks([0.0125, 0.3875])
    assert {"0.0125", "0.3875", "line", "a &lt; b &amp; c"} <= set(re.findall(r">([^<>\n]+)</text>", drawn.svg))
    assert not any(re.search(r"\d\.\d{3}", tag) for tag in re.findall(r"<[^>]*>", drawn.svg))
    assert 'aria-label="a &lt; b &amp; c"' in drawn.svg


def test_ink_is_the_pages_and_nothing_is_fetched() -> None:
    with drawing("map", "step", "layer") as drawn:
        image(drawn, [[0.0, 1.0], [math.nan, 0.5]], "share", 0, 1, [0, 2, 0, 2])
    assert "var(--ink)" in drawn.svg and INK not in drawn.svg.lower() and FAINT not in drawn.svg.lower()
    assert "data:image/png;base64" in drawn.svg and "http" not in drawn.svg
    assert "font-family" not in drawn.svg and "<style" not in drawn.svg
