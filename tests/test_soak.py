"""The chaos run: its short form balances, and books that are off by one do not."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from areal_core.embedded import ServerStats, logprob_of, token_of
from areal_core.staleness_manager import RolloutStat
from areal_core.workflow_executor import RolloutLedger
from children import RunScript

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

SOAK = f"""
import runpy, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
runpy.run_path({str(BENCHMARKS / "soak.py")!r}, run_name="__main__")
"""

BOUND = 3
VERSION = 5
SEED = 1


class Parts(NamedTuple):
    """The modules of the run that are tried one by one."""

    balance: ModuleType
    books: ModuleType
    items: ModuleType
    plan: ModuleType


@pytest.fixture(scope="module")
def parts() -> Iterator[Parts]:
    """Import parts of the run, which lie beside it."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield Parts(*(import_module(f"_soak_{name}") for name in Parts._fields))
    finally:
        sys.path.remove(str(BENCHMARKS))


# -- a run -------------------------------------------------------------------------------------------


@pytest.mark.any_loop
@pytest.mark.timeout(120)
def test_after_a_short_run_in_which_everything_goes_wrong_the_books_balance(
    run_script: RunScript, loop_name: str, parts: Parts
) -> None:
    run = run_script(SOAK, "--minutes", "0.3", "--seed", "11", "--loop", loop_name, timeout=90)
    assert (run.stderr, run.returncode) == ("", 0), run.stdout
    rows = _rows(run.stdout)
    assert rows["faults"].keys() == parts.plan.FAULTS.keys()
    assert min(rows["faults"].values()) > 0
    assert min(rows["endings"][status] for status in ("accepted", "rejected", "failed", "cancelled")) > 0
    assert re.search(r"^servers killed +[1-9]\d*, [1-9]\d*, [1-9]\d* times", run.stdout, re.MULTILINE)
    assert re.search(r"^Ctrl-C +\d+ sent; [1-9]\d* raised, [1-9]", run.stdout, re.MULTILINE)
    assert run.stdout.splitlines()[-1].startswith("BALANCED: ")


def _rows(report: str) -> dict[str, dict[str, int]]:
    """Return the counts in the rows that say how often each kind of something was."""
    text = re.sub(r"\n +", " ", report)
    found = re.search(r"^faults +(.*)$", text, re.MULTILINE)
    endings = re.search(r"^training rollouts +\d+: (.*), stale", text, re.MULTILINE)
    assert found is not None
    assert endings is not None
    return {
        name: {kind: int(count) for kind, count in re.findall(r"(\w+) (\d+)", row)}
        for name, row in (("faults", found[1]), ("endings", endings[1]))
    }


# -- the plan ------------------------------------------------------------------------------------------


def test_a_seed_has_one_plan_and_another_seed_another(parts: Parts) -> None:
    def text(seed: int, minutes: float) -> str:
        return "\n".join(parts.plan.make_plan(seed, minutes).lines())

    assert text(3, 1) == text(3, 1)
    assert text(3, 1) != text(4, 1)


@pytest.mark.parametrize("minutes", [0.01, 0.3, 10])
def test_each_kind_of_fault_and_a_kill_of_each_server_are_in_every_plan(parts: Parts, minutes: float) -> None:
    plan = parts.plan.make_plan(SEED, minutes)
    assert {kind for steps in plan.steps for step in steps for kind in step.kinds} == parts.plan.FAULTS.keys()
    assert all(any(step.down_s is not None for step in steps) for steps in plan.steps)


def test_no_kind_of_fault_of_the_servers_is_left_out(parts: Parts) -> None:
    from areal_core.embedded._fault_script import FAULT_NAMES

    ours = {re.sub(r"^status_.*", "status", name) for name in parts.plan.FAULTS}
    assert ours == {re.sub(r"^status_.*", "status", name) for name in FAULT_NAMES}


# -- ledgers ---------------------------------------------------------------------------------------------

LEDGER = RolloutLedger(
    submitted=20,
    finished=2,
    collected=15,
    discarded=3,
    accepted=12,
    rejected=3,
    failed=2,
    timed_out=1,
    cancelled=1,
    stale=1,
)
ENDINGS = {"accepted": 12, "rejected": 3, "failed": 2, "timed_out": 1, "cancelled": 1, "stale": 1}


def _told(parts: Parts, **changes: Any) -> Any:
    fields = {"submitted": 20, "taken": 13, "accepted_and_taken": 9, "dropped": 3, "endings": ENDINGS}
    return parts.balance.Told(**{**fields, **changes})


def test_ledgers_that_agree_balance(parts: Parts) -> None:
    assert list(parts.balance.of_ledger("training", LEDGER, _told(parts))) == []


@pytest.mark.parametrize(
    "field", [spec.name for spec in dataclasses.fields(LEDGER) if spec.name not in ("requeued", "lost")]
)
@pytest.mark.parametrize("more", [1, -1])
def test_a_ledger_that_is_off_by_one_does_not_balance(parts: Parts, field: str, more: int) -> None:
    off = dataclasses.replace(LEDGER, **{field: getattr(LEDGER, field) + more})
    assert list(parts.balance.of_ledger("training", off, _told(parts)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"submitted": 21}, "training: 21 were submitted, and the ledger says 20"),
        (
            {"accepted_and_taken": 8},
            "training: 12 were accepted; 8 were handed out, and 3 were left at a stop",
        ),
        (
            {"accepted_and_taken": 10},
            "training: 12 were accepted; 10 were handed out, and 3 were left at a stop",
        ),
        ({"dropped": 2}, "training: 12 were accepted; 9 were handed out, and 2 were left at a stop"),
        ({"taken": 16}, "training: 15 are called collected, and 16 were"),
        ({"endings": {**ENDINGS, "failed": 1}}, "training: 1 ended as failed by the log, 2 by the ledger"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_books_of_the_run_that_are_off_by_one_do_not_balance(
    parts: Parts, changes: dict[str, Any], said: str
) -> None:
    assert list(parts.balance.of_ledger("training", LEDGER, _told(parts, **changes))) == [said]


@pytest.mark.parametrize(
    "stats", [RolloutStat(1, 0, 12, 8), RolloutStat(0, 1, 12, 8), RolloutStat(0, 0, 11, 8)]
)
def test_a_staleness_manager_that_is_off_by_one_does_not_balance(parts: Parts, stats: RolloutStat) -> None:
    assert list(parts.balance.of_manager(RolloutStat(0, 0, 12, 8), LEDGER)) == []
    assert len(list(parts.balance.of_manager(stats, LEDGER))) == 1


def test_a_server_that_runs_on_or_has_lost_a_generation_does_not_balance(parts: Parts) -> None:
    well = ServerStats(generations=6, completed=3, aborted=2, cancelled=1)
    assert list(parts.balance.of_server("server", well)) == []
    for off in (
        dataclasses.replace(well, completed=2),
        dataclasses.replace(well, completed=2, in_flight=1),
    ):
        assert len(list(parts.balance.of_server("server", off))) == 1


@pytest.mark.parametrize(
    ("what", "limit"),
    [("descriptors", "DESCRIPTORS_MORE"), ("threads", "THREADS_MORE"), ("resident", "RESIDENT_MORE")],
)
def test_what_grows_by_more_than_it_may_is_named(parts: Parts, what: str, limit: str) -> None:
    quarter = parts.balance.Held(descriptors=6, threads=2, resident=60_000_000)
    most = getattr(quarter, what) + getattr(parts.balance, limit)
    assert list(parts.balance.of_growth(quarter, dataclasses.replace(quarter, **{what: most}))) == []
    (said,) = parts.balance.of_growth(quarter, dataclasses.replace(quarter, **{what: most + 1}))
    assert said.startswith(f"{what} went from ")


# -- items and tokens ---------------------------------------------------------------------------------------


def _trajectory(item: dict[str, Any], version: int = VERSION, tokens: int = 4) -> dict[str, Any]:
    """Return what comes of an *item* that the servers answer with *tokens* of *version*."""
    prompt, sequence = item["input_ids"], list(item["input_ids"])
    logprobs = [0.0] * len(prompt)
    for _ in range(tokens):
        logprobs.append(logprob_of(version, sequence))
        sequence.append(token_of(version, sequence, may_end=False))
    return {
        "input_ids": np.array([sequence]),
        "attention_mask": np.ones((1, len(sequence)), int),
        "loss_mask": np.array([[0] * len(prompt) + [1] * tokens]),
        "logprobs": np.array([logprobs], np.float32),
        "versions": np.array([[-1] * len(prompt) + [version] * tokens]),
        "exact": np.array([True]),
    }


class Scene:
    """Books with one item, of which a trajectory may come, that was submitted and has started."""

    def __init__(self, parts: Parts, lane: str = "OPEN") -> None:
        self.books = parts.books.Books(SEED, BOUND, lambda: VERSION)
        self.books.judge.newest = VERSION
        self.item = self.books.new(getattr(parts.books, lane))
        while self.item["kind"] not in parts.items.MAY_BE_ACCEPTED:
            self.books = parts.books.Books(self.books.seed + 1, BOUND, lambda: VERSION)
            self.books.judge.newest = VERSION
            self.item = self.books.new(getattr(parts.books, lane))
        self.books.confirm(0)
        self.books.started(0, 0)

    def end(self, status: str = "accepted") -> None:
        self.books.ended(0, status)

    def take(self, version: int = VERSION, **changes: Any) -> None:
        self.books.take({**_trajectory(self.item), **changes}, version)

    def settled(self) -> list[str]:
        """Return the complaints in the end."""
        self.books.settle(is_last=True)
        return list(self.books.complaints)


def _end_twice(scene: Scene) -> None:
    scene.end()
    scene.end("failed")
    scene.take()


def _take_twice(scene: Scene) -> None:
    scene.end()
    scene.take()
    scene.take()


def _play_twice(scene: Scene) -> None:
    scene.books.started(0, 17)
    scene.end()
    scene.take()


def _say_none_too_often(scene: Scene) -> None:
    scene.end()
    scene.take()
    scene.books.unnamed += 1


ODD: dict[str, tuple[Callable[[Scene], object], str]] = {
    "nothing": (lambda scene: None, "item 0 was submitted, and never ended"),
    "no taking": (lambda scene: scene.end(), "item 0 ended, accepted, and was never handed out"),
    "a failure nobody hears of": (
        lambda scene: scene.end("failed"),
        "item 0 ended, failed, and was never handed out",
    ),
    "two endings": (_end_twice, "item 0 ended 2 times, 1 times accepted"),
    "two takings": (_take_twice, "item 0 was handed out 2 times"),
    "two rollouts": (_play_twice, "item 0 is played by the rollouts 0 and 17"),
    "a None of nobody's": (
        _say_none_too_often,
        "1 times None was handed out more often than it can have been",
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_item_that_is_lost_or_doubled_is_named(parts: Parts, odd: str) -> None:
    scene = Scene(parts)
    ODD[odd][0](scene)
    assert scene.settled() == [ODD[odd][1]]


def test_an_item_that_ended_once_and_was_handed_out_once_is_not_named(parts: Parts) -> None:
    scene = Scene(parts)
    scene.end()
    scene.take()
    assert scene.settled() == []


def test_an_item_that_was_too_old_and_ran_again_ends_once(parts: Parts) -> None:
    scene = Scene(parts)
    scene.end()
    scene.books.went_stale(0, runs_again=True)
    scene.end()
    scene.take()
    assert scene.settled() == []
    assert scene.books.endings[0] == {"accepted": 1}


def test_an_item_of_a_batch_may_be_left_at_a_stop_while_it_is_young(parts: Parts) -> None:
    young = Scene(parts, "BATCH")
    young.end()
    assert young.settled() == []
    assert young.books.dropped == 1
    old = Scene(parts, "BATCH")
    old.end()
    old.books._version = lambda: VERSION + BOUND + 1
    assert old.settled() == ["item 0 was accepted, and neither handed out nor called too old"]


def test_tokens_that_are_too_old_are_named(parts: Parts) -> None:
    scene = Scene(parts)
    scene.end()
    scene.take(VERSION + BOUND)
    assert not scene.books.complaints
    scene = Scene(parts)
    scene.end()
    scene.take(VERSION + BOUND + 1)
    assert f"item 0: token {len(scene.item['input_ids'])} is of version 5, handed out at 9 or later" in (
        scene.settled()
    )


@pytest.mark.parametrize("spoilt", ["input_ids", "logprobs", "versions"])
def test_tokens_that_no_server_made_are_named(parts: Parts, spoilt: str) -> None:
    scene = Scene(parts)
    scene.end()
    column = _trajectory(scene.item)[spoilt].copy()
    column[0, -1] += -1 if spoilt != "input_ids" or column[0, -1] > ord("a") else 1
    scene.take(**{spoilt: column})
    (said,) = scene.settled()
    assert said.startswith(f"item 0: token {column.shape[1] - 1} ")
