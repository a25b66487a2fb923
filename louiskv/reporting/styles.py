"""How lines and points look: a method has the same colour and marker in every figure."""

from dataclasses import dataclass
from typing import Any

from louiskv.methods import METHODS

# Okabe and Ito's colours for all kinds of sight, without black; blue and yellow moved, to be seen on dark and white.
PALETTE = ("#D55E00", "#1B7CC4", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#B5A000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#8A8F98"
# This project's own method stands out, wherever it is among the others.
VIOLET = "#8B5CF6"
# Full attention in its forms, and the best that so many tokens can do: what others are measured by.
YARDSTICKS = ("sdpa", "full", "full_offloaded", "oracle_top_k")
# Those that lose nothing: they have no place on a logarithmic axis of what is lost.
LOSSLESS = ("sdpa", "full", "full_offloaded")


@dataclass(frozen=True)
class Style:
    """Colour and marker of a line.

    Attributes:
        color: Of line and marker.
        marker: Shape of the marker.
        dashes: Of the line, as matplotlib takes them.
        hollow: Whether the marker is, which with dashes tells apart what has the same colour.
    """

    color: str
    marker: str
    dashes: Any = "-"
    hollow: bool = False

    @property
    def point(self) -> dict[str, Any]:
        """What matplotlib is told of a point."""
        return {"color": self.color, "marker": self.marker, "markerfacecolor": "none" if self.hollow else self.color}

    @property
    def line(self) -> dict[str, Any]:
        """What matplotlib is told of a line."""
        return {**self.point, "linestyle": self.dashes}


def _at(place: int) -> Style:
    """Each round through the palette meets other colours with the same markers; from the second on they are hollow."""
    turn, step = divmod(place, len(PALETTE))
    return Style(PALETTE[(step + 3 * turn) % len(PALETTE)], MARKERS[step], (0, (5, 2)) if turn else "-", turn > 0)


_OWN = {"louiskv_plus": Style(VIOLET, "*")}
_COMPARED = [name for name in METHODS if name not in YARDSTICKS and name not in _OWN]
_MEASURES = (Style(GREY, "x", ":"), Style(GREY, "+"), Style(GREY, "1", "--"), Style(GREY, "2", "-."))
_METHODS = dict(zip(YARDSTICKS, _MEASURES, strict=True)) | _OWN | {name: _at(at) for at, name in enumerate(_COMPARED)}


def style_of(method: str) -> Style:
    """The style of a method by its name; with settings or a budget behind it, its method's."""
    return _METHODS.get(method.split(" ")[0], Style(GREY, "."))


def style_at(place: int) -> Style:
    """The style of the line at a place, for lines that are no methods."""
    return _at(place)
