"""Asynchronous rollouts with bounded staleness, for a trainer that is synchronous code.

```python
with RemoteInfEngine(config, backend="sglang") as engine, WorkflowExecutor(config, engine) as executor:
    engine.initialize(addresses)
    for step in range(steps):
        batch = executor.prepare_batch(dataloader, workflow, group_size=8)
        train_on(batch)
        executor.runner.run(engine.update_weights_from_disk, save(step), step + 1)
```

Rollouts go on while the trainer trains. No token it is given to train on is older, by more than
``max_head_offpolicyness`` policy versions, than the version at which `prepare_batch` or `wait` returned it,
unless ``on_stale="keep"``. Every rollout ends in exactly one outcome, and the ledger says where all are.
See the package ``_executor`` for how it works.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar

from areal_core._checks import check_flag, check_integer
from areal_core._executor import settings
from areal_core._executor.books import RolloutLedger
from areal_core._executor.committing import Committing
from areal_core._executor.desk import Desk
from areal_core._executor.handover import Feed, accepted, trajectories
from areal_core._executor.local_desk import LocalDesk
from areal_core._executor.outcome import RolloutOutcome
from areal_core._executor.playing import Player
from areal_core._executor.prompts import Prompts
from areal_core._executor.report import StalenessReport
from areal_core._executor.requests import Request, Want
from areal_core._executor.resumed import Resumed
from areal_core._executor.rollout import Lane, Rollout
from areal_core._executor.shift import Shift
from areal_core._executor.steering import Steering
from areal_core._executor.within import within
from areal_core._executor.work import Planner, Workflow
from areal_core._observe.showing import show
from areal_core._runner import arguments
from areal_core._runner.arguments import FIRST_OWN_ID, check_count, deadline_after
from areal_core._runner.life import Life
from areal_core._runner.loop_thread import LoopFactory
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.config import InferenceEngineConfig
from areal_core.staleness_manager import StalenessManager
from areal_core.types import InferenceEngine

__all__ = ["Resumed", "RolloutLedger", "RolloutOutcome", "StalenessReport", "WorkflowExecutor"]

R = TypeVar("R")

_LEAST_S = 1.0  # of destroy's timeout, for what is to be written, whoever has used it up


class WorkflowExecutor(Steering, Committing):
    """Decides which rollouts may start, runs them, keeps every result, and bounds how stale the data is.

    Use it as a context manager, or call ``initialize`` and ``destroy``, as often as you like. Any thread may
    call it, but `prepare_batch` only one at a time.

    *inference_engine* is what workflows get tokens from, and knows the policy version. *staleness_manager*
    is told of training rollouts in AReaL's terms, and its limits are used in place of those in *config*;
    None makes one. *loop_factory* makes the loop, as `AsyncTaskRunner`'s does.

    With ``journal_dir`` in *config*, `prepare_batch` goes on where a run that was killed had come to:
    *resume_from* is the step of the checkpoint that the trainer goes on from, which it gave to `commit`; None
    is the beginning, as long as nothing was committed. See the module `journal`.

    Raises TypeError, and ValueError for a step without a journal.
    """

    def __init__(
        self,
        config: InferenceEngineConfig,
        inference_engine: InferenceEngine,
        staleness_manager: StalenessManager | None = None,
        *,
        resume_from: int | None = None,
        loop_factory: LoopFactory | None = None,
    ) -> None:
        self._config = config
        self._resume_from = self._checked_step(resume_from)
        self._engine = inference_engine
        self._given_manager = staleness_manager
        self._provider = settings.provider_of(config, inference_engine, staleness_manager)
        self._manager, self._rules = settings.of(config, self._provider, staleness_manager, 1)
        self._runner: AsyncTaskRunner[Any] = AsyncTaskRunner(
            self._rules.most_started, cancel_grace=config.cancel_grace, loop_factory=loop_factory
        )
        self._planner = Planner(config)
        self._own_ids = itertools.count(FIRST_OWN_ID)
        self._prompts = Prompts(self._own_ids)
        self._turn: dict[str, object] = {}  # whose it is to prepare a batch
        self._shift: Shift | None = None
        self._own_rules: dict[str, Any] = {}  # of a subclass: what no config says
        self._observers: list[Callable[[Desk], object]] = []  # shown each life, for figures and traces

    # -- life --------------------------------------------------------------------------------------

    def initialize(self, logger: Any = None, train_data_parallel_size: int | None = None) -> None:
        """Start the thread and the loop that the rollouts run on.

        *logger* is a structlog or a standard logger; None means the standard logger ``areal_core``.
        With *train_data_parallel_size* n the batch and the concurrency of this process are 1/n of the
        configured; None is 1. After ``destroy`` it starts clean and not paused; what was finished and never
        collected is dropped with one warning and counted as ``discarded``. With a journal it goes on from the
        last commit, as another process would.

        Raises JournalError when the journal cannot be used, or not be resumed from there; ValueError where n
        does not divide them, RuntimeError when it runs already, and whatever kept thread or loop from
        starting.
        """
        parts = 1 if train_data_parallel_size is None else train_data_parallel_size
        parts = check_integer("train_data_parallel_size", parts, least=1)
        manager, rules = settings.of(self._config, self._provider, self._given_manager, parts)
        rules = replace(rules, **self._own_rules)
        self._runner.initialize(logger)
        try:
            journaling = self._open_journal(logger)
            shift = Shift(
                self._config,
                rules,
                manager,
                self._engine,
                self._runner,
                logger,
                self._shift,
                journaling,
                functools.partial(show, self._config, logger),
                self._make_desk,
                self._observers,
            )
            shift.begin()
            if journaling is not None:
                self._prompts = Prompts(self._own_ids, journaling.recovery, journaling.say_strangers)
            self._manager, self._rules, self._shift = manager, rules, shift
        except BaseException:
            self._runner.destroy()
            if self._journaling is not None:
                self._journaling.close()
            raise

    def destroy(self, timeout: float | None = 30.0) -> None:
        """Stop everything within *timeout* seconds (None: however long it takes).

        Rollouts that have not ended end as cancelled, and stay collectable with the rest; whoever waits gets
        RunnerStoppedError. Does nothing before ``initialize``, or a second time. Raises RuntimeError on the
        loop thread.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            self._runner.destroy(timeout)
        finally:
            self._planner.forget()
        if self._shift is not None:
            self._shift.close(_left_of(deadline))
        if self._journaling is not None:
            self._journaling.close(_left_of(deadline))

    def __enter__(self) -> Self:
        self.initialize()
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    # -- rollouts ----------------------------------------------------------------------------------

    def submit(
        self,
        data: Any,
        workflow: Workflow,
        workflow_kwargs: dict[str, Any] | None = None,
        should_accept_fn: Callable[[dict[str, Any]], Any] | str | None = None,
        group_size: int = 1,
        task_id: int | None = None,
        is_eval: bool = False,
    ) -> int:
        """Have *workflow* play *data* when there is capacity, and return the rollout's id. Never blocks.

        *workflow* is an instance, a class to be made with *workflow_kwargs*, or an import path of either; or
        an agent, whose ``run(data, *, base_url, api_key, http_client)`` is played as `AgentWorkflow` does.
        *should_accept_fn* is given the trajectory and returns, or is awaited for, whether to keep it; None
        keeps all. Of a group of *group_size* episodes one trajectory comes, whose batch they are. *task_id*
        is an int in 0..2**48-1 that is not in use; None makes one up. *is_eval* rollouts have slots of their
        own, cost nothing of the training budget, and do not come out of `wait`. Beside `prepare_batch`, which
        keeps as many under way as the budget allows, others wait for what it leaves.

        Raises ImportError, TypeError, ValueError; RunnerStoppedError and RunnerDiedError.
        """
        shift = self._on_shift()
        shift.raise_if_ended()  # first: the planner keeps the workflow
        plan = self._planner.plan(workflow, workflow_kwargs, should_accept_fn, group_size, is_eval)
        task_id = next(self._own_ids) if task_id is None else arguments.check_task_id(task_id)
        rollout = plan.rollout(task_id, data, Lane.OPEN)
        try:
            if task_id < FIRST_OWN_ID:
                shift.ids.take(rollout)
            shift.desk.submit(rollout)
        except BaseException:
            rollout.is_abandoned = True  # unless the core was faster
            raise
        return task_id

    def cancel(self, task_id: int) -> bool:
        """Decide that a rollout's outcome is ``cancelled``; return whether it is.

        False for an id that is unknown, or finished otherwise, and for a group that has failed. Its episodes
        may clean up for ``cancel_grace`` seconds. Raises RunnerStoppedError before ``initialize``, TypeError
        for what is no id.
        """
        shift = self._on_shift()
        return shift.desk.call(shift.desk.core.cancel, arguments.check_any_id(task_id))

    def wait(
        self, count: int, timeout: float | None = None, raise_timeout: bool = True
    ) -> list[dict[str, Any] | None]:
        """Wait until *count* training rollouts have ended, and return their trajectories in that order.

        One that was not accepted gives None. *timeout* is in seconds, None waits for ever, 0 polls. Those of
        `prepare_batch`, and those somebody waits for by id, do not count.

        Raises TimeoutError, which consumes nothing; with *raise_timeout* False it is ``[]`` instead.
        AdmissionStalledError, FailureBudgetError; RunnerStoppedError and RunnerDiedError; RuntimeError on
        the loop thread; TypeError and ValueError.
        """
        deadline = deadline_after(timeout)
        request = Request(Want.ENDED, check_count("count", count))
        try:
            return self._obtain("wait", request, trajectories, deadline)
        except TimeoutError:
            if raise_timeout:
                raise
            return []

    def wait_outcomes(
        self, count: int, timeout: float | None = None, is_eval: bool = False
    ) -> list[RolloutOutcome]:
        """Wait until *count* rollouts have ended, and return how; those of evaluation if *is_eval*.

        Raises like `wait`.
        """
        deadline = deadline_after(timeout)
        check_flag("is_eval", is_eval)
        request = Request(Want.ENDED, check_count("count", count), is_eval)
        return self._obtain("wait_outcomes", request, list, deadline)

    def wait_for_task(
        self, task_id: int, timeout: float | None = None, raise_timeout: bool = True
    ) -> dict[str, Any] | None:
        """Wait for one rollout and return its trajectory; None if it was not accepted.

        It is claimed at the call: `wait` does not see it. A timeout or a Ctrl-C releases the claim.

        Raises UnknownTaskError for an id never submitted or already delivered, ValueError when somebody else
        waits for it; TimeoutError (with *raise_timeout* False it is None instead), and the rest like `wait`.
        """
        deadline = deadline_after(timeout)
        request = Request(Want.CLAIMED, 1, claims=[arguments.check_any_id(task_id)])
        try:
            return self._obtain("wait_for_task", request, trajectories, deadline)[0]
        except TimeoutError:
            if raise_timeout:
                raise
            return None

    def rollout_batch(
        self,
        data: Sequence[Any],
        workflow: Workflow,
        workflow_kwargs: dict[str, Any] | None = None,
        should_accept_fn: Callable[[dict[str, Any]], Any] | str | None = None,
        group_size: int = 1,
        is_eval: bool = False,
    ) -> list[dict[str, Any] | None]:
        """Roll all of *data* out now and return the trajectories in its order, None where not accepted.

        They are started before what is pending, need slots only, and are charged to the staleness budget when
        they are delivered. A row that became too old is rolled out again, ``max_requeues`` times at most.
        After a Ctrl-C, or a FailureBudgetError that comes while it waits, they come out of `wait`; where that
        is due already, they are not submitted. Arguments like `submit`'s; raises like `wait`.
        """
        shift = self._on_shift()
        shift.raise_if_ended()
        plan = self._planner.plan(workflow, workflow_kwargs, should_accept_fn, group_size, is_eval)
        rows = [plan.rollout(next(self._own_ids), item, Lane.ROW) for item in data]
        if not rows:
            return []
        request = Request(Want.CLAIMED, len(rows), plan.is_eval, claims=[row.task_id for row in rows])
        return self._obtain("rollout_batch", request, trajectories, rollouts=rows)

    def prepare_batch(
        self,
        dataloader: Iterable[Any],
        workflow: Workflow,
        workflow_kwargs: dict[str, Any] | None = None,
        should_accept_fn: Callable[[dict[str, Any]], Any] | str | None = None,
        group_size: int = 1,
        dynamic_bs: bool = False,
        *,
        drop_last: bool = True,
    ) -> list[dict[str, Any]]:
        """Return the next batch of accepted trajectories, and keep rollouts going for the ones after it.

        *dataloader* is an iterable of lists of items; it is advanced in this thread only, and iterated again
        at its end. The batch has its ``batch_size``, else ``consumer_batch_size``, oldest first. With
        *dynamic_bs* it comes after so many endings of which at least one was accepted. Another *dataloader*,
        *workflow* or filter than last time is used for the items pulled from now on.

        What the dataloader raises is raised once, when no batch can come any more of what was pulled before:
        also a ValueError for one that is empty, a TypeError for one that gives no lists. An iterator ends, as
        one over a list does not, and that raises DataExhaustedError: at once if fewer than a batch are left,
        which stay for the next; or, without *drop_last*, after they came as a shorter batch.
        Raises ValueError for a batch that the bound on staleness never allows, RuntimeError while another
        call is under way, and the rest like `submit` and `wait`; whatever it raises, nothing is consumed.
        """
        shift = self._on_shift()
        shift.raise_if_ended()
        plan = self._planner.plan(workflow, workflow_kwargs, should_accept_fn, group_size, False)
        count = shift.batch_size(dataloader)
        check_flag("dynamic_bs", dynamic_bs)
        check_flag("drop_last", drop_last)
        keep_pending = self._rules.pending_for(count, plan.group_size)
        request = Request(
            Want.BATCH, count, dynamic=dynamic_bs, drops_last=drop_last, keep_pending=keep_pending
        )
        feed = functools.partial(self._prompts.feed, shift.desk, dataloader, plan)
        me = object()
        try:
            if self._turn.setdefault("of", me) is not me:
                raise RuntimeError("prepare_batch() is under way already; make one call of it at a time")
            if not self._prompts.is_recovered:
                self.on_version_changed()  # what was recovered is judged by it
            return self._obtain("prepare_batch", request, accepted, feed=feed)
        finally:
            # Taken by one call of C code, and given back without any: at neither can a Ctrl-C leave it taken,
            # or lose the batch.
            if self._turn == {"of": me}:
                self._turn = {}

    def give_back(self, count: int) -> None:
        """Free the budget of *count* delivered trajectories that are not trained on.

        Raises ValueError for more than were delivered at this version; TypeError; RunnerStoppedError.
        """
        shift = self._on_shift()
        shift.desk.call(shift.desk.core.give_back, check_count("count", count))

    # -- beside them -------------------------------------------------------------------------------

    def run_everywhere(
        self, async_fn: Callable[..., Awaitable[R]], /, *args: Any, timeout: float | None = None
    ) -> list[R]:
        """Run ``async_fn(*args)`` on each loop that runs rollouts, here one, and return the values.

        It counts against nothing, and works while paused. Raises what it raises, like `AsyncTaskRunner.run`,
        and TimeoutError after *timeout* seconds, when it is cancelled (None: no limit).
        """
        if not callable(async_fn):
            arguments.refuse_fn(async_fn)
        return [self._runner.run(within, arguments.check_seconds("timeout", timeout), async_fn, args)]

    def _make_desk(self, life: Life, player: Player, episode_timeout_s: float | None) -> Desk:
        """Return who runs the episodes of one life."""
        return LocalDesk(life, player, episode_timeout_s)

    # -- inside ------------------------------------------------------------------------------------

    def _obtain(
        self,
        caller: str,
        request: Request,
        shape: Callable[[list[RolloutOutcome]], R],
        deadline: float | None = None,
        rollouts: Sequence[Rollout] = (),
        feed: Feed | None = None,
    ) -> R:
        # Nothing may be called between the return of this and the caller's: a Ctrl-C there loses it all.
        shift = self._on_shift()
        shift.raise_on_loop_thread(caller)
        return shift.handover.obtain(request, deadline, rollouts, feed, shape=shape)


def _left_of(deadline: float | None) -> float | None:
    return None if deadline is None else max(_LEAST_S, deadline - time.monotonic())
