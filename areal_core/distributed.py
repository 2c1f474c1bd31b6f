"""The executor, with rollouts played by workers: other processes, on this machine and others, through Ray.

One line changes: ``WorkflowExecutor(config, engine)`` becomes

```python
DistributedWorkflowExecutor(config, engine, make_engine, workers=2)
```

where ``make_engine()`` makes, in each worker, the engine that its rollouts use. *engine* stays the trainer's:
it knows the policy version and updates weights. The trainer's process keeps the one staleness budget, the one
ledger and the order of batches; workers have a loop, clients and an engine each, and play what they are lent.

**Episodes run at least once, and are delivered at most once.** What a worker had when it died runs again
elsewhere, from its beginning and at the policy version of its new start; a group does so as a whole. Whatever
an episode did to the world beside its trajectory may happen twice. What comes of a lease that has passed on
is refused, and counted.

What goes to workers is pickled, by cloudpickle: items of data, workflows (once each), filters. Context
variables do not go along. Arrays that come back are read-only, since they are not copied. Needs the extra
``ray``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from areal_core import _process
from areal_core._checks import check_integer, check_number, check_seconds
from areal_core._distributed import ray_life
from areal_core._distributed.far_desk import FarDesk
from areal_core._distributed.leases import LeaseRules
from areal_core._distributed.pace import AHEAD_PER_SLOT
from areal_core._executor.desk import Desk
from areal_core._executor.playing import Player
from areal_core._runner import arguments
from areal_core._runner.life import Life
from areal_core._runner.loop_thread import LoopFactory
from areal_core.config import InferenceEngineConfig
from areal_core.staleness_manager import StalenessManager
from areal_core.types import InferenceEngine
from areal_core.workflow_executor import WorkflowExecutor

if TYPE_CHECKING:
    from areal_core._distributed.ray_link import RayLink

__all__ = ["DispatchStats", "DistributedWorkflowExecutor", "WorkerStats", "worker_engine"]

R = TypeVar("R")

_START_S = 300.0
_OURS = {
    "allow_out_of_order_execution",
    "concurrency_groups",
    "lifetime",
    "max_concurrency",
    "max_restarts",
    "max_task_retries",
    "name",
}
_LEAST_LEASE_S = 5.0  # so that signs of life are a second apart, if the machine is not busy
_CLOSE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """One worker at one moment."""

    number: int
    """Never used again: one that takes the place of another has its own."""
    running: int
    """How many episodes it has, begun or not."""
    ended: int
    """How many it has brought to an end."""
    ended_per_s: float
    """How many of late, per second."""
    silent_s: float
    """Seconds since its last sign of life."""
    stalled_s: float
    """For how many seconds its loop did not turn, or its engine did not take the version, as of that."""
    is_draining: bool
    """Whether it gets nothing more, and goes when it has nothing left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchStats:
    """What became of leases."""

    waiting: int
    """How many rollouts wait for room at a worker."""
    starting: int
    """How many workers are wanted and not there so far."""
    died: int
    """How many workers died, or were killed as they hung or gave no sign of life."""
    lost: int
    """How many were lost with their workers, and ran again or failed."""
    refused: int
    """How many ends came of leases that had passed to others."""


class DistributedWorkflowExecutor(WorkflowExecutor):
    """A `WorkflowExecutor` whose rollouts are played by *workers*, actors of Ray.

    *make_engine* is called in each worker and returns the engine that rollouts there are given; what it has
    of ``set_version`` and ``hold_generation`` is called when the trainer's *inference_engine* has another
    version, or stops and continues generation. A `RemoteInfEngine` there is made with ``follows=True``.

    *slots_per_worker* episodes run at once at a worker; None: so many that all of the configured concurrency
    have room. *lease_s* is for how many seconds a worker may give no sign of life before it is taken for
    dead; a thread of its own gives it, so that it may compute for hours. One whose loop does not turn for
    *hang_s* seconds, or whose engine is as long in ``set_version`` or ``hold_generation``, gets nothing more,
    and is killed *drain_s* seconds later unless it goes on. One that dies is replaced. A rollout that is lost
    with its worker more than *max_losses* times fails with WorkerLostError, if something of it may have begun
    each time; before the last time it is played at a worker that plays nothing else, so that nobody fails for
    what another did. *ray_options* are for `ray.remote`, such as ``num_cpus`` or ``runtime_env``.

    Ray is started on this machine if it does not run, and shut down by the last executor that uses it, if one
    of them started it. Raises like `WorkflowExecutor`, and ImportError without
    the extra ``ray``.
    """

    def __init__(
        self,
        config: InferenceEngineConfig,
        inference_engine: InferenceEngine,
        make_engine: Callable[[], Any],
        staleness_manager: StalenessManager | None = None,
        *,
        workers: int = 2,
        slots_per_worker: int | None = None,
        lease_s: float = 30.0,
        hang_s: float = 300.0,
        drain_s: float = 30.0,
        max_losses: int = 3,
        ray_options: Mapping[str, Any] | None = None,
        resume_from: int | None = None,
        loop_factory: LoopFactory | None = None,
    ) -> None:
        super().__init__(
            config,
            inference_engine,
            staleness_manager,
            resume_from=resume_from,
            loop_factory=loop_factory,
        )
        if not callable(make_engine):
            raise TypeError(
                f"make_engine={make_engine!r} cannot be called; give what makes a worker's engine"
            )
        self._make_engine = make_engine
        self._workers = check_integer("workers", workers, least=1)
        if slots_per_worker is None:
            self._slots = -(-config.concurrency // self._workers)
        else:
            self._slots = check_integer("slots_per_worker", slots_per_worker, least=1)
        self._lease_rules = LeaseRules(
            slots=self._slots,
            most_ahead=AHEAD_PER_SLOT * self._slots,
            lease_s=check_number("lease_s", lease_s, least=_LEAST_LEASE_S),
            hang_s=check_seconds("hang_s", hang_s),
            drain_s=check_number("drain_s", drain_s, least=0.0),
            max_losses=check_integer("max_losses", max_losses, least=0),
        )
        self._own_rules["max_losses"] = max_losses
        self._ray_options = dict(ray_options or {})
        if ours := sorted(_OURS & self._ray_options.keys()):
            raise ValueError(
                f"ray_options has {', '.join(ours)}, which belong to the executor; leave them out"
            )
        self._worker_loop_factory = loop_factory
        self._link: RayLink | None = None
        self._home = _process.home()
        self._ray_use = object()  # what it is known by to those that use the same Ray
        self._closing = threading.RLock()

    # -- life --------------------------------------------------------------------------------------

    def initialize(self, logger: Any = None, train_data_parallel_size: int | None = None) -> None:
        """Start the executor, and its workers; return when all of them are there.

        Raises like `WorkflowExecutor.initialize`, and what kept a worker from starting: the error of
        *make_engine*, TimeoutError after five minutes, or RuntimeError for what Ray says.
        """
        with self._closing:
            if self._link is not None and self._link.is_over:
                self._close_link(_CLOSE_S)  # its loop died, and its workers hold what the new ones need
            runs = self._link is not None
        ray_life.join(self._ray_use)
        try:
            super().initialize(logger, train_data_parallel_size)
        except BaseException:
            if not runs:
                self._link = None
                ray_life.leave(self._ray_use)
            raise
        try:
            assert self._link is not None
            subscribe = getattr(self._engine, "subscribe_generation", None)
            if callable(subscribe):
                self._desk().follow(subscribe)
            self._link.begin(self._desk(), self._workers, _START_S)
        except BaseException:
            self.destroy(_CLOSE_S)
            raise

    def destroy(self, timeout: float | None = 30.0) -> None:
        """Stop everything, like `WorkflowExecutor.destroy`; what workers have not brought is cancelled.

        They get what is left of *timeout*, a second at least, then they are killed; with None 10 s. Does
        nothing to them in a forked child.
        """
        began = time.monotonic()
        super().destroy(timeout)
        if self._home is not _process.home():
            return  # Ray, and its workers, are the parent's
        with self._closing:  # another thread's destroy has to have done all of this, too, when it returns
            try:
                passed_s = time.monotonic() - began
                self._close_link(_CLOSE_S if timeout is None else max(1.0, timeout - passed_s))
            finally:
                ray_life.leave(self._ray_use)

    def _close_link(self, timeout_s: float) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close(timeout_s)

    # -- workers -----------------------------------------------------------------------------------

    def workers(self) -> list[WorkerStats]:
        """Return how the workers are that play. Raises RunnerStoppedError, RunnerDiedError."""
        self._on_link()
        desk = self._desk()
        now = desk.time()
        return desk.read(
            lambda _: [
                WorkerStats(
                    number=worker.number,
                    running=worker.load,
                    ended=worker.ended,
                    ended_per_s=worker.rate,
                    silent_s=now - worker.seen_at,
                    stalled_s=worker.stalled_s,
                    is_draining=worker.is_draining,
                )
                for worker in desk.dispatcher.workers.values()
            ]
        )

    def dispatch_stats(self) -> DispatchStats:
        """Return what became of leases. Raises RunnerStoppedError before ``initialize``."""
        desk = self._desk()
        known, link = desk.dispatcher, self._link
        return desk.read(
            lambda _: DispatchStats(
                waiting=known.waiting,
                starting=0 if link is None else len(link.crew.starting),
                died=known.dead,
                lost=known.lost,
                refused=known.refused,
            )
        )

    def add_workers(self, count: int = 1) -> None:
        """Have *count* workers more, as soon as they have started. Raises RunnerStoppedError, ValueError."""
        count = check_integer("count", count, least=1)
        self._on_link().crew.add(count)

    def remove_workers(self, count: int = 1) -> list[int]:
        """Have *count* workers fewer; return the numbers of those that go.

        That is first who has not started so far, then the least busy ones: each finishes what it has begun,
        gives back the rest, and ends. Raises RunnerStoppedError; ValueError where none would be left.
        """
        count = check_integer("count", count, least=1)
        link, desk = self._on_link(), self._desk()

        def leave(_: object = None) -> list[int]:
            if count >= link.crew.wanted:
                raise ValueError(
                    f"remove_workers({count}) would leave none of the {link.crew.wanted} there are, and "
                    "nobody to play; add_workers() first, or destroy()"
                )
            numbers = link.crew.drop(count)
            here = [worker for worker in desk.dispatcher.workers.values() if not worker.is_draining]
            for worker in sorted(here, key=lambda worker: worker.load)[: count - len(numbers)]:
                link.let_go(worker.number)
                desk.dispatcher.drain(worker.number)
                numbers.append(worker.number)
            return numbers

        return desk.call(leave)

    def run_everywhere(
        self, async_fn: Callable[..., Awaitable[R]], /, *args: Any, timeout: float | None = None
    ) -> list[R]:
        """Run ``async_fn(*args)`` on each worker's loop and return the values, one a worker.

        It is pickled; the engine of the worker it runs in is `worker_engine()`. Raises what one of them
        raises, with its traceback there as a note; TimeoutError where a worker has not answered in *timeout*
        seconds (None: however long it takes); WorkerLostError where one dies or is removed meanwhile, or none
        is there. Then, and when it is interrupted, it is cancelled where it still runs.
        """
        if not callable(async_fn):
            arguments.refuse_fn(async_fn)
        self._on_shift().raise_on_loop_thread("run_everywhere")
        return self._on_link().crew.call_all(async_fn, args, arguments.check_seconds("timeout", timeout))

    # -- inside ------------------------------------------------------------------------------------

    def _make_desk(self, life: Life, player: Player, episode_timeout_s: float | None) -> Desk:
        from areal_core._distributed.ray_link import RayLink
        from areal_core._distributed.worker import Setup

        setup = Setup(
            self._make_engine,
            self._slots,
            player.checks_format,
            player.masks,
            episode_timeout_s,
            self._config.cancel_grace,
            self._worker_loop_factory,
            self._config.loop_block_warning,
        )
        self._link = RayLink(setup, self._ray_options, life, self._log_of_workers)
        return FarDesk(life, self._lease_rules, self._link)

    def _log_of_workers(self, level: str, event: str, **fields: Any) -> None:
        if self._shift is not None:
            self._shift.say(level, event, **fields)

    def _desk(self) -> FarDesk:
        desk = self._on_shift().desk
        assert isinstance(desk, FarDesk)
        return desk

    def _on_link(self) -> RayLink:
        self._on_shift().raise_if_ended()
        assert self._link is not None
        return self._link


def worker_engine() -> Any:
    """Return the engine of the worker that this process is. Raises RuntimeError in any other process."""
    from areal_core._distributed.worker import Worker

    if Worker.engine is None:
        raise RuntimeError("this process is no worker; call worker_engine() in what run_everywhere runs")
    return Worker.engine
