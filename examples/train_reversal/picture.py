"""The two runs as a picture."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from journal import SOLVED, Journal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE = "#2563eb", "#ea580c"
_INK, _FAINT, _PALE = "#334155", "#94a3b8", "#e2e8f0"
_HONESTLY = (
    "The time that an answer takes is simulated: 16 ms a token, times a lognormal (sigma 0.8, at most 8) for "
    "each request, 128 at once. These figures were chosen; others give other curves against time."
)


def check_path(path: str | os.PathLike[str]) -> None:
    """Raise ValueError where `draw` could not write to *path*: that would come only after the training."""
    suffix = Path(path).suffix.removeprefix(".").lower()
    known = Figure().canvas.get_supported_filetypes()
    if suffix not in known:
        raise ValueError(f"{path} has none of the suffixes {', '.join(sorted(known))}")
    if Path(path).is_dir() or not Path(path).parent.is_dir():
        raise ValueError(f"{path} is a directory, or in none that exists")


def draw(asynchronous: Journal, synchronous: Journal, path: str | os.PathLike[str]) -> None:
    """Write the picture to *path*, in the format that its suffix names."""
    figure = Figure(figsize=(13, 4.4), dpi=120, layout="constrained")
    by_seconds, by_steps, ages = figure.subplots(1, 3)
    for journal, colour, side in ((asynchronous, _BLUE, "left"), (synchronous, _ORANGE, "right")):
        seconds = [step.seconds for step in journal.steps]
        _draw_reward(by_seconds, seconds, journal, colour, f"{journal.name}, {journal.seconds:.1f} s")
        _draw_reward(by_steps, range(1, len(seconds) + 1), journal, colour, journal.name)
        if journal.solved_after is not None:
            _name(by_seconds, journal.solved_after, colour, side)
    _draw_ages(ages, asynchronous)
    size = asynchronous.samples // len(asynchronous.steps)
    _label(by_seconds, "Reward against time", "seconds", "mean reward of the batch")
    _label(by_steps, "Reward against steps", f"steps of {size} answers")
    _label(ages, f"Age of the tokens, {asynchronous.name} run", "step", "share of the batch")
    figure.supxlabel(_HONESTLY, fontsize=9, color=_FAINT)
    figure.savefig(path)


def _draw_reward(axes: Axes, places: Sequence[float], journal: Journal, colour: str, label: str) -> None:
    rewards = [step.reward for step in journal.steps]
    axes.plot(places, rewards, color=colour, lw=2.4, label=label, solid_capstyle="round")
    solved = [point for point in zip(places, rewards, strict=True) if point[1] >= SOLVED]
    for point in solved[:1]:
        axes.plot(*point, "o", color=colour, ms=8, mec="white", mew=1.5, zorder=3)
    axes.axhline(SOLVED, color=_FAINT, lw=0.8, ls=(0, (4, 4)), zorder=0)
    axes.set_ylim(0, 1.05)
    axes.autoscale(axis="x")
    axes.set_xlim(left=0)
    axes.legend(loc="best", frameon=False, labelcolor="linecolor")


def _name(axes: Axes, seconds: float, colour: str, side: str) -> None:
    """Write how many *seconds* it took to the point where it was solved, on one *side* of it."""
    axes.annotate(
        f"{seconds:.1f} s",
        (seconds, SOLVED),
        (-10, 2) if side == "left" else (10, -12),
        textcoords="offset points",
        ha="right" if side == "left" else "left",
        color=colour,
        weight="bold",
    )


def _draw_ages(axes: Axes, journal: Journal) -> None:
    """Stack the shares of the tokens by age, and on top of them that of those that were masked."""
    ages = journal.max_staleness + 1
    counts = [
        [*itertools.islice(itertools.chain(step.ages, itertools.repeat(0)), ages), step.masked]
        for step in journal.steps
    ]
    shares = np.transpose([np.divide(row, max(1, sum(row))) for row in counts])
    axes.stackplot(
        range(1, len(counts) + 1),
        shares,
        labels=[*map(str, range(ages)), "older: not trained on"],
        colors=[*colormaps["Blues"](np.linspace(0.25, 0.9, ages)), _PALE],
        step="mid",
    )
    axes.set_xlim(1, max(2, len(counts)))
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(
        title="versions behind", loc="upper left", bbox_to_anchor=(1, 1), frameon=False, alignment="left"
    )


def _label(axes: Axes, title: str, below: str, left: str = "") -> None:
    axes.set_title(title, loc="left", color=_INK, weight="bold", pad=12)
    axes.set_xlabel(below, color=_INK)
    axes.set_ylabel(left, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(color=_FAINT, labelcolor=_INK)
