"""The figures as OpenTelemetry takes them, and who asked for spans. Needs the extra ``otel``."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation
from opentelemetry.trace import TracerProvider
from opentelemetry.util.types import AttributeValue

import areal_core
from areal_core import _process
from areal_core._checks import check_text
from areal_core._log import describe, get_logger
from areal_core._observe.figures import FIGURES, HISTOGRAMS, Figure, HistogramFigure, Labels
from areal_core._observe.meter import NOTHING, Meter, meter_of
from areal_core._observe.telling import address_of
from areal_core._observe.tracing import Tracing

if TYPE_CHECKING:
    from areal_core.workflow_executor import WorkflowExecutor

_SCOPE = "areal_core"
_AGE_S = 1.0
_MOST_VALUES = 64

_ATTRIBUTES = {
    "kind": "areal.rollout.kind",
    "status": "areal.status",
    "state": "areal.state",
    "stage": "areal.stage",
    "reason": "areal.reason",
    "place": "areal.place",
}


class _View:
    """One executor, as the callbacks of all instruments see it: with one snapshot for each collection."""

    def __init__(self, meter: Meter, owner: Instrumentation) -> None:
        self.meter = meter
        self.owner = owner
        self._lock = threading.Lock()
        self._reading = NOTHING
        self._read_at = 0.0
        self._taken: set[Figure] = set(FIGURES)

    def samples(self, figure: Figure) -> dict[Labels, float]:
        """Return what *figure* is: of a new snapshot, when it is asked for a second time of the last."""
        with self._lock:
            now = time.monotonic()
            if figure in self._taken or now - self._read_at > _AGE_S:
                self._reading, self._read_at, self._taken = self.meter.read(), now, set()
            self._taken.add(figure)
            return dict(self._reading.figures.get(figure, {}))


class _Instruments:
    """The instruments of one provider, for all executors."""

    def __init__(self, provider: MeterProvider) -> None:
        self.views: dict[str, _View] = {}
        """Executors by name."""
        meter = provider.get_meter(_SCOPE, areal_core.__version__)
        for figure in FIGURES:
            create = meter.create_observable_counter if figure.is_counter else meter.create_observable_gauge
            create(figure.name, [partial(self._observe, figure)], figure.unit, figure.help)
        self._histograms: dict[HistogramFigure, Histogram] = {
            one: meter.create_histogram(
                one.name, one.unit, one.help, explicit_bucket_boundaries_advisory=one.bounds
            )
            for one in HISTOGRAMS
        }
        self._values: deque[tuple[str, HistogramFigure, Labels, float]] = deque()  # not recorded so far
        self._home = _process.home()
        self._has_failed = False

    def _observe(self, figure: Figure, _options: CallbackOptions) -> Iterator[Observation]:
        self.flush()
        for name, view in list(self.views.items()):
            for labels, value in view.samples(figure).items():
                yield Observation(value, _attributes(name, figure.labels, labels))

    def record(self, name: str, figure: HistogramFigure, labels: Labels, value: float) -> None:
        """Take one value of a histogram, of the executor *name*. Never raises.

        Many are recorded one after the other, at the latest before a collection: each for itself, between
        steps of episodes, would take four times as long.
        """
        self._values.append((name, figure, labels, value))
        if len(self._values) >= _MOST_VALUES:
            self.flush()

    def flush(self) -> None:
        """Record what was taken; from any thread. Never raises. A forked child forgets its parent's."""
        if self._home is not _process.home():
            self._home = _process.home()
            self._values.clear()
        try:
            while self._values:
                name, figure, labels, value = self._values.popleft()
                self._histograms[figure].record(value, _attributes(name, figure.labels, labels))
        except IndexError:
            return  # another thread was faster
        except Exception as error:  # a provider's; the core must not hear of it
            if not self._has_failed:
                self._has_failed = True
                get_logger().warning("metering_failed", error=describe(error), exc_info=error)


def _attributes(name: str, labels: Labels, values: Labels) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {"areal.executor": name}
    for label, value in zip(labels, values, strict=True):
        if label == "server":
            attributes.update(address_of(value))
        else:
            attributes[_ATTRIBUTES[label]] = value
    return attributes


class Instrumentation:
    """What `instrument` did, which `close` undoes."""

    def __init__(self, name: str, meter: Meter, instruments: _Instruments, tracing: Tracing) -> None:
        self.name = name
        """The attribute ``areal.executor`` of all that comes of it."""
        self._meter = meter
        self._instruments = instruments
        self._tracing = tracing
        self._listener = partial(instruments.record, name)
        self._view = _View(meter, self)
        self._is_closed = False

    def _open(self) -> None:
        self._instruments.views[self.name] = self._view
        self._meter.listeners.append(self._listener)
        self._meter.tracing = self._tracing
        self._meter.see()

    def flush(self) -> None:
        """Hand on what has happened: spans of what has ended else wait up to a tenth of a second to be made.

        For before a ``force_flush`` or ``shutdown`` of the provider while the executor goes on, whose own end
        does the same. Any thread may call it.
        """
        self._tracing.told.flush()
        self._instruments.flush()

    def close(self) -> None:
        """Give no more figures, and begin no more spans. A second time it does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._instruments.views.get(self.name) is self._view:
            del self._instruments.views[self.name]
        self._meter.listeners.remove(self._listener)
        if self._meter.tracing is self._tracing:
            self._meter.tracing = None
        self._tracing.told.end()  # for what still runs
        self.flush()
        self._meter.see()


_lock = threading.Lock()
_of_provider: weakref.WeakKeyDictionary[Any, _Instruments] = weakref.WeakKeyDictionary()
_of_executor: weakref.WeakKeyDictionary[WorkflowExecutor, Instrumentation] = weakref.WeakKeyDictionary()


def instrument(
    executor: WorkflowExecutor,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    *,
    name: str = "main",
) -> Instrumentation:
    """Give OpenTelemetry the figures of *executor*, and a span for each episode with one for each phase.

    None stands for the provider that is set for the process. Of several executors in a process each needs a
    *name* of its own, which is the attribute ``areal.executor``; that of one that has ended is free. Spans
    that user code begins in an episode are children of the episode's, and that is one of the span that was
    current at the submit. Prompts, trajectories, keys and the texts of errors are in none of it.

    It lasts through ``destroy`` and ``initialize``. Once more for the same executor, it replaces what it did
    before. All episodes are traced that the provider's sampler takes. Their spans are made when some have
    ended, a tenth of a second later at most, see `Instrumentation.flush`. A processor that exports each span
    at its end holds up every episode: take one that exports in batches.

    Raises ValueError for the name of another executor, what the providers raise, and TypeError.
    """
    meter = meter_of(executor)
    check_text("name", name)
    tracer = (tracer_provider or trace.get_tracer_provider()).get_tracer(_SCOPE, areal_core.__version__)
    provider = meter_provider or metrics.get_meter_provider()
    with _lock:
        instruments = _of_provider.get(provider)
        if instruments is None:
            instruments = _of_provider[provider] = _Instruments(provider)
        other = instruments.views.get(name)
        if other is not None and other.meter is not meter:
            if other.meter.is_in_use:
                raise ValueError(f"name={name!r} is that of another executor; give this one another")
            other.owner.close()
        before = _of_executor.pop(executor, None)
        if before is not None:
            before.close()
        model = executor._config.model
        made = Instrumentation(name, meter, instruments, Tracing(tracer, name, model))
        made._open()
        _of_executor[executor] = made
        return made
