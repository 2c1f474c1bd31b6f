"""Snapshots as a test wants them, without an executor, and status files of runs that never were."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec

from areal_core._engine.speeds import Speed
from areal_core._engine.stats import EngineStats, ServerStats
from areal_core._executor.books import RolloutLedger
from areal_core._executor.report import StalenessReport
from areal_core._executor.snapshot import Journal, Reason, Snapshot, Straggler, Wait
from areal_core._observe.runs import Status, process_start, this_host

ENGINE = EngineStats(
    running=50,
    ended=1300,
    failed=2,
    cancelled=40,
    attempts=1400,
    tokens=123_456,
    servers=(
        ServerStats(name="10.0.0.1:30000", why_out=None, in_flight=30, waiting=2, version=12, departures=0),
        ServerStats(
            name="10.0.0.2:30000", why_out="it hung up", in_flight=0, waiting=0, version=11, departures=1
        ),
    ),
)

SNAPSHOT = Snapshot(
    taken_at=0.0,
    pid=0,
    program="train.py",
    uptime_s=3723.0,
    has_ended=False,
    training=RolloutLedger(
        pending=83, running=64, finished=21, accepted=1204, rejected=47, failed=19, timed_out=1
    ),
    evaluation=RolloutLedger(submitted=8, running=2, accepted=6),
    version=12,
    is_paused=False,
    reasons=(Reason("concurrency", "64 samples of training run; one has to end"),),
    samples=64,
    most_samples=64,
    units_running=64,
    units_waiting=21,
    units_consumed=0,
    most_units=96,
    callers=("a caller waits for a batch of 32: 24 are there",),
    waits=(Wait(want="batch", is_eval=False, count=32, there=24, is_held=False),),
    batch=32,
    max_staleness=2,
    stages={"generating": 50, "waiting for its reward": 14},
    ages={"generating": (20, 20, 10, 0, 0, 0), "waiting for its reward": (0, 4, 10, 0, 0, 0)},
    lags={0: 40, 1: 20, 5: 4},
    age_p50_s=4.0,
    age_max_s=45.0,
    stragglers=(
        Straggler(
            task_id=7,
            data_id="gsm8k/7",
            workflow="SingleTurnWorkflow",
            is_eval=False,
            age_s=45.0,
            stage="waiting for its reward",
            stage_s=12.0,
            server=None,
            segments=3,
        ),
    ),
    since_end_s=0.1,
    loop_lag_s=0.004,
    staleness=StalenessReport(
        delivered=1183,
        staleness_mean=0.8,
        staleness_max=2,
        tokens_trained=90_000,
        tokens_masked=0,
        wasted_seconds=0.0,
        t10=None,
    ),
    engine=ENGINE,
    journal=Journal(step=3, waiting_bytes=2048, left_out=0, failed=0),
)
"""One of a run that is in the middle of everything."""


def changed(**changes: Any) -> Snapshot:
    """Return `SNAPSHOT` with *changes*."""
    return msgspec.structs.replace(SNAPSHOT, **changes)


def status_of(snapshot: Snapshot, **changes: Any) -> Status:
    """Return what this process would write into its file now, with *changes*."""
    now = msgspec.structs.replace(
        snapshot, pid=snapshot.pid or os.getpid(), taken_at=snapshot.taken_at or time.time()
    )
    status = Status(
        host=this_host(),
        process_start=process_start(now.pid),
        tokens_per_s=12345.0,
        accepted_per_s=0.5,
        tokens_history=tuple(float(one) for one in range(120)),
        left_s=(16.0,) * len(now.waits),
        trainer_busy_s=0.0,
        trainer_waits=0.25,
        servers={one.name: Speed(tokens_per_s=4115.0, each=137.2) for one in now.servers},
        snapshot=now,
    )
    return msgspec.structs.replace(status, **changes)


def write_status(path: Path, status: Status) -> Path:
    """Write *status* to *path*, whose directory is made as a run would."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(status))
    return path
