"""Compare what the simulation predicts with real runs on Ray, and draw it to ten thousand workers.

    --predict   measure what the code and Ray cost here, and write predictions.json: commit it before the next
    --run       play the same set-ups for real, and print what was measured and what was predicted
    --plot      draw how the rate grows with the number of workers, into build/simulated.png

Without any of them it does all three. Nothing else should run meanwhile. It ends with 1 when a prediction is
off by more than 10 %, with --short by more than half: that is only a look at whether it works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from areal_core.config import InferenceEngineConfig
from areal_core.simulation import Costs, Forecast, Scenario, calibrate, draw, simulate

PREDICTIONS = Path(__file__).parent / "predictions.json"
PICTURE = Path(__file__).parent.parent / "build" / "simulated.png"
SEEDS = 5
"""How often what is drawn is drawn again; the mean is what is predicted."""
OFF, OFF_SHORT = 0.10, 0.50
_RAY_S = 6.0
_WORKERS = (1, 10, 100, 300, 1_000, 3_000, 10_000)
_LONG_S = (10.0, 30.0)
_USUAL = {"costs": asdict(Costs()), "worker_start_s": 2.0, "worker_death_seen_s": 0.05}
"""Of a small machine, for the picture where nobody has measured."""


@dataclass(frozen=True)
class Setup:
    """One that is predicted and played."""

    name: str
    title: str
    scenario: Scenario
    counts: bool = True
    """Whether a prediction that is off fails the benchmark. Which of two threads of a process goes on when
    both would is not in the simulation; where all depends on that, it is only shown."""


def setups(short: bool) -> Iterator[Setup]:
    """Yield the set-ups, for as long as it takes to measure them, or only for a look."""
    length = 0.2 if short else 1.0
    config = InferenceEngineConfig(consumer_batch_size=256, max_head_offpolicyness=3)
    instant = Scenario(
        config=config, workers=1, slots_per_worker=256, tokens=0.0, tool_s=0.0, train_s=0.0, update_s=0.0
    )
    yield Setup(
        "loop",
        "bound by the worker's loop: episodes that compute for 0.5 ms and take 50 ms",
        replace(instant, compute_s=0.5e-3, tool_s=0.05, warm_up_s=5.0 * length, measured_s=20.0 * length),
    )
    yield Setup(
        "servers",
        "bound by a server that works on 32 requests at once, two workers",
        replace(
            instant,
            config=replace(config, consumer_batch_size=128),
            workers=2,
            slots_per_worker=64,
            servers=1,
            server_slots=32,
            token_s=0.008,
            pace_sigma=0.8,
            request_s=0.003,
            tokens=64.0,
            tokens_sigma=0.0,
            warm_up_s=20.0 * length,
            measured_s=60.0 * length,
        ),
    )
    yield Setup(
        "failures",
        "episodes of half a second, two workers, one of which is killed every eight seconds",
        replace(
            instant,
            config=replace(config, consumer_batch_size=64),
            workers=2,
            slots_per_worker=64,
            tool_s=0.5,
            worker_deaths_s=tuple(12.0 + 8.0 * number for number in range(8)),
            warm_up_s=10.0,
            measured_s=64.0 * length,
        ),
    )
    yield Setup(
        "instant",
        "bound by exchanges: episodes that end at once",
        replace(instant, warm_up_s=5.0 * length, measured_s=20.0 * length),
        counts=False,
    )


def main() -> int:
    """Do what was asked for and return the exit status."""
    options = _options()
    wants_all = not (options.predict or options.run or options.plot)
    status = 0
    if options.predict or wants_all:
        predict(options.short, options.predictions)
    if options.run or wants_all:
        status = run(options.short, options.predictions)
    if options.plot or wants_all:
        plot(options.short, options.predictions, options.picture)
    return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--short", action="store_true", help="only a look: a fifth of the time")
    parser.add_argument("--predictions", type=Path, default=PREDICTIONS, metavar="FILE")
    parser.add_argument("--picture", type=Path, default=PICTURE, metavar="FILE")
    return parser.parse_args()


def predict(short: bool, path: Path) -> None:
    """Measure what things cost here, and write down what the set-ups will come to."""
    from _simulated_runs import measure_ray

    print("measuring what the code costs, and Ray ...", flush=True)
    of_ray = measure_ray(calibrate(), _RAY_S * (0.3 if short else 1.0))
    for name, cost in asdict(of_ray.costs).items():
        print(f"  {name:<22}{1e6 * cost:>10,.1f} us")
    print(f"  a worker starts in {of_ray.worker_start_s:.2f} s; that one died is seen in", end=" ")
    print(f"{of_ray.worker_death_seen_s:.2f} s")
    measured = {
        "costs": asdict(of_ray.costs),
        "worker_start_s": of_ray.worker_start_s,
        "worker_death_seen_s": of_ray.worker_death_seen_s,
    }
    document = {
        "made": f"{platform.python_version()}, {os.cpu_count()} processors, {time.strftime('%Y-%m-%d')}",
        "is_short": short,
        "measured": measured,
        "predictions": {one.name: _predicted(_here(one.scenario, measured)) for one in setups(short)},
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"predictions in {path}: commit it, then --run")


def _here(scenario: Scenario, measured: dict[str, Any]) -> Scenario:
    """Return *scenario* on this machine."""
    return replace(
        scenario,
        costs=Costs(**measured["costs"]),
        worker_start_s=measured["worker_start_s"],
        worker_death_seen_s=measured["worker_death_seen_s"],
    )


def _predicted(scenario: Scenario) -> dict[str, float | str]:
    found = [simulate(replace(scenario, seed=seed)) for seed in range(SEEDS)]
    return {
        "trajectories_per_s": _mean(found, "trajectories_per_s"),
        "driver_busy": _mean(found, "driver_busy"),
        "workers_busy": _mean(found, "workers_busy"),
        "slots_busy": _mean(found, "slots_busy"),
        "staleness_mean": statistics.fmean(one.staleness.staleness_mean for one in found),
        "bound_by": found[0].bound_by,
    }


def _mean(found: list[Forecast], name: str) -> float:
    return round(statistics.fmean(getattr(one, name) for one in found), 4)


def run(short: bool, path: Path) -> int:
    """Play the set-ups, print what came of them beside what was predicted; return the exit status."""
    from _simulated_runs import play

    if not path.exists():
        print(f"{path} is not there: --predict first")
        return 2
    document = json.loads(path.read_text())
    if document["is_short"] != short:
        print(f"{path} was made {'with' if document['is_short'] else 'without'} --short; predict anew")
        return 2
    most = OFF_SHORT if short else OFF
    print(f"\n{'':<10}{'predicted':>12}{'measured':>12}{'ratio':>8}{'staleness':>18}")
    are_off = []
    for one in setups(short):
        predicted = document["predictions"][one.name]
        found = play(one.scenario)
        ratio = found.trajectories_per_s / predicted["trajectories_per_s"]
        ages = f"{predicted['staleness_mean']:.2f}, {found.staleness_mean:.2f}"
        rates = f"{predicted['trajectories_per_s']:>12,.1f}{found.trajectories_per_s:>12,.1f}"
        title = one.title if one.counts else f"{one.title} (only shown)"
        print(f"{one.name:<10}{rates}{ratio:>8.2f}{ages:>18}   {title}", flush=True)
        if one.counts and abs(ratio - 1.0) > most:
            are_off.append(one.name)
    if are_off:
        print(f"off by more than {100 * most:.0f} %: {', '.join(are_off)}")
    return 1 if are_off else 0


def plot(short: bool, path: Path, picture: Path) -> None:
    """Draw how the rate grows with the number of workers, for episodes of several lengths."""
    measured = json.loads(path.read_text())["measured"] if path.exists() else _USUAL
    counts = _WORKERS[:3] if short else _WORKERS
    curves = {}
    for seconds in _LONG_S:
        name = f"episodes of {seconds:g} s, 16 at a worker"
        print(f"\n{name}", flush=True)
        curves[name] = list(_grown(seconds, counts, measured))
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(curves, picture)
    print(f"\nthe picture is {picture}")


def _grown(
    seconds: float, counts: tuple[int, ...], measured: dict[str, Any]
) -> Iterator[tuple[float, Forecast]]:
    """Yield what comes of so many workers that play episodes of *seconds*, and print it."""
    config = InferenceEngineConfig(
        consumer_batch_size=16, max_head_offpolicyness=1, max_concurrent_rollouts=16
    )
    one = Scenario(
        config=config,
        workers=1,
        slots_per_worker=16,
        tokens=0.0,
        tool_s=seconds,
        tool_sigma=0.8,
        train_s=0.0,
        update_s=0.0,
    )
    for count in counts:
        # It takes the driver a while to give all of them their first episodes.
        scenario = replace(
            _here(one, measured).scaled(count),
            warm_up_s=8.0 + 0.6 * seconds + count / 500,
            measured_s=200.0 if count < 30 else 4.0 + 0.2 * seconds + count / 2000,
        )
        forecast = simulate(scenario)
        rate, busy = forecast.episodes_per_s, forecast.driver_busy
        print(f"  {count:>6} workers {rate:>10,.1f} episodes per s, driver {100 * busy:>3.0f} %", flush=True)
        yield count, forecast


if __name__ == "__main__":
    sys.exit(main())
