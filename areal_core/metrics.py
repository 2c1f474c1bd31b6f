"""Figures and spans for the programs that watch programs: Prometheus and OpenTelemetry.

```python
with serve_prometheus(executor, port=9400):         # pip install 'areal-core[prometheus]'
    train()

instrument(executor)                                # pip install 'areal-core[otel]'
```

Both show the same figures, each under the names that are usual there, and can be on at once; the guide has a
table of them. Labels have few values: statuses, stages, servers, kinds. Prompts, trajectories, keys and ids
are in no figure. Who asks for figures does so in a thread of his own; where nobody has asked, nothing is
counted.

An engine that several executors share is in the figures of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from areal_core._lazy import lazy

__all__ = ["Instrumentation", "MetricsServer", "PrometheusCollector", "instrument", "serve_prometheus"]

if TYPE_CHECKING:
    from areal_core._observe.otel import Instrumentation, instrument
    from areal_core._observe.prometheus import MetricsServer, PrometheusCollector, serve_prometheus
else:  # neither of the two extras has to be there for the other
    __getattr__, __dir__ = lazy(
        "areal_core",
        globals(),
        {
            "Instrumentation": "_observe.otel",
            "MetricsServer": "_observe.prometheus",
            "PrometheusCollector": "_observe.prometheus",
            "instrument": "_observe.otel",
            "serve_prometheus": "_observe.prometheus",
        },
    )
