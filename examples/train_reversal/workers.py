"""Who plays the rollouts: this process, or *workers* of them on Ray."""

from __future__ import annotations

from areal_core import (
    DistributedWorkflowExecutor,
    InferenceEngineConfig,
    RemoteInfEngine,
    WorkflowExecutor,
)


def make_executor(
    workers: int, config: InferenceEngineConfig, engine: RemoteInfEngine, addr: str
) -> WorkflowExecutor:
    """Return an executor whose rollouts get their tokens from the server at *addr*."""
    if not workers:
        return WorkflowExecutor(config, engine)

    from ray import cloudpickle

    import reversal

    # The workflow goes along as it is: workers do not have this directory on their path.
    cloudpickle.register_pickle_by_value(reversal)

    def make_engine() -> RemoteInfEngine:  # called in each worker
        theirs = RemoteInfEngine(config, follows=True)
        theirs.initialize(addr)
        return theirs

    return DistributedWorkflowExecutor(config, engine, make_engine, workers=workers)
