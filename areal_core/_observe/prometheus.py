"""The figures as Prometheus takes them. Needs the extra ``prometheus``."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from areal_core._checks import check_integer, check_text
from areal_core._observe.figures import FIGURES, HISTOGRAMS, Figure, HistogramFigure, prometheus_name
from areal_core._observe.meter import Meter, Reading, meter_of

if TYPE_CHECKING:
    from areal_core.workflow_executor import WorkflowExecutor

Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily

_LARGEST_PORT = 65535
_REMEDIES = {
    errno.EADDRINUSE: "another program or executor serves there: give another port, or 0 for a free one",
    errno.EACCES: "give a port above 1023, or 0 for a free one",
    errno.EMFILE: "raise the limit of open files",
}
_UNITS = {"s": "seconds", "By": "bytes"}
_STOP_S = 5.0


class PrometheusCollector(Collector):
    """Gives a registry of ``prometheus_client`` the figures of an executor, one snapshot for each scrape.

    ::

        prometheus_client.REGISTRY.register(PrometheusCollector(executor))

    *executor* is one, or several by name: each has its name in the label ``executor``, one alone is
    ``"main"``. What several of one process are shown by has to be one collector, since a registry takes each
    metric once. It counts from its making on what only counting tells, such as how long rollouts ran, and
    goes on through ``destroy`` and ``initialize``. It keeps no executor alive; one that is gone has no
    figures, and neither has one before ``initialize`` or in a forked child.

    Raises TypeError for what is no executor.
    """

    def __init__(self, executor: WorkflowExecutor | Mapping[str, WorkflowExecutor]) -> None:
        named = executor if isinstance(executor, Mapping) else {"main": executor}
        self._meters: dict[str, Meter] = {str(name): meter_of(one) for name, one in named.items()}

    def describe(self) -> list[Metric]:
        """Return the metrics without values, for the registry to see that nobody else has them."""
        return [_family(one) for one in (*FIGURES, *HISTOGRAMS)]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics now; from any thread, and whatever blocks the loop."""
        readings = {name: meter.read() for name, meter in self._meters.items()}
        for figure in FIGURES:
            yield _figure_family(figure, readings)
        for histogram in HISTOGRAMS:
            yield _histogram_family(histogram, readings)


class MetricsServer:
    """Answers scrapes until it is closed. A context manager."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.host = str(server.server_address[0])
        """The address that it listens on."""
        self.port = server.server_port

    @property
    def url(self) -> str:
        """What Prometheus scrapes."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop listening, and end the thread. A second time it does nothing."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_STOP_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<MetricsServer {self.url}>"


def serve_prometheus(
    executor: WorkflowExecutor | Mapping[str, WorkflowExecutor], port: int = 0, host: str = "127.0.0.1"
) -> MetricsServer:
    """Serve the figures of *executor*, as `PrometheusCollector` gives them, by HTTP in a thread of their own.

    *port* 0 takes a free one, which the result's ``port`` says. Only this machine can connect, unless *host*
    says otherwise: anybody who can may read the figures, which show no prompts and no keys.

    Raises OSError where it cannot listen, as on a port that is taken; TypeError and ValueError.
    """
    if check_integer("port", port, least=0) > _LARGEST_PORT:
        raise ValueError(f"port={port} is above {_LARGEST_PORT}; give one that there is, or 0 for a free one")
    check_text("host", host)
    registry = CollectorRegistry()
    registry.register(PrometheusCollector(executor))
    try:
        return MetricsServer(*start_http_server(port, host, registry))
    except OSError as error:
        raise _cannot_listen(host, port, error) from error


def _cannot_listen(host: str, port: int, error: OSError) -> OSError:
    """Return what *error* is to whoever asked for that host and port, of the same kind."""
    do = _REMEDIES.get(error.errno or 0, "give a host that is an address of this machine")
    why = error.strerror or str(error)
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return OSError(error.errno, f"cannot serve metrics on {place}: {why}; {do}")


def _family(figure: Figure | HistogramFigure) -> Family:
    kind = (
        HistogramMetricFamily
        if isinstance(figure, HistogramFigure)
        else CounterMetricFamily
        if figure.is_counter
        else GaugeMetricFamily
    )
    unit = _UNITS.get(figure.unit, "")
    return kind(prometheus_name(figure), figure.help, labels=("executor", *figure.labels), unit=unit)


def _figure_family(figure: Figure, readings: Mapping[str, Reading]) -> Metric:
    family = _family(figure)
    assert not isinstance(family, HistogramMetricFamily)
    for name, reading in readings.items():
        for labels, value in reading.figures.get(figure, {}).items():
            family.add_metric((name, *labels), value)
    return family


def _histogram_family(figure: HistogramFigure, readings: Mapping[str, Reading]) -> Metric:
    family = _family(figure)
    assert isinstance(family, HistogramMetricFamily)
    bounds = [*map(str, figure.bounds), "+Inf"]
    for name, reading in readings.items():
        for labels, (counts, total) in reading.histograms.get(figure, {}).items():
            buckets = list(zip(bounds, map(float, accumulate(counts)), strict=True))
            family.add_metric((name, *labels), buckets, total)
    return family
