"""Measure what being watched costs: CPU time of an episode with one HTTP generation, watched and not.

Two executors on one engine and one embedded server, in alternating rounds: one shows all that it can (figures
scraped over HTTP and read by OpenTelemetry every two seconds, where 15 and 60 are usual, a span for each
phase, a line of the log for each rollout), the other nothing. "sampled" traces a tenth of the episodes, as is
done with many. Ends with 1 when an episode brought nothing.

The same code takes a tenth longer or shorter from one second to the next, so it takes many rounds.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from _table import Aim, Line, Reading, Spread, number
from areal_core.config import InferenceEngineConfig
from areal_core.embedded import EmbeddedServer
from areal_core.logs import configure_logging, forget
from areal_core.metrics import instrument, serve_prometheus
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import GenerationHyperparameters
from areal_core.workflow_context import ensure_descriptors
from areal_core.workflow_executor import WorkflowExecutor
from areal_core.workflows import SingleTurnWorkflow

WAYS = ("alone", "watched")
EVERY_S = 2.0
MOST_RATIO = 1.1
SURELY = 0.95

# For good: the last line of a round comes when that is over.
_nowhere = Path(os.devnull).open("w")  # noqa: SIM115


class NoSpans(SpanExporter):
    """Takes spans to nowhere."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take them."""
        return SpanExportResult.SUCCESS


class NoFigures(MetricExporter):
    """Takes figures to nowhere."""

    def export(self, metrics_data: object, timeout_millis: float = 0, **_: object) -> MetricExportResult:
        """Take them."""
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        """Have nothing left."""
        return True

    def shutdown(self, timeout_millis: float = 0, **_: object) -> None:
        """Do nothing."""


@contextmanager
def nothing(_executor: WorkflowExecutor) -> Iterator[None]:
    """Watch nothing: for the spread."""
    yield


@contextmanager
def scraped(executor: WorkflowExecutor) -> Iterator[None]:
    """Have the figures scraped over HTTP."""
    ended = threading.Event()
    with serve_prometheus(executor) as server:

        def scrape() -> None:
            while not ended.wait(EVERY_S):
                with urllib.request.urlopen(server.url) as answer:
                    answer.read()

        thread = threading.Thread(target=scrape, name="scraping")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def metered(executor: WorkflowExecutor) -> AbstractContextManager[None]:
    """Have OpenTelemetry read the figures."""
    return _instrumented(executor, _figures(), trace.NoOpTracerProvider())


def traced(executor: WorkflowExecutor, share: float = 1.0) -> AbstractContextManager[None]:
    """Have spans made of a *share* of the episodes, and exported in batches."""
    return _instrumented(executor, metrics.NoOpMeterProvider(), _spans(share))


@contextmanager
def logged(_executor: WorkflowExecutor) -> Iterator[None]:
    """Have a line of JSON for each rollout, and its context bound."""
    configure_logging(stream=_nowhere, json=True)
    try:
        yield
    finally:
        forget()


@contextmanager
def everything(executor: WorkflowExecutor, share: float = 1.0) -> Iterator[None]:
    """Have all of it at once."""
    with _instrumented(executor, _figures(), _spans(share)), scraped(executor), logged(executor):
        yield


def _figures() -> MeterProvider:
    return MeterProvider([PeriodicExportingMetricReader(NoFigures(), EVERY_S * 1000)])


def _spans(share: float) -> TracerProvider:
    provider = TracerProvider(ParentBased(TraceIdRatioBased(share)))
    provider.add_span_processor(BatchSpanProcessor(NoSpans(), max_queue_size=65536))
    return provider


@contextmanager
def _instrumented(
    executor: WorkflowExecutor, figures: metrics.MeterProvider, spans: trace.TracerProvider
) -> Iterator[None]:
    made = instrument(executor, figures, spans)
    try:
        yield
    finally:
        made.close()
        for provider in (figures, spans):
            if isinstance(provider, MeterProvider | TracerProvider):
                provider.shutdown()


Watch = Callable[[WorkflowExecutor], AbstractContextManager[None]]

# One more thing to watch with goes here, and into `everything`.
ROWS: dict[str, tuple[Watch, Aim | None]] = {
    "nothing": (nothing, None),
    "prometheus": (scraped, None),
    "otel-figures": (metered, None),
    "otel-spans": (traced, None),
    "log": (logged, None),
    "everything": (everything, Aim(MOST_RATIO)),
    "sampled": (partial(everything, share=0.1), None),
}


def main() -> int:
    """Measure what was asked for and return the exit status."""
    options = _options()
    names = [name for name in options.rows.split(",") if name] or list(ROWS)
    if unknown := set(names) - ROWS.keys():
        print(f"no rows named {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    ensure_descriptors(4 * options.at_once)
    print(_heading(options), flush=True)
    is_good = True
    for name in names:
        watch, aim = ROWS[name]
        rounds = _measure(watch, options)
        line = Line(
            Reading("watched / alone", lambda one: one["watched"] / one["alone"], aim),
            Spread.of([one["watched"] / one["alone"] for one in rounds]),
        )
        is_good = is_good and line.verdict != "FAILED"
        print(f"{name:<14} {_formatted(line, rounds)}", flush=True)
    return 0 if is_good else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 pairs, only for a look")
    parser.add_argument("--pairs", type=int, help="how many rounds of either (default: 41)")
    parser.add_argument("--at-once", type=int, default=64, help="episodes under way (default: 64)")
    parser.add_argument("--tokens", type=int, default=128, help="of a reply, streamed (default: 128)")
    parser.add_argument("--episodes", type=int, default=512, help="of a round (default: 512)")
    parser.add_argument("--rows", default="", metavar="NAME,...", help="only these, e.g. log,everything")
    options = parser.parse_args()
    options.pairs = options.pairs or (3 if options.quick else 41)
    return options


def _heading(options: argparse.Namespace) -> str:
    packages = ("prometheus_client", "opentelemetry-sdk", "structlog", "uvloop")
    return (
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"{', '.join(f'{name} {version(name)}' for name in packages)}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}; {options.episodes} episodes of {options.tokens} "
        f"tokens a round, {options.at_once} at once, "
        f"medians of {options.pairs} alternating pairs"
    )


def _measure(watch: Watch, options: argparse.Namespace) -> list[dict[str, float]]:
    """Return the seconds of CPU an episode took, by way, for each pair; one before them is thrown away."""
    config = InferenceEngineConfig(max_concurrent_rollouts=options.at_once)
    gconfig = GenerationHyperparameters(max_new_tokens=options.tokens, ignore_eos=True)
    workflow = SingleTurnWorkflow(lambda *_: 1.0, gconfig)
    rounds: list[dict[str, float]] = []
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer(ms_per_token=1, mode="test"))
        engine = stack.enter_context(RemoteInfEngine(config, backend="sglang"))
        engine.initialize(server.addr)
        executors = {way: stack.enter_context(WorkflowExecutor(config, engine)) for way in WAYS}
        for count in range(options.pairs + 1):
            taken = {}
            for way in WAYS if count % 2 == 0 else WAYS[::-1]:
                watching = watch if way == "watched" else nothing
                with watching(executors[way]):
                    taken[way] = _round(executors[way], workflow, options.episodes)
            rounds.append(taken)
    return rounds[1:]


def _round(executor: WorkflowExecutor, workflow: SingleTurnWorkflow, episodes: int) -> float:
    items = [{"input_ids": [1, 2, 3], "data_id": str(number)} for number in range(episodes)]
    gc.collect()
    began = time.process_time()
    given = executor.rollout_batch(items, workflow, is_eval=True)
    taken = time.process_time() - began
    if None in given:
        raise AssertionError("an episode brought nothing")
    return taken / episodes


def _bounds(values: Sequence[float]) -> tuple[float, float] | None:
    """Return between what the median of all there could be is, with 95 % confidence or more; None: too few.

    How many of *values* are below that median is binomial with one half, whatever they are like (Conover,
    "Practical Nonparametric Statistics", 3.2).
    """
    ordered, count, outside, chance = sorted(values), len(values), 0, 0.0
    while (chance := chance + math.comb(count, outside) / 2**count) <= (1 - SURELY) / 2:
        outside += 1
    return (ordered[outside - 1], ordered[-outside]) if outside else None


def _formatted(line: Line, rounds: Sequence[dict[str, float]]) -> str:
    spread, aim = line.spread, line.reading.aim or ""
    quartiles = " to ".join(map(number, spread.quartiles))
    bounds = _bounds([one["watched"] / one["alone"] for one in rounds])
    surely = " to ".join(map(number, bounds)) if bounds else "too few rounds"
    middle = {way: statistics.median(one[way] for one in rounds) * 1e6 for way in WAYS}
    shown = f"{number(spread.median):>6} ({SURELY:.0%}: {surely})   quartiles {quartiles:<16}"
    return (
        f"{shown} alone {middle['alone']:.0f} us, watched {middle['watched']:.0f} us   "
        f"{aim!s:<14} {line.verdict}"
    ).rstrip()


if __name__ == "__main__":
    sys.exit(main())
