"""One life of an executor, from ``initialize`` on: the parts, wired together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from areal_core import _process
from areal_core._checks import check_integer
from areal_core._executor.books import BothBooks, RolloutLedger
from areal_core._executor.core import Core
from areal_core._executor.desk import Desk
from areal_core._executor.events import Log, Reporter
from areal_core._executor.explaining import Explainer
from areal_core._executor.handover import Handover
from areal_core._executor.ids import Ids
from areal_core._executor.observer import Observer
from areal_core._executor.playing import Player
from areal_core._executor.port import Show, Witness, Witnesses
from areal_core._executor.report import StalenessReport, Tally
from areal_core._executor.rules import Rules
from areal_core._executor.stuck import StuckWatch
from areal_core._executor.versions import Versions, checked
from areal_core._runner.life import Life
from areal_core._runner.lifecycle import life_of, raise_if_abroad, raise_on_loop_thread
from areal_core._watch.loop_watch import LoopWatch
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.config import InferenceEngineConfig
from areal_core.staleness_manager import StalenessManager
from areal_core.types import InferenceEngine
from areal_core.workflow_context import ensure_descriptors

if TYPE_CHECKING:
    from areal_core._executor.journaling import Journaling


class Shift:
    """A core at work on a runner's loop. It does not know its executor; what came before it is *before*."""

    def __init__(
        self,
        config: InferenceEngineConfig,
        rules: Rules,
        manager: StalenessManager,
        engine: InferenceEngine,
        runner: AsyncTaskRunner[Any],
        logger: Any,
        before: Shift | None,
        journaling: Journaling | None,
        show: Callable[[Observer, Any], Show],
        make_desk: Callable[[Life, Player, float | None], Desk],
        observers: Sequence[Callable[[Desk], object]] = (),
    ) -> None:
        self._life = life_of(runner)
        self._rules = rules
        self._provider = manager.version_provider
        self._log = Log(logger)
        self.journaling = journaling
        if journaling is not None:
            journaling.log = self._log.line
        self._warned_of = 0  # the last size of a batch that was said to be odd
        self.ids = Ids(lambda rollout: self.desk.read(lambda _: rollout.is_submitted))
        self.tally: Tally = Tally() if before is None else before.tally
        ledgers = (RolloutLedger(), RolloutLedger()) if before is None else before.desk.ledgers()
        masks = rules.on_stale == "mask"
        player = Player(engine, config.check_trajectory_format, masks, journals=journaling is not None)
        self.desk: Desk = make_desk(self._life, player, config.episode_timeout)
        self.desk.on_worked = self._log.write
        stuck = StuckWatch(config.stuck_warning, self.desk, self._is_over)
        self.explainer = Explainer(self.desk, rules, engine, self._life, stuck)
        self.observer = Observer(self.desk, rules, engine, self._life, stuck, journaling)
        self.showing: Show = show(self.observer, None if before is None else before.showing)
        stuck.say = functools.partial(
            self._life.thread.call_soon, self.explainer.log_stuck, self._log, config.stuck_warning
        )
        reporter = Reporter(self._log, manager, config.enable_rollout_tracing, stuck)
        witness: Witness = reporter if journaling is None else Witnesses(reporter, journaling)
        self.desk.open(Core(rules, self.desk, self.desk, BothBooks(*ledgers), self.tally, witness))
        for observe in observers:
            observe(self.desk)
        if config.loop_block_warning is not None:
            thread = self._life.thread
            self.desk.watch = LoopWatch(
                thread.loop, thread.thread.ident or 0, config.loop_block_warning, reporter.blocked
            )
        self._dump = _open_dump(config)
        self.versions = Versions(self.desk, self._read_version)
        self.handover = Handover(self.desk, rules, self.versions, self.ids, self._dump)
        dropped = sum(ledger.finished for ledger in ledgers)
        if journaling is not None:
            self.desk.post(journaling.say_what_was_found)
        if dropped:
            self.say("warning", "uncollected_rollouts_discarded", count=dropped, by="initialize")

    def begin(self) -> None:
        """Take the provider's version from now on. Raises TypeError, ValueError."""
        if self.desk.connects_here:
            ensure_descriptors(self._rules.most_samples or self._rules.most_units)
        desk = self.desk
        desk.on_end = self.showing.end
        subscribe = getattr(self._provider, "subscribe", None)
        if callable(subscribe):
            unsubscribe = subscribe(self.versions)
            desk.on_end = functools.partial(self._leave, unsubscribe)
        self.versions.begin()
        self.showing.begin()

    def close(self, timeout_s: float | None) -> None:
        """Write what is still to be written. Does nothing in a forked child."""
        if self._life.home is not _process.home():
            return
        self.showing.close(timeout_s)
        if self._dump is not None:
            self._dump.close(timeout_s)
        if self.desk.watch is not None:
            self.desk.watch.stop()

    def is_paused(self) -> bool:
        """Return whether rollouts are kept from starting."""
        return self.desk.read(lambda core: core.scheduler.is_paused)

    def report(self) -> StalenessReport:
        """Return the figures now."""
        return self.desk.call(self.desk.core.tally.report)

    def batch_size(self, dataloader: Any) -> int:
        """Return how many trajectories a batch from *dataloader* has. Raises TypeError and ValueError."""
        size, rules = getattr(dataloader, "batch_size", None), self._rules
        count = rules.batch if size is None else check_integer("dataloader.batch_size", size, least=1)
        if count > rules.most_units:
            raise ValueError(
                f"a batch of {count} is more than the {rules.most_units} trajectories that may be under way "
                f"at one version, (max_staleness {rules.max_staleness} + 1) x consumer_batch_size "
                f"{rules.batch}; make the batch smaller, or raise one of them"
            )
        if count not in (rules.batch, self._warned_of):
            self._warned_of = count
            self.say(
                "warning", "batch_is_not_consumer_batch_size", batch=count, consumer_batch_size=rules.batch
            )
        return count

    def _is_over(self) -> bool:
        return self._life.ending is not None

    def raise_if_ended(self) -> None:
        """Raise RunnerStoppedError, RunnerDiedError."""
        if self._life.ending is not None:
            raise self._life.ending.error()

    def raise_if_abroad(self) -> None:
        """Raise RunnerStoppedError in a forked child."""
        raise_if_abroad(self._life)

    def raise_on_loop_thread(self, caller: str) -> None:
        """Raise RuntimeError where *caller* would wait for its own thread."""
        raise_on_loop_thread(self._life, caller)

    def _read_version(self) -> int:
        """Ask the version provider. Raises TypeError, ValueError."""
        return checked(self._provider.get_version())

    def _leave(self, unsubscribe: Callable[[], object] | None) -> None:
        self.showing.end()
        if unsubscribe is not None:
            try:
                unsubscribe()
            except Exception as error:  # of the user's own: the loop is to be closed all the same
                self._log.line("error", "unsubscribe_raised", exc_info=error)
                self._log.write()

    def say(self, level: str, event: str, **fields: Any) -> None:
        """Log a line; from any thread."""
        # On the loop thread: a Ctrl-C in a log handler would leave the handler's lock held for good.
        self.desk.post(functools.partial(self._log.line, level, event, **fields))


def _open_dump(config: InferenceEngineConfig) -> Any:
    if config.dump_dir is None:
        return None
    from areal_core.trajectory import TrajectoryDump

    return TrajectoryDump(config.dump_dir)
