"""A trainer is killed again and again, and trains on every item once.

    python examples/survive_a_kill.py            # five seconds
    python examples/survive_a_kill.py --quick    # fewer items

The program starts itself as a trainer, kills that (SIGKILL: no handler runs, nothing is flushed) after a
while, and starts it again, until it has trained on so many items. The trainer keeps a journal, commits a step
when its checkpoint is written, and goes on from the last one that has both. What it "learns" is a list of the
items it was given, which is its checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from areal_core import InferenceEngineConfig, RemoteInfEngine, RolloutWorkflow, WorkflowExecutor
from areal_core.embedded import EmbeddedServer
from areal_core.journal import resumable_steps
from areal_core.types import GenerationHyperparameters, InferenceEngine, ModelRequest

BATCH = 8


class OneAnswer(RolloutWorkflow):
    """Ask once."""

    async def arun_episode(self, engine: InferenceEngine, data: dict[str, Any]) -> dict[str, Any]:
        """Return prompt and answer, and the number of the item."""
        prompt = list(f"Item {data['data_id']}: ".encode())
        reply = await engine.agenerate(ModelRequest(prompt, GenerationHyperparameters(max_new_tokens=16)))
        tokens = prompt + reply.output_tokens
        return {
            "input_ids": np.array([tokens]),
            "attention_mask": np.ones((1, len(tokens)), np.int32),
            "versions": np.array([[-1] * len(prompt) + reply.output_versions]),
            "item": np.array([data["data_id"]]),
        }


class Checkpoints:
    """What a trainer has trained on, as files: the last two."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def steps(self) -> set[int]:
        """Return the steps there are checkpoints of."""
        return {int(path.stem) for path in self._directory.glob("[0-9]*.json")}

    def load(self, step: int | None) -> list[int]:
        """Return what was trained on up to *step*; None: nothing."""
        return [] if step is None else list(json.loads((self._directory / f"{step}.json").read_text()))

    def newest(self) -> list[int]:
        """Return what was trained on so far."""
        return self.load(max(self.steps(), default=None))

    def save(self, step: int, trained: list[int]) -> None:
        """Write the checkpoint of *step*, whole or not at all."""
        new = self._directory / "new"
        new.write_text(json.dumps(trained))
        new.replace(self._directory / f"{step}.json")
        (self._directory / f"{step - 2}.json").unlink(missing_ok=True)


class Items:
    """A dataloader, whose one pass nobody comes to the end of."""

    def __iter__(self) -> Iterator[list[dict[str, int]]]:
        for first in itertools.count(step=BATCH):
            yield [{"data_id": number} for number in range(first, first + BATCH)]


def train(directory: Path, items: int, address: str) -> None:
    """Be the trainer: go on from the last step that was committed, until all *items* are trained on."""
    logging.getLogger("areal_core").setLevel(
        logging.ERROR
    )  # it would say that long ones are hardly trained on
    checkpoints = Checkpoints(directory)
    step = max(checkpoints.steps() & set(resumable_steps(directory / "journal")), default=None)
    trained = checkpoints.load(step)
    config = InferenceEngineConfig(
        consumer_batch_size=BATCH,
        max_head_offpolicyness=2,
        on_stale="requeue",
        max_requeues=100,
        journal_dir=directory / "journal",
    )
    loader, workflow = Items(), OneAnswer()
    with (
        RemoteInfEngine(config, backend="sglang") as engine,
        WorkflowExecutor(config, engine, resume_from=step) as executor,
    ):
        engine.initialize([address])
        print("begun", flush=True)
        while not set(range(items)) <= set(trained):
            step = 0 if step is None else step + 1
            engine.set_version(step)
            batch = executor.prepare_batch(loader, workflow)
            trained += [int(trajectory["item"][0]) for trajectory in batch]
            checkpoints.save(step, trained)
            executor.commit(step)


def lives(directory: Path, items: int, address: str, chance: random.Random) -> Iterator[float]:
    """Start the trainer and kill it, again and again; yield how long each lived that was killed."""
    command = [
        sys.executable,
        __file__,
        "--train",
        str(directory),
        "--items",
        str(items),
        "--server",
        address,
    ]
    while True:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()  # it has begun
            seconds = chance.uniform(0.0, 0.4)
            try:
                status = child.wait(seconds)
            except subprocess.TimeoutExpired:
                child.kill()
                status = child.wait()
        if status == 0:
            return
        if status != -signal.SIGKILL:
            raise SystemExit(f"the trainer ended with {status}")
        yield seconds


def main() -> int:
    """Kill a trainer until it is done; return the exit status."""
    parser = argparse.ArgumentParser(description="Kill a trainer again and again.")
    parser.add_argument("--quick", action="store_true", help="fewer items")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--items", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--server", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train is not None:
        train(options.train, options.items, options.server)
        return 0
    items = 80 if options.quick else 400
    with tempfile.TemporaryDirectory() as name, EmbeddedServer(ms_per_token=2.0) as server:
        checkpoints, kills = Checkpoints(Path(name)), 0
        for lived in lives(Path(name), items, server.addr, random.Random(1)):
            kills += 1
            print(
                f"killed {lived:.2f} s after it began: {len(checkpoints.newest())} items trained on",
                flush=True,
            )
        trained = checkpoints.newest()
    missing, twice = set(range(items)) - set(trained), len(trained) - len(set(trained))
    print(f"{kills} kills; {len(missing)} of {items} items are missing, and {twice} were trained on twice")
    return 1 if missing or twice else 0


if __name__ == "__main__":
    sys.exit(main())
