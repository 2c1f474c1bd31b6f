"""One episode: the workflow plays it, and what it brings is checked and judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from areal_core import _record, workflow_context
from areal_core._agents import scope
from areal_core._executor.freshness import ages_of, with_mask
from areal_core._executor.rollout import Accept, Episode, Verdict, Work
from areal_core.types import InferenceEngine


@dataclass(frozen=True, slots=True)
class Player:
    """Plays episodes with an engine. Each method runs on the loop, in a task of its episode's."""

    engine: InferenceEngine
    checks_format: bool
    masks: bool
    """Whether what is too old will be masked, so that trajectories for training have a ``loss_mask``."""

    async def play(self, episode: Episode) -> Verdict:
        """Return what came of *episode*. Raises what the workflow raises, and TypeError for odd results."""
        rollout, work = episode.rollout, episode.rollout.work
        _record.current.set(episode.record)
        is_group = work.group_size > 1
        sample_idx = None if episode.is_judge or not is_group else episode.sample_idx
        workflow_context.set(workflow_context.WorkflowContext(work.is_eval, rollout.task_id, sample_idx))
        if episode.is_judge:
            return await self._judge_group(episode)
        episode.record.enter(_record.PLAYING)
        here = scope.Scope(self.engine)
        scope.current.set(here)
        try:
            trajectory = await work.workflow.arun_episode(self.engine, work.data)
        finally:
            if here.is_in_use:
                await here.end()
        if trajectory is None:
            return Verdict(None, "the workflow returned None")
        if not isinstance(trajectory, dict):
            raise TypeError(
                f"{type(work.workflow).__qualname__}.arun_episode returned a {type(trajectory).__name__}; "
                "return a dict of arrays, or None to reject"
            )
        if is_group:
            return Verdict(trajectory)
        verdict = self._checked(trajectory, work)
        return verdict if work.accept is None else await self._filtered(verdict, work.accept, episode.record)

    async def _judge_group(self, judge: Episode) -> Verdict:
        from areal_core.trajectory import concat_padded_tensors

        judge.record.enter("joining its group")
        members = [member.verdict for member in judge.rollout.episodes if member.verdict is not None]
        brought = [verdict.trajectory for verdict in members if verdict.trajectory is not None]
        work = judge.rollout.work
        verdict = self._checked(concat_padded_tensors(brought), work)
        return verdict if work.accept is None else await self._filtered(verdict, work.accept, judge.record)

    def _checked(self, trajectory: dict[str, Any], work: Work) -> Verdict:
        if self.checks_format:
            from areal_core.trajectory import check_trajectory_format

            check_trajectory_format(trajectory)
        if self.masks and not work.is_eval:
            trajectory = with_mask(trajectory)
        return Verdict(trajectory, ages=ages_of(trajectory))

    async def _filtered(self, verdict: Verdict, accept: Accept, record: _record.EpisodeRecord) -> Verdict:
        assert verdict.trajectory is not None
        record.enter("waiting for should_accept_fn")
        scope.current.set(scope.Scope(self.engine))  # for a judge that asks: what it says is in no trajectory
        is_accepted = await accept(verdict.trajectory)
        return verdict if is_accepted else Verdict(None, "should_accept_fn said no")
