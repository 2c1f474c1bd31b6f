"""The picture of several forecasts: `draw`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from areal_core._simulation.growing import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#1f6fb4", "#2a9d6f", "#d1495b", "#8a5aa8", "#c77a1a", "#5c5c5c")


def draw(curves: Mapping[str, Iterable[Point]], path: Path | str, across: str = "workers") -> None:
    """Draw forecasts over what was changed, a curve for each name, and save the picture at *path*.

    *across* is the name of what was changed. Of workers it is also drawn what came if twice as many always
    did twice as much. Raises ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    rates, shares = figure.subplots(1, 2)
    for (name, points), colour in zip(curves.items(), _COLOURS * len(curves), strict=False):
        _draw_curve(rates, shares, name, list(points), colour, has_ideal=across == "workers")
    rates.set_title("episodes per second", fontsize=10)
    shares.set_title("how busy the driver's thread is", fontsize=10)
    shares.set_ylabel("%")
    shares.set_ylim(0, 105)
    for panel in (rates, shares):
        panel.set_xlabel(across)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _draw_curve(
    rates: Axes, shares: Axes, name: str, points: list[Point], colour: str, has_ideal: bool
) -> None:
    places = [place for place, _ in points]
    found = [forecast for _, forecast in points]
    per_s = [forecast.episodes_per_s for forecast in found]
    rates.plot(places, per_s, marker="o", markersize=4, color=colour, label=name)
    busy = [100 * forecast.driver_busy for forecast in found]
    shares.plot(places, busy, marker="o", markersize=4, color=colour, label=name)
    if has_ideal and per_s and places[0]:
        ideal = [per_s[0] * place / places[0] for place in places]
        rates.plot(places, ideal, linestyle=":", linewidth=1, color=colour)
    if len(places) > 1 and min(places) > 0 and max(places) / min(places) >= 20:
        rates.set_xscale("log")
        shares.set_xscale("log")
        if min(per_s) > 0:
            rates.set_yscale("log")
