"""Snapshots of an executor: what they say while it runs, when it has ended, and through JSON."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from areal_core._executor import observer
from areal_core._executor.books import RolloutLedger
from areal_core._executor.snapshot import SCHEMA, decode, encode
from areal_core._offload.stats import OffloadStats
from areal_core.config import InferenceEngineConfig
from areal_core.embedded import EmbeddedServer
from areal_core.errors import RunnerStoppedError
from areal_core.remote_inf_engine import EngineStats, RemoteInfEngine
from areal_core.types import GenerationHyperparameters, ModelRequest
from areal_core.workflow_executor import WorkflowExecutor
from conftest import MakeExecutor
from doors import Blockade, Door, turn_loop
from executor_tools import WAIT_S, Engine, Playing, answering, obeying, trajectory_of
from interrupts import interrupt
from snapshots import changed


def parked_at(door: Door) -> Playing:
    async def play(_data: Any) -> Any:
        return await door.walk_through(trajectory_of(1))

    return Playing(play)


def test_it_counts_what_has_ended_and_shows_what_runs_with_the_oldest_first(
    make_executor: MakeExecutor,
) -> None:
    executor, door = make_executor(max_concurrent_rollouts=2, consumer_batch_size=8), Door()
    for number in (None, ValueError("no"), 1):
        executor.submit(number, obeying)
    executor.wait(3, WAIT_S)
    for number in range(5):
        executor.submit({"data_id": f"q{number}"}, parked_at(door))
    executor.submit(1, answering, is_eval=True)
    door.wait_for(2)
    executor.wait_outcomes(1, WAIT_S, is_eval=True)
    seen = executor.snapshot()
    assert seen.training == RolloutLedger(
        submitted=8, pending=3, running=2, collected=3, accepted=1, rejected=1, failed=1
    )
    assert (seen.evaluation.submitted, seen.evaluation.collected) == (1, 1)
    assert [one.data_id for one in seen.stragglers] == ["q0", "q1"]
    assert seen.stages == {"playing its workflow": 2}
    assert seen.age_max_s is not None
    assert seen.age_p50_s is not None
    assert seen.age_max_s >= seen.age_p50_s > 0
    assert (seen.samples, seen.most_samples) == (2, 2)
    assert [reason.kind for reason in seen.reasons] == ["concurrency"]
    assert (seen.engine, seen.servers, seen.journal) == (None, (), None)
    assert not seen.has_ended
    door.open()


@pytest.mark.any_loop
def test_it_says_that_it_is_paused_at_which_version_and_what_was_delivered(
    make_executor: MakeExecutor,
) -> None:
    executor = make_executor(Engine(version=7), consumer_batch_size=2, max_head_offpolicyness=1)
    executor.submit(1, answering)
    executor.wait(1, WAIT_S)
    executor.pause()
    executor.submit(2, answering)
    seen = executor.snapshot()
    assert seen.is_paused
    assert "paused" in [reason.kind for reason in seen.reasons]
    assert (seen.version, seen.staleness.delivered, seen.training.pending) == (7, 1, 1)
    assert (seen.units_consumed, seen.most_units) == (1, 4)


@pytest.mark.any_loop
def test_it_can_be_taken_while_a_rollout_blocks_the_loop(make_executor: MakeExecutor) -> None:
    executor, blockade = make_executor(loop_block_warning=None), Blockade()
    executor.submit(trajectory_of(1), Playing(blockade.block))
    blockade.wait_until_entered()
    assert executor.snapshot().training.running == 1
    blockade.lift()


@pytest.mark.any_loop
def test_who_keeps_the_loop_late_is_seen_for_a_minute(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, door = make_executor(loop_block_warning=0.05), Door()
    assert executor.snapshot().loop_blame is None

    async def burn(_data: Any) -> Any:
        end = time.monotonic() + WAIT_S
        while executor.snapshot().loop_blame is None:
            assert time.monotonic() < end
        return await door.walk_through(trajectory_of(1))

    executor.submit(1, Playing(burn))
    door.wait_for()
    found = executor.snapshot().loop_blame
    assert found is not None
    assert found.function.endswith("burn")
    assert found.where.startswith(f"{__file__}:")
    assert (found.seconds >= 0.05, found.share) == (True, 1.0)
    assert 0 <= found.ago_s < WAIT_S
    monkeypatch.setattr(observer, "_BLAMED_S", -1.0)
    assert executor.snapshot().loop_blame is None
    door.open()
    executor.wait(1, WAIT_S)


@pytest.mark.any_loop
def test_the_lag_of_the_loop_is_seen_as_long_as_something_runs(make_executor: MakeExecutor) -> None:
    executor, door = make_executor(loop_block_warning=0.02), Door()
    executor.submit(1, parked_at(door))
    door.wait_for(1)
    watch = executor._on_shift().desk.watch
    assert watch is not None
    while executor.snapshot().loop_lag_s is None:
        turn_loop(executor.runner)
    lag = executor.snapshot().loop_lag_s
    assert lag is not None
    assert 0 <= lag < WAIT_S
    door.open()
    executor.wait(1, WAIT_S)
    turn_loop(executor.runner)
    assert executor.snapshot().loop_lag_s is None


@pytest.mark.any_loop
def test_after_the_end_it_shows_how_all_of_it_ended(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    executor.submit(1, answering)
    turn_loop(executor.runner)
    executor.destroy()
    seen = executor.snapshot()
    assert seen.has_ended
    assert (seen.training.finished, seen.training.accepted) == (1, 1)
    with pytest.raises(RunnerStoppedError):
        WorkflowExecutor(InferenceEngineConfig(), Engine()).snapshot()


@pytest.mark.any_loop
def test_a_ctrl_c_while_it_is_taken_leaves_the_executor_as_good_as_new(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=1000)
    for step in range(0, 60, 3):
        interrupt(executor.snapshot, step)
        executor.submit(step, answering)
        executor.wait(1, WAIT_S)


@pytest.mark.any_loop
def test_json_brings_it_back_and_a_later_schema_is_refused(make_executor: MakeExecutor) -> None:
    seen = make_executor().snapshot()
    assert decode(encode(seen)) == seen
    later = {**json.loads(encode(seen)), "schema": SCHEMA + 1}
    with pytest.raises(ValueError, match=f"schema {SCHEMA + 1} is later than {SCHEMA}"):
        decode(json.dumps(later).encode())
    with pytest.raises(ValueError, match="Expected"):
        decode(b"[]")


@pytest.mark.any_loop
def test_the_engine_says_what_it_did_and_of_each_server_how_it_is(make_executor: MakeExecutor) -> None:
    config = InferenceEngineConfig()
    with EmbeddedServer(mode="test") as server, RemoteInfEngine(config, backend="sglang") as engine:
        engine.initialize([server.addr])
        executor = make_executor(engine)

        async def generate() -> None:
            for count in (3, 5):
                await engine.agenerate(
                    ModelRequest([1, 2, 3], GenerationHyperparameters(max_new_tokens=count, ignore_eos=True))
                )
            async with engine.paused():
                assert engine.stats().is_paused
            server.faults(["status=400,next=1"])
            with pytest.raises(Exception, match="400"):
                await engine.agenerate(ModelRequest([1], GenerationHyperparameters(max_new_tokens=1)))

        executor.runner.run(generate)
        stats = engine.stats()
        assert (stats.ended, stats.failed, stats.tokens, stats.running) == (3, 1, 8, 0)
        assert stats.attempts >= 3
        seen = executor.snapshot()
        assert seen.engine is not None
        assert (seen.engine.tokens, seen.engine.failed) == (8, 1)
        assert [(one.name, one.why_out, one.in_flight) for one in seen.servers] == [(server.addr, None, 0)]
        executor.destroy()
        engine.destroy()
        assert executor.snapshot().servers == ()


@pytest.mark.any_loop
@pytest.mark.parametrize(
    ("data_id", "shown"),
    [
        (7, 7),
        ("7", "7"),
        (0.5, 0.5),
        (True, True),
        (2**64 - 1, 2**64 - 1),
        (-(2**63) - 1, "-9223372036854775809"),
        (2**70, "1180591620717411303424"),
        (("a", 1), "('a', 1)"),
        ("x" * 100, "x" * 80 + "..."),
        (None, None),
    ],
    ids=str,
)
@pytest.mark.any_loop
def test_a_data_id_is_of_its_own_type_also_through_json(
    make_executor: MakeExecutor, data_id: Any, shown: Any
) -> None:
    executor, door = make_executor(), Door()
    executor.submit({"data_id": data_id}, parked_at(door))
    door.wait_for()
    seen = executor.snapshot()
    for (one,) in (seen.stragglers, decode(encode(seen)).stragglers):
        assert (type(one.data_id), one.data_id) == (type(shown), shown)
    assert (data_id is None) == ("data_id" not in str(seen))
    door.open()


@pytest.mark.any_loop
def test_its_text_is_for_people(loop_name: str) -> None:
    workers = OffloadStats(place="process", workers=4, busy=4, waiting=9, longest_wait_s=3.25, calls=5)
    text = str(changed(pid=42, program="train.py", offloaded=(workers,)))
    counts = "83 pending, 64 running, 21 not collected; 1204 accepted, 47 rejected, 19 failed, 1 timed out"
    budget = "64 run, 21 wait to be delivered, 0 delivered at this version"
    assert text.splitlines() == [
        "train.py (pid 42) runs, up 1:02:03, version 12",
        f"rollouts: {counts}",
        "evaluation: 0 pending, 2 running, 0 not collected; 6 accepted",
        f"capacity: 64 of 64 samples run, 85 of 96 of the staleness budget used ({budget})",
        "no more start: concurrency: 64 samples of training run; one has to end",
        "stages: 50 generating, 14 waiting for its reward",
        "oldest: rollout 7 (data_id 'gsm8k/7') SingleTurnWorkflow, 45 s old, waiting for its reward for 12 s",
        "loop: 4 ms late at worst lately",
        "waits: a caller waits for a batch of 32: 24 are there",
        f"offloaded: {workers}",
        "delivered: 1183 trajectories, stale by 0.8 versions on average and 2 at most",
        "generations: 50 running, 0 wait for a slot; 123456 tokens so far",
        "server 10.0.0.1:30000: 30 in flight",
        "server 10.0.0.2:30000: out: it hung up",
        "journal: step 3 committed, 2048 bytes to be written",
    ]


@pytest.mark.any_loop
def test_its_text_says_nothing_of_what_there_is_not(make_executor: MakeExecutor) -> None:
    executor = make_executor(consumer_batch_size=3)
    executor.pause()
    lines = str(executor.snapshot()).splitlines()
    assert re.fullmatch(r".* \(pid \d+\) paused, up 0\.\d s, version 0", lines[0])
    assert lines[1] == "rollouts: 0 pending, 0 running, 0 not collected; none has ended"
    assert lines[2].startswith("capacity: 0 of 3 of the staleness budget used ")
    assert [line.partition(":")[0] for line in lines[3:]] == ["no more start"] * (len(lines) - 3)


def test_an_engine_whose_stats_are_something_else_is_left_alone(make_executor: MakeExecutor) -> None:
    class Odd(Engine):
        def stats(self) -> dict[str, int]:
            return {"something": 1}

    assert make_executor(Odd()).snapshot().engine is None
    assert EngineStats().servers == ()
