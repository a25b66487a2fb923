"""Calibrations: tau for each layer, what it gives, and how many samples that needs."""

from collections.abc import Iterator

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from louiskv.reporting.axes import doubling_axis, whole_axis
from louiskv.reporting.content import Figure, Part, Section, Table, number, text
from louiskv.reporting.drawing import INK, drawing
from louiskv.reporting.records import Measured
from louiskv.reporting.styles import PALETTE
from louiskv.taus import LayerTaus


def calibrations(model: Measured) -> Section | None:
    """Figures of each calibration."""
    parts: list[Part] = []
    for file, taus in model.taus.items():
        parts += [_by_layer(file, taus), *_by_tau(taus), *_curve(taus), _achieved(file, taus)]
    told = (
        "LouisKV retrieves where the cosine of neighbouring queries is under tau. Calibration chooses tau for each "
        "layer, and one for all layers, that reach a target."
    )
    return Section("calibration", "Calibration of tau", told, parts) if parts else None


def _target(taus: LayerTaus) -> str:
    name, value = next(iter(taus.target.items()))
    return f"{'a retrieval rate' if name == 'rate' else 'an error'} of {value:g}"


def _by_layer(file: str, taus: LayerTaus) -> Figure:
    known = [(layer, tau) for layer, tau in enumerate(taus.tau) if tau is not None]
    with drawing(f"Tau of each layer, for {_target(taus)}", "layer", "tau") as drawn:
        whole_axis(drawn.axes)
        layers, values = zip(*known, strict=True) if known else ((), ())
        drawn.axes.plot(layers, values, "o", color=PALETTE[1], label="tau of each layer")
        drawn.axes.vlines(layers, taus.global_tau, values, color=PALETTE[1], linewidth=1, alpha=0.5)
        drawn.axes.axhline(taus.global_tau, color=PALETTE[0], label=f"one for all: {taus.global_tau:.3f}")
    samples = taus.settings["samples"]
    return Figure(drawn.svg, f"From {file}: {samples} samples. Layers without a point keep everything on the device.")


def _by_tau(taus: LayerTaus) -> Iterator[Figure]:
    """A line for each layer, from dark (first) to light (last)."""
    named = {"rates": ("Retrieval rate", "rate"), "errors": ("Error of attention", "error")}
    layers = taus.by_tau["layers"]
    scale = ScalarMappable(Normalize(layers[0], max(layers[-1], layers[0] + 1)), colormaps["viridis"])
    for name, (title, aim) in named.items():
        if name in taus.by_tau:
            with drawing(f"{title} by tau", "tau", title.lower()) as drawn:
                # Under the least cosine there is nothing to see.
                first = max((place for place, tau in enumerate(taus.by_tau["tau"]) if tau < 0), default=-1) + 1
                for layer, values in zip(layers, taus.by_tau[name], strict=True):
                    x, y = taus.by_tau["tau"][first:], values[first:]
                    drawn.axes.plot(x, y, color=scale.to_rgba(layer), linewidth=1.1)
                if aim in taus.target:
                    drawn.axes.axhline(taus.target[aim], color=INK, linewidth=1, linestyle=(0, (4, 3)))
                drawn.figure.colorbar(
                    scale, ax=drawn.axes, label="layer", pad=0.02, aspect=28, ticks=MaxNLocator(integer=True)
                )
            yield Figure(drawn.svg, "A line for each layer; dashed: the target, if it is of this figure.")


def _curve(taus: LayerTaus) -> Iterator[Figure]:
    named = {
        "tau_error": (
            "Difference of tau from all samples'",
            "mean difference of tau",
            "Lower is nearer to all samples'.",
        ),
        "rate": ("Retrieval rate reached", "retrieval rate", "On texts that were held out."),
        "error": ("Error reached", "error of attention", "On texts that were held out."),
    }
    for name, (title, y, tells) in named.items():
        points = [(point["samples"], point[name]) for point in taus.curve if name in point]
        if len(points) > 1:
            with drawing(f"{title}, by samples", "samples", y) as drawn:
                drawn.axes.plot(*zip(*points, strict=True), "o-", color=PALETTE[2])
                doubling_axis(drawn.axes, [samples for samples, _ in points])
                if name in taus.target:
                    aimed = taus.target[name]
                    drawn.axes.axhline(aimed, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="target")
                drawn.axes.set_ylim(0, 1.1 * max(taus.target.get(name, 0), *(value for _, value in points)) or 1)
            yield Figure(drawn.svg, f"What the first samples alone would have given. {tells}")


def _achieved(file: str, taus: LayerTaus) -> Table:
    rows = [
        [text(name), *(number(taus.achieved.get(f"{prefix}{figure}"), ".3f") for figure in ("rate", "error"))]
        for name, prefix in (("a tau for each layer", ""), (f"{taus.global_tau:.3f} for all", "global_"))
    ]
    held = taus.settings.get("held_out", "some")
    caption = f"From {file}, aimed at {_target(taus)}; texts held out: {held}."
    return Table("Reached on texts that were held out", ["taus", "retrieval rate", "error"], rows, caption, wide=False)
