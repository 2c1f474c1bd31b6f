"""The servers of a soak run, and what is done to them: a thread for each does its steps, one by one."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from _soak_balance import of_server
from _soak_plan import FAULTS, SERVERS, Plan, Step
from areal_core.embedded import EmbeddedServer

_PATIENCE_S = 3.0  # for all faults that were turned on together to strike
_LAST_PATIENCE_S = 10.0  # for kinds that have not struck at all
_QUIET_S = 10.0  # for a server to notice that nobody waits for what it generates
_MOMENT_S = 0.1


class Ordeal:
    """Three servers, and the threads that do to them what the *plan* says."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.servers = [
            EmbeddedServer(
                mode="test",
                ms_per_token=2.0,
                seed=plan.seed + number,
                weight_version_spans=telling.weight_version_spans,
                incremental_streaming_output=telling.incremental_streaming_output,
            )
            for number, telling in enumerate(plan.telling)
        ]
        self.kills = Counter[int]()
        """How often each server was killed, and started again."""
        self.failures: list[str] = []
        """What went wrong with the servers themselves."""
        self._lock = threading.Lock()
        self._before = [Counter[str]() for _ in self.servers]  # struck in the lives that are over
        self._now = [Counter[str]() for _ in self.servers]
        self._over = threading.Event()
        self._began = 0.0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Ordeal:
        for server in self.servers:
            server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for server in self.servers:
            server.stop()

    def begin(self) -> None:
        """Begin with the steps; it is 0 seconds."""
        self._began = time.monotonic()
        for number in range(SERVERS):
            thread = threading.Thread(target=self._live, args=(number,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def finish(self) -> None:
        """Have happen what has not happened so far: kills, kinds of faults. Then let all servers be well."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        for number in range(SERVERS):
            if not self.kills[number]:  # the machine was too busy to come to it
                self._kill(number, _MOMENT_S)
        deadline = time.monotonic() + _LAST_PATIENCE_S
        while self.missing() and time.monotonic() < deadline:
            for number in range(SERVERS):
                with suppress(RuntimeError, TimeoutError, OSError):
                    kinds = self.missing()
                    self._strike(number, kinds, [FAULTS[kind] for kind in kinds], 1.0, threading.Event())
        for number, server in enumerate(self.servers):
            self._note(number)
            server.faults([])

    def struck(self) -> Counter[str]:
        """Return how often each kind of fault struck, by the servers' own counts."""
        with self._lock:
            return sum([*self._before, *self._now], Counter[str]())

    def missing(self) -> list[str]:
        """Return the kinds of faults that have not struck so far."""
        struck = self.struck()
        return [kind for kind in FAULTS if not struck[kind]]

    def complaints(self) -> Iterator[str]:
        """Say what is wrong with the servers, now that nobody asks them for anything."""
        yield from self.failures
        for kind in self.missing():
            yield f"the fault {kind} never struck"
        for number in range(SERVERS):
            if not self.kills[number]:
                yield f"server {number} was never killed"
        deadline = time.monotonic() + _QUIET_S
        for number, server in enumerate(self.servers):
            stats = server.stats()
            while stats.in_flight and time.monotonic() < deadline:
                time.sleep(_MOMENT_S)
                stats = server.stats()
            yield from of_server(f"server {number}", stats)

    # -- a server's thread -------------------------------------------------------------------------------

    def _live(self, number: int) -> None:
        try:
            for step in self._plan.steps[number]:
                if self._over.wait(max(0.0, self._began + step.at - time.monotonic())):
                    break
                self._do(number, step)
        except Exception as error:
            self.failures.append(f"server {number}: {error!r}")

    def _do(self, number: int, step: Step) -> None:
        if step.down_s is None:
            self._strike(number, step.kinds, step.faults, _PATIENCE_S, self._over)
        else:
            self._kill(number, step.down_s)

    def _kill(self, number: int, down_s: float) -> None:
        self._note(number)
        self.servers[number].kill()
        with self._lock:
            self._before[number] += self._now[number]
            self._now[number].clear()
        time.sleep(down_s)
        self.servers[number].start()
        self.kills[number] += 1

    def _strike(
        self,
        number: int,
        kinds: Iterable[str],
        faults: Sequence[str],
        patience_s: float,
        over: threading.Event,
    ) -> None:
        """Turn *faults* on, and wait until each of their *kinds* has struck."""
        wanted = self._note(number) + Counter(kinds)
        self.servers[number].faults(faults)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and not over.wait(_MOMENT_S):
            if self._note(number) >= wanted:
                return

    def _note(self, number: int) -> Counter[str]:
        counts = Counter(self.servers[number].stats().faults)
        with self._lock:
            self._now[number] = counts
        return counts
