"""The agent as a workflow, in the trainer's process."""

from __future__ import annotations

from typing import Any

from agent import play
from areal_core import RolloutWorkflow, workflow_context
from areal_core.types import InferenceEngine


class InProcess(RolloutWorkflow):
    """Plays episodes with a client whose calls go straight to the engine, and are recorded."""

    async def arun_episode(self, engine: InferenceEngine, data: str) -> dict[str, Any]:
        """Return the trajectory of one episode on the digits *data*."""
        client = await workflow_context.get_openai_client()
        reward = await play(client, data)
        return workflow_context.recorded().to_trajectory(reward)
