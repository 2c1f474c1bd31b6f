"""What an executor's config, its manager, and its share of the work come to."""

from __future__ import annotations

from areal_core._executor.report import Tally
from areal_core._executor.rules import Rules
from areal_core.config import InferenceEngineConfig
from areal_core.staleness_manager import StalenessManager, VersionProvider
from areal_core.types import InferenceEngine

NO_REPORT = Tally().report()

_QUEUED_PER_ROLLOUT = 16
_FEWEST_FAILURES = 32
_UNACCEPTED_BATCHES = 64


def provider_of(config: object, engine: InferenceEngine, given: object) -> VersionProvider:
    """Return who knows the policy version. Raises TypeError for what an executor cannot be made with."""
    if not isinstance(config, InferenceEngineConfig):
        raise TypeError(f"config is a {type(config).__name__}; give an InferenceEngineConfig")
    if not isinstance(given, StalenessManager | None):
        raise TypeError(f"staleness_manager is a {type(given).__name__}; give a StalenessManager, or None")
    provider = engine if given is None else given.version_provider
    if not callable(getattr(provider, "get_version", None)):
        raise TypeError(f"inference_engine={provider!r} has no get_version(); give one that has")
    return provider


def of(
    config: InferenceEngineConfig,
    provider: VersionProvider,
    given: StalenessManager | None,
    parts: int,
) -> tuple[StalenessManager, Rules]:
    """Return the manager and the rules of one of *parts* processes. Raises ValueError."""
    if given is not None:
        batch, most, staleness = given.consumer_batch_size, given.max_concurrent_rollouts, given.max_staleness
    else:
        batch, most = config.consumer_batch_size, config.max_concurrent_rollouts
        staleness = config.max_head_offpolicyness
    batch = _share("consumer_batch_size", batch, parts)
    most = None if most is None else _share("max_concurrent_rollouts", most, parts)
    concurrency = most or (staleness + 1) * batch
    rules = Rules(
        batch=batch,
        max_staleness=staleness,
        most_samples=most,
        most_started=config.queue_size or _QUEUED_PER_ROLLOUT * concurrency,
        on_stale=config.on_stale,
        straggler_wait_s=config.straggler_wait,
        max_requeues=config.max_requeues,
        stall_timeout_s=config.stall_timeout,
        max_failures=config.max_consecutive_failures or max(_FEWEST_FAILURES, 2 * concurrency),
        max_unaccepted=config.max_consecutive_unaccepted or _UNACCEPTED_BATCHES * batch,
    )
    manager = given if given is not None else StalenessManager(provider, most, batch, staleness)
    return manager, rules


def _share(name: str, value: int, parts: int) -> int:
    if value % parts:
        raise ValueError(
            f"{name}={value} cannot be divided by train_data_parallel_size={parts} without a remainder; "
            "change one of them"
        )
    return value // parts
