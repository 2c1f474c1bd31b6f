"""One episode: the workflow plays it, and what it brings is checked and judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec import structs

from areal_core import _log, _record, workflow_context
from areal_core._agents import scope
from areal_core._executor.freshness import ages_of, with_mask
from areal_core._executor.rollout import Accept, Episode, Plan, Verdict
from areal_core.types import InferenceEngine


@dataclass(frozen=True, slots=True)
class Player:
    """Plays episodes with an engine. Each method runs on the loop, in a task of its episode's."""

    engine: InferenceEngine
    checks_format: bool
    masks: bool
    """Whether what is too old will be masked, so that trajectories for training have a ``loss_mask``."""
    journals: bool = False
    """Whether there is a journal, for which large trajectories are packed beside the loop."""

    async def play(self, episode: Episode) -> Verdict:
        """Return what came of *episode*. Raises what the workflow raises, and TypeError for odd results."""
        rollout, plan = episode.rollout, episode.rollout.plan
        _record.current.set(episode.record)
        if _log.binds_episodes:
            _log.bind_episode(rollout.task_id, rollout.data_id, rollout.start_version)
        is_group = plan.group_size > 1
        sample_idx = None if episode.is_judge or not is_group else episode.sample_idx
        workflow_context.set(workflow_context.WorkflowContext(plan.is_eval, rollout.task_id, sample_idx))
        if episode.is_judge:
            return await self._judge_group(episode)
        episode.record.enter(_record.PLAYING)
        here = scope.Scope(self.engine)
        scope.current.set(here)
        try:
            trajectory = await plan.workflow.arun_episode(self.engine, rollout.data)
        finally:
            if here.is_in_use:
                await here.end()
        if trajectory is None:
            return Verdict(None, "the workflow returned None")
        if not isinstance(trajectory, dict):
            raise TypeError(
                f"{type(plan.workflow).__qualname__}.arun_episode returned a {type(trajectory).__name__}; "
                "return a dict of arrays, or None to reject"
            )
        if is_group:
            return Verdict(trajectory)
        return await self._judged(trajectory, episode)

    async def _judge_group(self, judge: Episode) -> Verdict:
        from areal_core.trajectory import concat_padded_tensors

        judge.record.enter("joining its group")
        members = [member.verdict for member in judge.rollout.episodes if member.verdict is not None]
        brought = [verdict.trajectory for verdict in members if verdict.trajectory is not None]
        return await self._judged(concat_padded_tensors(brought), judge)

    async def _judged(self, trajectory: dict[str, Any], episode: Episode) -> Verdict:
        """Return what is made of *trajectory*, which is all that the rollout of *episode* brings."""
        rollout, plan = episode.rollout, episode.rollout.plan
        verdict = self._checked(trajectory, plan)
        if plan.accept is not None:
            verdict = await self._filtered(verdict, plan.accept, episode.record)
        if self.journals and rollout.key is not None and verdict.trajectory is not None:
            from areal_core._executor.recovery import packed_if_large

            verdict = structs.replace(verdict, packed=await packed_if_large(verdict.trajectory, episode))
        return verdict

    def _checked(self, trajectory: dict[str, Any], plan: Plan) -> Verdict:
        if self.checks_format:
            from areal_core.trajectory import check_trajectory_format

            check_trajectory_format(trajectory)
        if self.masks and not plan.is_eval:
            trajectory = with_mask(trajectory)
        return Verdict(trajectory, ages=ages_of(trajectory))

    async def _filtered(self, verdict: Verdict, accept: Accept, record: _record.EpisodeRecord) -> Verdict:
        assert verdict.trajectory is not None
        record.enter(_record.JUDGED)
        scope.current.set(scope.Scope(self.engine))  # for a judge that asks: what it says is in no trajectory
        is_accepted = await accept(verdict.trajectory)
        return verdict if is_accepted else Verdict(None, "should_accept_fn said no")
