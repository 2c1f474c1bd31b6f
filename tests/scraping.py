"""What Prometheus gets: scrapes over HTTP, read by its client's own parsers."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from areal_core.metrics import PrometheusCollector

PARSERS: dict[str, Callable[[str], Iterable[Metric]]] = {"text": parse_text, "openmetrics": parse_openmetrics}
_ACCEPT = {"text": "text/plain", "openmetrics": "application/openmetrics-text; version=1.0.0"}

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Values by name and labels."""


def scrape(url: str, kind: str = "text") -> list[Metric]:
    """Return what *url* shows, in one of the two forms."""
    request = urllib.request.Request(url, headers={"Accept": _ACCEPT[kind]})
    with urllib.request.urlopen(request, timeout=20.0) as answer:
        return list(PARSERS[kind](answer.read().decode()))


def collected(collector: PrometheusCollector) -> list[Metric]:
    """Return what *collector* gives, written and read again."""
    registry = CollectorRegistry()
    registry.register(collector)
    return list(PARSERS["text"](generate_latest(registry).decode()))


def series_of(metrics: Iterable[Metric]) -> Series:
    """Return all samples; fail where one comes twice."""
    found: Series = {}
    for metric in metrics:
        for sample in metric.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(series: Series, name: str, **labels: str) -> float:
    """Return the value of one series of the executor "main", unless *labels* name another."""
    return series[name, tuple(sorted({"executor": "main", **labels}.items()))]


def counters(metrics: Iterable[Metric]) -> Series:
    """Return the samples that must never fall."""
    return series_of(metric for metric in metrics if metric.type in ("counter", "histogram"))
