"""The trainer of a soak run: executor and engine, acts that a Ctrl-C may hit, books that it may not."""

from __future__ import annotations

import functools
from asyncio import AbstractEventLoop
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _soak_acts import Acts, Inbox
from _soak_books import BATCH, Books
from _soak_interrupts import Gate
from _soak_items import EPISODE_TIMEOUT_S, LOOP_BLOCK_WARNING_S
from _soak_log import Log
from _soak_plan import Plan
from areal_core import InferenceEngineConfig, RemoteInfEngine, StalenessManager, WorkflowExecutor
from areal_core.errors import AdmissionStalledError, ControlError, RunnerStoppedError

BATCH_SIZE = 6
BOUND = 3
"""How many versions old a token may be."""


def config_of(plan: Plan) -> InferenceEngineConfig:
    """Return the settings of executor and engine."""
    return InferenceEngineConfig(
        consumer_batch_size=BATCH_SIZE,
        max_head_offpolicyness=BOUND,
        on_stale=plan.on_stale,
        episode_timeout=EPISODE_TIMEOUT_S,
        cancel_grace=5.0,
        progress=False,
        max_consecutive_failures=10**6,
        max_consecutive_unaccepted=10**6,
        stall_timeout=2.0,
        check_trajectory_format=True,
        enable_rollout_tracing=True,  # the end of each is then in the log
        loop_block_warning=LOOP_BLOCK_WARNING_S,
        stuck_warning=20.0,
        request_timeout=3.0,
        setup_timeout=20.0,
        control_timeout=10.0,
        silence_timeout=5.0,
        max_reply_bytes=2**20,
    )


class Trainer:
    """Does what the plan says to one executor and one engine."""

    def __init__(
        self, plan: Plan, directory: Path, loop_factory: Callable[[], AbstractEventLoop] | None
    ) -> None:
        self.gate = Gate()
        config = config_of(plan)
        self.engine = RemoteInfEngine(config, backend="sglang")
        self.manager = StalenessManager(self.engine, None, BATCH_SIZE, BOUND)
        self.executor = WorkflowExecutor(config, self.engine, self.manager, loop_factory=loop_factory)
        self.books = Books(plan.seed, BOUND, self.engine.get_version)
        self.log = Log(self.books)
        self.inbox = Inbox()
        self.counts = Counter[str]()
        """How often the trainer did what."""
        self.refusals = Counter[str]()
        """What the library raised that belongs to such a run."""
        self._acts = Acts(self.executor, self.engine, self.books, self.inbox, self.counts, directory)

    # -- between acts --------------------------------------------------------------------------------

    def play(self, act: str) -> None:
        """Do one act, interrupted or not, and take what came of it to the books."""
        self.counts[act] += 1
        self.gate.play(functools.partial(self._play, act))
        self.settle()

    def _play(self, act: str) -> None:
        for one in (act, "update"):
            try:
                self._acts.do(one)
                return
            except (TimeoutError, ControlError) as error:
                self.refusals[type(error).__name__] += 1
                return
            except AdmissionStalledError as error:  # nothing starts before the version rises
                self.refusals[type(error).__name__] += 1

    def settle(self) -> None:
        """Take what the library returned to the books."""
        books = self.books
        while self.inbox:
            how, version, *given = self.inbox.popleft()
            if how == "batch":
                if len(given[0]) != BATCH_SIZE:
                    books.complaints.say(f"a batch of {len(given[0])}, not {BATCH_SIZE}")
                for trajectory in given[0]:
                    books.take(trajectory, version, BATCH)
            elif how == "outcomes":
                for outcome in given[0]:
                    books.take_outcome(outcome, version)
            elif how == "rows":
                for number, trajectory in zip(*given, strict=True):
                    books.take_one(number, trajectory, version)
            else:
                self._settle_unnamed(version, given[0])

    def _settle_unnamed(self, version: int, given: list[dict[str, Any] | None]) -> None:
        for trajectory in given:
            if trajectory is None:
                self.books.unnamed += 1
            else:
                self.books.take(trajectory, version)

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the executor, however often that is interrupted."""
        self.gate.insist(self._start)

    def _start(self) -> None:
        if self.executor.runner.stats().state != "running":
            self.executor.initialize(self.log)

    def stop(self) -> None:
        """Stop the executor, collect what can be, and see that nothing of it is left."""
        self.gate.insist(lambda: self.executor.destroy(20.0))
        for is_eval in (False, True):
            is_left = True
            while is_left:
                was_interrupted = not self.gate.play(functools.partial(self._collect, is_eval))
                is_left = was_interrupted or bool(self.inbox)
                self.settle()

    def _collect(self, is_eval: bool) -> None:
        """Take one outcome that nobody has taken; none when there is none."""
        try:
            self.inbox.append(
                ("outcomes", self.version, self.executor.wait_outcomes(1, timeout=0, is_eval=is_eval))
            )
        except (TimeoutError, RunnerStoppedError):
            pass

    @property
    def version(self) -> int:
        """The policy version."""
        return self.engine.get_version()
