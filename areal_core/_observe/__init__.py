"""What an executor is doing, in numbers: one source, many views.

::

    core, desk, engine, watch, journal                  who shows it
    Observer.snapshot()  ->  Snapshot  ---------------> a progress bar, a status file and those who read it,
      any thread, without        counters since the     Prometheus, OpenTelemetry
      stopping the loop          beginning, gauges

Nobody else looks into the executor for figures. Prompts, trajectories and keys are in none of them.
"""

from __future__ import annotations
