"""What the driver notes of an episode that is played elsewhere."""

from __future__ import annotations

import asyncio
import math

from areal_core._distributed.leases import Ended, Parcel, WorkerState
from areal_core._executor.rollout import Episode
from areal_core._record import ENDED, EpisodeRecord

_RATE_OVER_S = 0.25  # the rate of ends is an average over about so long
_COUNTED_OVER_S = 0.05  # of as many as come in so long: many at once are not a rate


def enter(parcel: Parcel, episode: Episode, stage: str) -> None:
    """Let *episode* be at *stage* from now on."""
    if episode.record.trace is None:
        episode.record.enter(stage)
        return
    # Where its span is current, it is so for this episode alone; and above it is what was so at the submit.
    place = episode.sample_idx
    contexts = parcel.contexts = {} if parcel.contexts is None else parcel.contexts
    if place not in contexts:
        contexts[place] = episode.rollout.context.copy()
    contexts[place].run(episode.record.enter, stage)


def never_begun(episode: Episode) -> Episode:
    """Let *episode* end as cancelled before anybody began it."""
    episode.error = asyncio.CancelledError(
        f"rollout {episode.rollout.task_id} was cancelled before it started"
    )
    episode.record.enter(ENDED)
    if episode.rollout.plan.group_size == 1:
        episode.job = None
    return episode


def fill_in(episode: Episode, one: Ended) -> None:
    """Let *episode* have ended as its worker says."""
    episode.verdict, episode.error, episode.timed_out = one.verdict, one.error, one.timed_out
    episode.seconds = one.seconds
    record = episode.record
    record.enter(ENDED)  # first: it adds what this side knows of the last stage, which the figures have
    record.segments, record.newest_version, record.generate_s, record.reward_s, record.accept_s = one.figures


def take_stage(record: EpisodeRecord, stage: tuple[object, ...], now: float) -> None:
    """Let an episode be where its worker says."""
    name, server, age_s, segments, newest = stage
    record.stage, record.server, record.segments, record.newest_version = name, server, segments, newest  # type: ignore[assignment]
    record.since = now - age_s  # type: ignore[operator]


def count_ends(worker: WorkerState, ended: int, now: float) -> None:
    """Count so many ends at *worker*, and how fast they come."""
    worker.ended += ended
    worker.counted += ended
    passed_s = now - worker.counted_at
    if passed_s >= _COUNTED_OVER_S:
        weight = 1.0 - math.exp(-passed_s / _RATE_OVER_S)
        worker.rate += weight * (worker.counted / passed_s - worker.rate)
        worker.counted, worker.counted_at = 0, now
