"""The command: a scenario out of options, and its forecast for people."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

from areal_core._simulation.calibration import calibrate
from areal_core._simulation.forecast import Forecast, rate, share
from areal_core._simulation.growing import WORKERS, Point, changed, grow, vary
from areal_core._simulation.plot import draw
from areal_core._simulation.scenario import Costs, Scenario
from areal_core._simulation.world import simulate
from areal_core.config import InferenceEngineConfig

_OF_CONFIG = (
    "consumer_batch_size",
    "max_head_offpolicyness",
    "max_concurrent_rollouts",
    "on_stale",
    "straggler_wait",
    "max_inflight_per_server",
)
_EPILOG = """\
Each option is a field of Scenario, or of the executor's InferenceEngineConfig; the reference of
areal_core.simulation says what they mean. For example

  --workers 8 --servers 4 --server-tokens-per-s 3000 --train-s 20
  ... --vary servers=1,2,4,8          how many servers are enough
  ... --vary max_head_offpolicyness=0,1,2,4
  ... --grow 1,10,100,1000 --warm-up-s 60 --measured-s 30 --plot growth.png

Where the driver is saturated, simulating it takes about as long as it would take in earnest."""
_COLUMNS = (
    "trajectories",
    "episodes",
    "in flight",
    "driver",
    "loops",
    "slots",
    "servers",
    "trainer",
    "stale",
    "wasted",
)


def main(argv: list[str] | None = None) -> int:
    """Run the command with the arguments *argv* (None: this process's); return its exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        scenario = _scenario(options)
        name, values = _varied(options.vary, scenario)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    if options.calibrate:
        scenario = replace(scenario, costs=calibrate(scenario.costs))
        _tell_costs(scenario.costs)
    if options.grow is None and not name:
        _print(simulate(scenario))
        return 0
    points = vary(scenario, name, values) if name else grow(scenario, options.grow)
    across = name or "workers"
    found = list(_tell_each(across, points))
    if options.plot is not None:
        try:
            draw({"as it was asked for": found}, options.plot, across)
        except ImportError:
            sys.stderr.write("--plot needs matplotlib: pip install 'areal-core[demo]'\n")
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m areal_core.simulation",
        description="Say what a run would be like, on machines that nobody has rented yet.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--vary", metavar="FIELD=V,V,...", help="a forecast for each value of a field")
    parser.add_argument(
        "--grow",
        nargs="?",
        const=WORKERS,
        type=_counts,
        metavar="N,N,...",
        help="a forecast for each number of workers, servers and batch in proportion (default: to 10000)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw those (needs matplotlib)")
    parser.add_argument(
        "--calibrate", action="store_true", help="measure what the code costs here first, in ten seconds"
    )
    run = parser.add_argument_group("the run")
    texts = _texts(Scenario) | _texts(InferenceEngineConfig)
    for spec in _shown():
        text = texts.get(spec.name, "").replace("%", "%%")
        run.add_argument(_flag(spec.name), metavar="V", help=f"{text} (default: {_default(spec)})".strip())
    return parser


def _texts(cls: type[Any]) -> dict[str, str]:
    """Return the first sentence under each field of *cls*, as its docstring has them."""
    found = re.findall(r"^(\w+): .*\n((?:    .*\n?)+)", cls.__doc__ or "", re.MULTILINE)
    return {name: " ".join(text.split()).partition(". ")[0].rstrip(".") for name, text in found}


def _shown() -> Iterator[Field[Any]]:
    for spec in fields(Scenario):
        if spec.name == "config":
            yield from (one for one in fields(InferenceEngineConfig) if one.name in _OF_CONFIG)
        elif spec.name not in ("costs", "worker_deaths_s"):
            yield spec


def _default(spec: Field[Any]) -> Any:
    return getattr(Scenario().config, spec.name) if spec.name in _OF_CONFIG else spec.default


def _scenario(options: argparse.Namespace) -> Scenario:
    scenario = Scenario()
    texts = {spec.name: getattr(options, spec.name) for spec in _shown()}
    given = {name: _value(text) for name, text in texts.items() if text is not None}
    config = {name: given.pop(name) for name in _OF_CONFIG if name in given}
    return replace(scenario, config=replace(scenario.config, **config), **given)


def _varied(text: str | None, scenario: Scenario) -> tuple[str, list[Any]]:
    """Return the field that is varied and its values; "" for none. Raises TypeError, ValueError."""
    if text is None:
        return "", []
    name, _, rest = text.partition("=")
    name, values = name.strip().replace("-", "_"), [_value(one) for one in rest.split(",") if one.strip()]
    if not values:
        raise ValueError(f"--vary {text} names no values; give a field and some, such as servers=1,2,4")
    for value in values:
        changed(scenario, name, value)
    return name, values


def _value(text: str) -> Any:
    """Return the number that *text* is, or None, or the text."""
    text = text.strip()
    if text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(one) for one in text.split(",") if one.strip())
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from 1 on")
    return counts


def _print(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _tell_costs(costs: Costs) -> None:
    for spec in fields(costs):
        _print(f"{spec.name:<22}{getattr(costs, spec.name) * 1e6:>10,.1f} us")
    _print("")


def _tell_each(across: str, points: Iterable[Point]) -> Iterator[Point]:
    """Print a line for each as it comes, under a line of titles."""
    width = max(10, len(across))
    _print(" ".join((f"{across:>{width}}", *(f"{title:>12}" for title in _COLUMNS), " bound by")))
    for value, forecast in points:
        cells = (f"{text:>12}" for text in _cells(forecast))
        _print(" ".join((f"{value!s:>{width}}", *cells, f" {forecast.bound_by}")))
        yield value, forecast


def _cells(forecast: Forecast) -> Sequence[str]:
    return (
        rate(forecast.trajectories_per_s).removesuffix(" per s"),
        rate(forecast.episodes_per_s).removesuffix(" per s"),
        f"{forecast.in_flight:,.0f}",
        share(forecast.driver_busy),
        share(forecast.workers_busy),
        share(forecast.slots_busy),
        "" if forecast.servers_busy is None else share(forecast.servers_busy),
        share(forecast.trainer_busy),
        f"{forecast.staleness.staleness_mean:.2f}",
        share(forecast.wasted_old + forecast.wasted_lost),
    )
