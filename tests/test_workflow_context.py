from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from collections.abc import Callable

import pytest

from areal_core import workflow_context
from areal_core.workflow_context import WorkflowContext

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def in_context(function: Callable[[], object]) -> object:
    return contextvars.copy_context().run(function)


def test_without_a_set_the_context_is_that_of_training() -> None:
    assert workflow_context.get() == WorkflowContext(is_eval=False, task_id=None, sample_idx=None)
    assert workflow_context.stat_scope() == "rollout"


def test_what_was_set_is_what_one_gets() -> None:
    def set_and_get() -> object:
        workflow_context.set(WorkflowContext(True, 7, 3))
        return workflow_context.get(), workflow_context.stat_scope()

    expected = WorkflowContext(is_eval=True, task_id=7, sample_idx=3)
    assert in_context(set_and_get) == (expected, "eval-rollout")


def test_a_context_that_is_set_is_seen_by_the_task_and_its_children_only(loop_factory: LoopFactory) -> None:
    async def child() -> WorkflowContext:
        return workflow_context.get()

    async def task(number: int) -> tuple[WorkflowContext, WorkflowContext]:
        workflow_context.set(WorkflowContext(task_id=number))
        return await asyncio.create_task(child()), workflow_context.get()

    async def main() -> None:
        one, two = WorkflowContext(task_id=1), WorkflowContext(task_id=2)
        seen = await asyncio.gather(task(1), task(2))
        assert list(seen) == [(one, one), (two, two)]
        assert workflow_context.get() == WorkflowContext()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_a_context_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        WorkflowContext().is_eval = True  # type: ignore[misc]


def test_what_is_not_a_context_cannot_be_set() -> None:
    with pytest.raises(TypeError) as caught:
        workflow_context.set({"is_eval": True})  # type: ignore[arg-type]
    assert str(caught.value) == (
        "context={'is_eval': True} is not a WorkflowContext; pass WorkflowContext(...)"
    )


def test_the_module_offers_what_is_documented() -> None:
    assert workflow_context.__all__ == [
        "HttpClientManager",
        "HttpConfig",
        "WorkflowContext",
        "configure_http",
        "ensure_descriptors",
        "get",
        "get_aiohttp_session",
        "get_control_session",
        "get_httpx_client",
        "get_openai_client",
        "record",
        "recorded",
        "set",
        "stat_scope",
    ]
    assert all(hasattr(workflow_context, name) for name in workflow_context.__all__)
