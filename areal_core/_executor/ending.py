"""What a rollout came to, once nothing of it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from areal_core._executor.freshness import UNKNOWN, Ages
from areal_core._executor.outcome import RolloutOutcome, Status
from areal_core._executor.rollout import Episode, Rollout


def outcome_of(rollout: Rollout, now: float, max_staleness: int | None) -> tuple[RolloutOutcome, Ages]:
    """Return how *rollout* ended at *now*, and how old its tokens are; doom apart, which is the core's.

    None can be older than *max_staleness* versions at its start; None: for all we know.
    """
    if rollout.is_cancelled:
        cancelled = asyncio.CancelledError(f"rollout {rollout.task_id} was cancelled")
        return make(rollout, now, "cancelled", error=cancelled), UNKNOWN
    failed = rollout.failure or _failed_without_rest(rollout)
    if failed is not None:
        return make(rollout, now, _status_of(failed), error=failed.error), UNKNOWN
    verdict = (rollout.judge or rollout.episodes[0]).verdict
    if verdict is None or verdict.trajectory is None:
        return make(rollout, now, "rejected", reason=_why_rejected(rollout)), UNKNOWN
    oldest = verdict.ages.oldest
    if max_staleness is not None and oldest is not None and oldest < rollout.start_version - max_staleness:
        error = ValueError(
            f"a trained token of rollout {rollout.task_id} says that version {oldest} made it, while the "
            f"rollout started at version {rollout.start_version}, and max_staleness is {max_staleness}; "
            "take versions from ModelResponse.output_versions, and give prompt tokens -1"
        )
        return make(rollout, now, "failed", error=error), UNKNOWN
    return make(rollout, now, "accepted", trajectory=verdict.trajectory, ages=verdict.ages), verdict.ages


def packed_of(rollout: Rollout) -> bytes | None:
    """Return the trajectory of one that was accepted, if it was packed for the journal."""
    verdict = (rollout.judge or rollout.episodes[0]).verdict
    return None if verdict is None else verdict.packed


def make(
    rollout: Rollout,
    now: float,
    status: Status,
    *,
    trajectory: dict[str, Any] | None = None,
    error: BaseException | None = None,
    reason: str | None = None,
    ages: Ages = UNKNOWN,
) -> RolloutOutcome:
    """Make the outcome of *rollout*."""
    has_begun = bool(rollout.episodes)
    start = rollout.start_version if has_begun else None
    failed = _failed_members(rollout) if rollout.plan.keep_rest and rollout.plan.group_size > 1 else ()
    return RolloutOutcome(
        task_id=rollout.task_id,
        status=status,
        trajectory=trajectory,
        error=error,
        members_failed=len(failed),
        member_error=failed[0].error if failed else None,
        reason=reason,
        is_eval=rollout.plan.is_eval,
        data_id=rollout.data_id,
        start_version=start,
        origin=(start if ages.oldest is None else ages.oldest) if status == "accepted" else None,
        create_time=rollout.started_at if has_begun else now,
        finish_time=now,
    )


def _failed_without_rest(rollout: Rollout) -> Episode | None:
    """Return the first of the failures of a group that goes on without those that fail, if none is left."""
    if rollout.judge is not None:
        return None
    failed = [member for member in rollout.episodes if member.error is not None]
    return failed[0] if failed else None


def _failed_members(rollout: Rollout) -> Sequence[Episode]:
    return [one for one in rollout.episodes if one.error is not None and not one.told_to_end]


def _status_of(failed: Episode) -> Status:
    if failed.timed_out:
        return "timed_out"
    # Not isinstance: its class may have a __class__ that raises.
    return "cancelled" if issubclass(type(failed.error), asyncio.CancelledError) else "failed"


def _why_rejected(rollout: Rollout) -> str:
    verdicts = [episode.verdict for episode in (rollout.judge, *rollout.episodes) if episode is not None]
    reasons = [verdict.reason for verdict in verdicts if verdict is not None and verdict.reason]
    return reasons[0] if reasons else "no reason given"
