"""Kill workers of a `DistributedWorkflowExecutor` by SIGKILL, one after the other: nothing may be lost.

Episodes of 20 to 100 milliseconds are played by workers on Ray; from time to time one of these is killed. In
the end each rollout has to have ended exactly once, as accepted, with its own data, and the ledger has to
balance. Ends with 1 when that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import signal
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import ray

from areal_core._simulation.loopback import Versions
from areal_core.config import InferenceEngineConfig
from areal_core.distributed import DistributedWorkflowExecutor
from areal_core.errors import WorkerLostError
from areal_core.types import InferenceEngine, RolloutWorkflow
from areal_core.workflow_executor import RolloutOutcome

PATIENCE_S = 120.0


class Waiting(RolloutWorkflow):
    """Takes 20 to 100 milliseconds, and gives its item back."""

    async def arun_episode(self, engine: InferenceEngine, data: int) -> dict[str, np.ndarray[Any, Any]]:
        """Play one episode."""
        await asyncio.sleep(0.02 * (1 + data % 5))
        return {"input_ids": np.array([[data, 1, 2]]), "attention_mask": np.ones((1, 3), dtype=np.int64)}


async def pid() -> int:
    """Return the process that it runs in."""
    return os.getpid()


def main() -> int:
    """Play, kill, look, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--kills", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed; default: %(default)s")
    options = parser.parse_args()
    if options.episodes <= options.kills:
        parser.error("--episodes has to be more than --kills")
    config = InferenceEngineConfig(consumer_batch_size=options.episodes, on_stale="keep")
    ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    began = time.monotonic()
    with DistributedWorkflowExecutor(
        config,
        Versions(),
        Versions,
        workers=options.workers,
        slots_per_worker=64,
        ray_options={"num_cpus": 0},
    ) as executor:
        outcomes, pids = _play(executor, options)
        wrong = _wrong(outcomes, options.episodes)
        ledger, leases = executor.ledger, executor.dispatch_stats()
    ray.shutdown()
    print(f"{options.episodes} rollouts on {options.workers} workers, {len(pids)} killed by SIGKILL: {pids}")
    print(f"{time.monotonic() - began:.1f} s; {leases}")
    print(f"{ledger}")
    is_balanced = ledger.submitted == ledger.collected == options.episodes
    print("\n".join(wrong) if wrong else "each ended once, as accepted, with its own data")
    print("the ledger balances" if is_balanced else "THE LEDGER DOES NOT BALANCE")
    return 0 if is_balanced and not wrong and len(pids) == options.kills else 1


def _play(
    executor: DistributedWorkflowExecutor, options: argparse.Namespace
) -> tuple[list[RolloutOutcome], list[int]]:
    """Have all played, killing a worker whenever so many more have ended; return the outcomes, and whom."""
    dice, workflow = random.Random(options.seed), Waiting()
    for number in range(options.episodes):
        executor.submit(number, workflow, task_id=number)
    outcomes: list[RolloutOutcome] = []
    killed: list[int] = []
    part = options.episodes // (options.kills + 1)
    for _ in range(options.kills):
        outcomes += executor.wait_outcomes(part, timeout=PATIENCE_S)
        killed.append(_kill_one(executor, dice))
    outcomes += executor.wait_outcomes(options.episodes - len(outcomes), timeout=PATIENCE_S)
    return outcomes, killed


def _kill_one(executor: DistributedWorkflowExecutor, dice: random.Random) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = executor.run_everywhere(pid, timeout=PATIENCE_S)
        except WorkerLostError:  # the one that was killed just now
            found = []
        if found:
            chosen = dice.choice(found)
            os.kill(chosen, signal.SIGKILL)
            return chosen
        if time.monotonic() > deadline:
            raise TimeoutError("no worker came in the place of those that were killed")


def _wrong(outcomes: list[RolloutOutcome], count: int) -> list[str]:
    """Return what should not be, in words."""
    ends = Counter(outcome.task_id for outcome in outcomes)
    statuses = Counter(outcome.status for outcome in outcomes)
    found = [f"{count - len(ends)} were lost"] if len(ends) != count else []
    found += [f"rollout {number} ended {times} times" for number, times in ends.items() if times > 1]
    found += [f"{times} ended as {status}" for status, times in statuses.items() if status != "accepted"]
    for outcome in outcomes:
        if outcome.trajectory is not None and outcome.trajectory["input_ids"][0, 0] != outcome.task_id:
            found.append(f"rollout {outcome.task_id} has the data of another")
    return found


if __name__ == "__main__":
    sys.exit(main())
