"""Let everything go wrong for a while, and see that the books balance.

    python benchmarks/soak.py                           # ten minutes, a new seed, which is printed
    python benchmarks/soak.py --seed 7 --minutes 0.3    # the plan of this seed, in its short form
    python benchmarks/soak.py --seed 7 --plan           # only show it

A trainer on three embedded servers, in a process of its own: every kind of fault strikes, servers are killed
and come back, Ctrl-Cs arrive at any moment, the executor is paused, stopped and started, weights are updated,
episodes raise, block the loop, never end, are cancelled. The run ends with 0 when the books balance, and
within a minute after the time asked for, whatever hangs.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from _soak_plan import Interrupt, Plan, make_plan
from _soak_report import progress, table, verdict
from _soak_servers import Ordeal

_CHILD = Path(__file__).with_name("_soak_child.py")
_FOR_ALL_ELSE_S = 60.0  # starting, the last kinds of faults, the end of the trainer
_CHILD_EARLIER_S = 20.0  # so long before the end a trainer that hangs explains itself
_KILL_EARLIER_S = 10.0  # one that cannot is killed, which leaves time to stop the servers
_TELL_EVERY_S = (3.0, 30.0)  # on a terminal, elsewhere


def main() -> int:
    """Run as asked for; return the exit status."""
    parser = argparse.ArgumentParser(description="Let everything go wrong, and see that the books balance.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, help="of the plan (default: another each time)")
    parser.add_argument(
        "--loop", choices=("asyncio", "uvloop"), help="the event loop (default: the library's)"
    )
    parser.add_argument("--plan", action="store_true", help="only print the plan")
    options = parser.parse_args()
    if not options.minutes > 0:
        parser.error(f"--minutes {options.minutes} is no time")
    seed = random.randrange(10**6) if options.seed is None else options.seed
    plan = make_plan(seed, options.minutes)
    if options.plan:
        print("\n".join(plan.lines()))
        return 0
    print(f"seed {seed}, {options.minutes:g} minutes", flush=True)
    ends_at = time.monotonic() + plan.seconds + _FOR_ALL_ELSE_S
    with Ordeal(plan) as ordeal:
        run = Run(plan, ordeal, options.minutes, options.loop, ends_at)
        try:
            return run.run()
        finally:
            run.close()


class Run:
    """One run of *plan*, which is over by the moment *ends_at*."""

    def __init__(self, plan: Plan, ordeal: Ordeal, minutes: float, loop: str | None, ends_at: float) -> None:
        self._plan = plan
        self._ordeal = ordeal
        arguments = {
            "seed": plan.seed,
            "minutes": minutes,
            "loop": loop,
            "servers": [server.addr for server in ordeal.servers],
            "seconds": ends_at - _CHILD_EARLIER_S - time.monotonic(),
        }
        self._child = subprocess.Popen(
            [
                sys.executable,
                *(("-X", "dev") if sys.flags.dev_mode else ()),
                str(_CHILD),
                json.dumps(arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # the Ctrl-C of who sits there is not one of ours
        )
        left_s = ends_at - time.monotonic()
        faulthandler.dump_traceback_later(left_s, exit=True)  # the servers end with this process
        self._killer = threading.Timer(left_s - _KILL_EARLIER_S, self._child.kill)
        self._killer.daemon = True
        self._killer.start()
        self._is_ready, self._over = threading.Event(), threading.Event()
        self._result: dict[str, Any] | None = None
        self._signals = 0
        self._told_at = time.monotonic()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def run(self) -> int:
        """Run, report, and return the exit status."""
        self._is_ready.wait()
        began = time.monotonic()
        self._ordeal.begin()
        self._interrupt(self._plan.interrupts, began)
        self._over.wait(max(0.0, began + self._plan.seconds - time.monotonic()))
        self._ordeal.finish()
        self._say_that_it_is_over()
        self._listener.join()
        status = self._child.wait()
        if self._result is None:
            print(f"OFF: the trainer ended with status {status} and without a result")
            return status or 1
        return self._report(self._result)

    def close(self) -> None:
        """End what is still there."""
        self._killer.cancel()
        faulthandler.cancel_dump_traceback_later()
        self._child.kill()
        self._child.wait()
        self._listener.join()
        for pipe in (self._child.stdin, self._child.stdout):
            _piped(pipe).close()

    def _interrupt(self, interrupts: Sequence[Interrupt], began: float) -> None:
        for interrupt in interrupts:
            if self._over.wait(max(0.0, began + interrupt.at - time.monotonic())):
                return
            for _ in range(interrupt.signals):
                self._child.send_signal(signal.SIGINT)
                self._signals += 1

    def _say_that_it_is_over(self) -> None:
        try:
            _piped(self._child.stdin).write(b"over\n")
        except BrokenPipeError:
            pass  # it has ended already, and there will be no result

    def _listen(self) -> None:
        for line in _piped(self._child.stdout):
            told = json.loads(line)
            kind = told.pop("kind")
            if kind == "ready":
                self._is_ready.set()
            elif kind == "result":
                self._result = told
            else:
                self._show(told)
        self._over.set()
        self._is_ready.set()

    def _show(self, told: dict[str, Any]) -> None:
        if time.monotonic() - self._told_at >= _TELL_EVERY_S[not sys.stderr.isatty()]:
            self._told_at = time.monotonic()
            kills = self._ordeal.kills.total()
            print(progress(told, self._ordeal.struck(), kills, self._signals), file=sys.stderr, flush=True)

    def _report(self, result: dict[str, Any]) -> int:
        complaints = [*result["complaints"], *self._ordeal.complaints()]
        kills = [self._ordeal.kills[number] for number in range(len(self._ordeal.servers))]
        for line in table(self._plan, result, self._ordeal.struck(), kills, self._signals):
            print(line)
        print()
        print("\n".join(verdict(complaints)))
        return 1 if complaints else 0


def _piped(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


if __name__ == "__main__":
    sys.exit(main())
