"""What an episode is played for, kept where its task and all that this starts find it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkflowContext:
    """Tell a workflow what it is run for."""

    is_eval: bool = False
    """Whether the rollout evaluates; it then serves no training."""

    task_id: int | None = None
    """The task it is part of; None unless whoever starts the workflow sets it."""

    sample_idx: int | None = None
    """Its place in its group; None where there is no group."""


current = ContextVar("areal_core.workflow_context", default=WorkflowContext())  # noqa: B039 - it is frozen
"""That of the running task."""
