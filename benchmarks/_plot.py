"""Draw what grows with the number in flight, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "trip": ("submit to value of one task among n others", "us"),
    "lag": ("how late a task wakes among n others, p99", "ms"),
    "idle": ("n tasks that wait, nothing else", "% of a core"),
    "memory": ("memory of one of n tasks in flight", "bytes"),
    "burst": ("one task of a burst of n", "us"),
}
COLOURS = {"ours": "#1f6fb4", "executor": "#2a9d6f", "threadsafe": "#8a8a8a", "areal": "#d1495b"}
LINEAR = ("memory",)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the curves of a document of `_report`, a panel for each thing measured, and save them."""
    curves = found["curves"]
    shown = [what for what in PANELS if what in curves]
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(12, 3.8 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    for what, panel in zip(shown, axes, strict=False):
        _draw_panel(panel, what, curves[what])
    for panel in axes[len(shown) :]:
        panel.axis("off")
    figure.suptitle(f"areal_core, {found['python']}, {found['cores']} cores: median, least and greatest")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_panel(panel: Axes, what: str, curves: dict[str, list[list[float]]]) -> None:
    title, unit = PANELS[what]
    for who, points in curves.items():
        counts, medians, least, greatest = zip(*points, strict=True)
        colour = COLOURS.get(who)
        panel.plot(counts, medians, marker="o", markersize=4, color=colour, label=who)
        panel.fill_between(counts, least, greatest, color=colour, alpha=0.15, linewidth=0)
    panel.set_xscale("log")
    if what in LINEAR:
        panel.set_ylim(bottom=0)
    else:
        panel.set_yscale("log")
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("n")
    panel.set_ylabel(unit)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
