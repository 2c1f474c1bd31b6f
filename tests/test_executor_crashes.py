"""Trainers that are killed, and go on: what they have trained on is in their checkpoints, once."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from areal_core._journal.crash_points import NAMES
from children import StartScript

TRAINER = """
import json, os, random, signal, sys, threading
from pathlib import Path
import numpy as np
from areal_core import InferenceEngineConfig, WorkflowExecutor
from areal_core._journal import crash_points
from areal_core.journal import resumable_steps
from areal_core.types import RolloutWorkflow

directory, point, times, passes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
has_ids = sys.argv[5] == "ids"  # which also means: shuffled, in groups, and now and then from the older step
ITEMS, BATCH, STALENESS = 20, 4, 2

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def hook(name):
    global times
    if name == point:
        times -= 1
        if not times:
            die()

class Loader:
    def __init__(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        epoch, self.epoch = self.epoch, self.epoch + 1
        items = [{"epoch": epoch, "place": place} for place in range(ITEMS)]
        if has_ids:
            items = [{**item, "data_id": f"q{item['place']}"} for item in random.sample(items, ITEMS)]
        for first in range(0, ITEMS, 3):
            yield items[first : first + 3]

class Engine:
    version = 0

    def get_version(self):
        return self.version

class Workflow(RolloutWorkflow):
    async def arun_episode(self, engine, data):
        await asyncio.sleep(random.random() * 0.004)
        epoch, place = data["epoch"], data["place"]
        if place == 7:
            return None  # never accepted
        versions = np.full((1, 4), engine.version, np.int32)
        return {"input_ids": np.array([[epoch, place, 0, 0]]), "attention_mask": np.ones((1, 4), np.int32),
                "versions": versions}

import asyncio

def checkpoint_of(step):
    return directory / f"checkpoint-{step}"

def save(step, trained):
    new = directory / "new"
    new.write_text(json.dumps(trained))
    os.replace(new, checkpoint_of(step))
    checkpoint_of(step - 2).unlink(missing_ok=True)

journal = directory / "journal"
steps = [one for one in resumable_steps(journal) if checkpoint_of(one).exists()]
step = max(steps, default=None)
if has_ids and len(steps) == 2 and random.random() < 0.3:
    checkpoint_of(step).unlink()
    step = min(steps)
trained = [] if step is None else json.loads(checkpoint_of(step).read_text())
engine = Engine()
engine.version = 0 if step is None else step + 1
config = InferenceEngineConfig(
    consumer_batch_size=BATCH, max_head_offpolicyness=STALENESS, journal_dir=journal, stall_timeout=20.0,
    on_stale="requeue", max_requeues=1000,  # else one that a slow machine makes too old is dropped, rightly
)
crash_points.hook = hook
if point == "timer":
    threading.Timer(times / 1e6, die).start()
wanted = {(epoch, place) for epoch in range(passes) for place in range(ITEMS) if place != 7}
with WorkflowExecutor(config, engine, resume_from=step) as executor:
    loader = Loader(executor.resumed.epoch)
    while not wanted <= set(map(tuple, trained)):
        batch = executor.prepare_batch(loader, Workflow(), group_size=2 if has_ids else 1)
        for trajectory in batch:
            assert (engine.version - trajectory["versions"]).max() <= STALENESS
            trained.append(trajectory["input_ids"][0, :2].tolist())
        step = 0 if step is None else step + 1
        assert step < 100, f"lost: {sorted(wanted - set(map(tuple, trained)))}"
        save(step, trained)
        executor.commit(step)
        engine.version = step + 1
        executor.on_version_changed()
print(json.dumps(trained))
"""

PASSES = 3


def lives(
    start_script: StartScript, directory: Path, deaths: list[tuple[str, int]], kind: str = "places"
) -> Iterator[int]:
    """Kill a trainer in each of these ways, let the last one come to its end; yield how each one ended."""
    for point, times in [*deaths, ("nowhere", 0)]:
        words = [str(directory), point, str(times), str(PASSES), kind]
        child = start_script(TRAINER, *words, flags=("-W", "error"))
        stdout, stderr = child.communicate(timeout=50)
        assert stderr == ""
        yield child.returncode
        if child.returncode == 0:
            trained = [tuple(one) for one in json.loads(stdout)]
            twice = {one for one in trained if trained.count(one) > 1}
            assert not twice, f"trained twice: {sorted(twice)}"
            wanted = {(epoch, place) for epoch in range(PASSES) for place in range(20) if place != 7}
            assert wanted <= set(trained)
            return


@pytest.mark.any_loop
@pytest.mark.parametrize("point", NAMES)
def test_a_trainer_killed_there_five_times_trains_on_everything_once(
    start_script: StartScript, tmp_path: Path, point: str
) -> None:
    chance = random.Random(point)
    most = {"in_compaction": 1, "after_commit": 3, "after_delivery": 3}.get(point, 6)
    ends = list(lives(start_script, tmp_path, [(point, chance.randint(1, most)) for _ in range(5)]))
    assert ends == [-signal.SIGKILL] * 5 + [0]


@pytest.mark.any_loop
@pytest.mark.parametrize("kind", ["places", "ids"])
@pytest.mark.parametrize("seed", range(5))
def test_a_trainer_killed_at_five_random_moments_trains_on_everything_once(
    start_script: StartScript, tmp_path: Path, seed: int, kind: str
) -> None:
    chance = random.Random(seed)
    kills = 0
    for _ in range(7):
        if kills >= 5:
            break
        directory = tmp_path / str(kills)
        directory.mkdir()
        deaths = [("timer", int(10 ** chance.uniform(3.5, 5.3))) for _ in range(5 - kills)]
        kills += list(lives(start_script, directory, deaths, kind)).count(-signal.SIGKILL)
    assert kills >= 5
