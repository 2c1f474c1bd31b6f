"""What stands between a synchronous reinforcement-learning trainer and its asynchronous rollouts.

It decides which rollouts may start, runs thousands of them at once on an event loop in a thread of its own,
gets them their tokens from inference servers, keeps every result, and sees to it that no token is trained on
that is older than you allow: `WorkflowExecutor`, `RemoteInfEngine`, and beneath them `AsyncTaskRunner`.

The names below are imported from their modules on first use, so that ``import areal_core`` costs
nothing: no aiohttp, httpx or uvloop before something needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from areal_core._lazy import lazy
from areal_core.errors import (
    AdmissionStalledError,
    ArealError,
    ControlError,
    DataExhaustedError,
    EngineStoppedError,
    FailureBudgetError,
    GenerationTimeoutError,
    InferenceError,
    JournalError,
    MalformedReplyError,
    RemoteError,
    RunnerDiedError,
    RunnerStoppedError,
    ServerStatusError,
    ServerUnreachableError,
    TaskQueueFullError,
    UnknownTaskError,
    WeightUpdateError,
    WorkerDiedError,
    WorkerLostError,
)

__version__ = "0.1.0"

__all__ = [
    "AdmissionStalledError",
    "ArealError",
    "AsyncTaskRunner",
    "CapacityExplanation",
    "ControlError",
    "DataExhaustedError",
    "DistributedWorkflowExecutor",
    "EmbeddedServer",
    "EngineStoppedError",
    "Explanation",
    "FailureBudgetError",
    "GenerationHyperparameters",
    "GenerationTimeoutError",
    "HttpConfig",
    "InferenceEngineConfig",
    "InferenceError",
    "JournalError",
    "MalformedReplyError",
    "ModelRequest",
    "ModelResponse",
    "RemoteError",
    "RemoteInfEngine",
    "Resumed",
    "RolloutLedger",
    "RolloutOutcome",
    "RolloutStat",
    "RolloutWorkflow",
    "RunnerDiedError",
    "RunnerStats",
    "RunnerStoppedError",
    "ServerStatusError",
    "ServerUnreachableError",
    "StalenessManager",
    "StalenessReport",
    "StuckRollout",
    "TaskQueueFullError",
    "TimedResult",
    "UnknownTaskError",
    "WeightUpdateError",
    "WorkerDiedError",
    "WorkerLostError",
    "WorkflowContext",
    "WorkflowExecutor",
    "install_explain_signal",
    "offloaded",
    "register_loop_cleanup",
    "unregister_loop_cleanup",
    "workflow_context",
]

if TYPE_CHECKING:
    from areal_core import workflow_context
    from areal_core.async_task_runner import AsyncTaskRunner, RunnerStats, TimedResult
    from areal_core.config import InferenceEngineConfig
    from areal_core.distributed import DistributedWorkflowExecutor
    from areal_core.embedded import EmbeddedServer
    from areal_core.explain import (
        CapacityExplanation,
        Explanation,
        StuckRollout,
        install_explain_signal,
    )
    from areal_core.loop_cleanup import register_loop_cleanup, unregister_loop_cleanup
    from areal_core.offload import offloaded
    from areal_core.remote_inf_engine import RemoteInfEngine
    from areal_core.staleness_manager import RolloutStat, StalenessManager
    from areal_core.types import GenerationHyperparameters, ModelRequest, ModelResponse, RolloutWorkflow
    from areal_core.workflow_context import HttpConfig, WorkflowContext
    from areal_core.workflow_executor import (
        Resumed,
        RolloutLedger,
        RolloutOutcome,
        StalenessReport,
        WorkflowExecutor,
    )
else:  # a type checker that saw __getattr__ would let every misspelt name pass
    __getattr__, __dir__ = lazy(
        __name__,
        globals(),
        {
            "AsyncTaskRunner": "async_task_runner",
            "CapacityExplanation": "explain",
            "DistributedWorkflowExecutor": "distributed",
            "EmbeddedServer": "embedded",
            "Explanation": "explain",
            "GenerationHyperparameters": "types",
            "HttpConfig": "workflow_context",
            "InferenceEngineConfig": "config",
            "ModelRequest": "types",
            "ModelResponse": "types",
            "RemoteInfEngine": "remote_inf_engine",
            "Resumed": "workflow_executor",
            "RolloutLedger": "workflow_executor",
            "RolloutOutcome": "workflow_executor",
            "RolloutStat": "staleness_manager",
            "RolloutWorkflow": "types",
            "RunnerStats": "async_task_runner",
            "StalenessManager": "staleness_manager",
            "StalenessReport": "workflow_executor",
            "StuckRollout": "explain",
            "TimedResult": "async_task_runner",
            "WorkflowContext": "workflow_context",
            "WorkflowExecutor": "workflow_executor",
            "install_explain_signal": "explain",
            "offloaded": "offload",
            "register_loop_cleanup": "loop_cleanup",
            "unregister_loop_cleanup": "loop_cleanup",
            "workflow_context": "",
        },
    )
