"""A scenario again and again, with one thing changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

from areal_core._simulation.forecast import Forecast
from areal_core._simulation.scenario import Scenario
from areal_core._simulation.world import simulate

WORKERS = (1, 10, 100, 300, 1_000, 3_000, 10_000)

Point = tuple[float, Forecast]
"""What was changed to what, and what came of it."""


def grow(scenario: Scenario, workers: Iterable[int] = WORKERS) -> Iterator[Point]:
    """Yield what comes of *scenario* with so many workers, each number with its forecast.

    Servers, batch and concurrency grow in proportion, so that a worker has as much to do as before.
    """
    for count in workers:
        yield count, simulate(scenario.scaled(count))


def vary(scenario: Scenario, name: str, values: Iterable[Any]) -> Iterator[Point]:
    """Yield what comes of *scenario* with the field *name* at each of *values*, each with its forecast.

    It is a field of the scenario, of its config or of its costs. Raises ValueError for another.
    """
    for value in values:
        yield value, simulate(changed(scenario, name, value))


def changed(scenario: Scenario, name: str, value: Any) -> Scenario:
    """Return *scenario* with *value* for the field *name*, its own, its config's or its costs'."""
    if _has(scenario, name):
        return replace(scenario, **{name: value})
    for part in ("config", "costs"):
        if _has(getattr(scenario, part), name):
            return replace(scenario, **{part: replace(getattr(scenario, part), **{name: value})})
    raise ValueError(f"{name!r} is no field of Scenario, InferenceEngineConfig or Costs; give one of theirs")


def _has(thing: Any, name: str) -> bool:
    return name in {spec.name for spec in fields(thing)}
