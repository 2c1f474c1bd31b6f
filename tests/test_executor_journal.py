"""A run that ended, and another that goes on where it had come to: two executors in one process."""

from __future__ import annotations

import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from areal_core._executor import journaling
from areal_core._executor.ids import Ids
from areal_core._journal import crash_points
from areal_core.config import InferenceEngineConfig
from areal_core.errors import JournalError, RunnerStoppedError
from areal_core.journal import resumable_steps
from areal_core.workflow_executor import WorkflowExecutor
from conftest import MakeExecutor
from doors import Door, turn_loop
from executor_tools import Engine, Lists, Playing, TellingEngine, balance, park, trajectory_of, values_of
from interrupts import interrupt
from logged import LogLines

ITEMS = [list(range(first, first + 4)) for first in range(0, 40, 4)]
"""One pass of a dataloader; no test comes to its end."""

SHORT = ITEMS[:3]
"""One that is soon begun again."""


class Player:
    """A workflow that makes a trajectory of the item's number, and notes what it has played."""

    def __init__(self, version: int | None = None) -> None:
        self.played: list[int] = []
        self.version = version
        self.workflow = Playing(self._play)

    async def _play(self, data: Any) -> Any:
        number = data["number"] if isinstance(data, dict) else data
        self.played.append(number)
        return trajectory_of(number, versions=self.version)


@pytest.fixture
def config(directory: Path) -> dict[str, Any]:
    return {"consumer_batch_size": 4, "max_head_offpolicyness": 1, "journal_dir": directory}


@pytest.fixture
def player() -> Player:
    return Player()


async def _commit(executor: WorkflowExecutor) -> None:
    executor.commit(1)


def _refuse(point: str) -> None:
    if point == "before_fsync":
        raise sqlite3.OperationalError("database or disk is full")


def take(executor: WorkflowExecutor, player: Player, items: Any = ITEMS) -> list[int | None]:
    return values_of(executor.prepare_batch(items, player.workflow))


def test_what_was_committed_is_never_given_again_and_what_was_not_is_without_being_played(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    first = make_executor(**config)
    assert take(first, player) == [0, 1, 2, 3]
    first.commit(0)
    assert take(first, player) == [4, 5, 6, 7]
    first.destroy()

    second, after = make_executor(resume_from=0, **config), Player()
    assert take(second, after) == [4, 5, 6, 7]
    assert not set(after.played) & {4, 5, 6, 7}, "they came out of the journal"
    second.commit(1)
    balance(second.ledger)
    second.destroy()
    third = make_executor(TellingEngine(), resume_from=1, **config)
    assert take(third, after) == [8, 9, 10, 11]
    assert len(after.played) == len(set(after.played))


def test_a_trajectory_comes_back_as_it_was_with_all_that_is_known_of_it(
    make_executor: MakeExecutor, config: dict[str, Any]
) -> None:
    engine = Engine(version=3)
    workflow = Player(version=3).workflow
    items = [[{"data_id": name, "number": number} for number, name in enumerate("abcd")]]
    first = make_executor(engine, on_stale="mask", **config)
    given = first.prepare_batch(items, workflow)
    first.destroy()
    second = make_executor(engine, on_stale="mask", **config)
    again = second.prepare_batch(items, workflow)
    for before, after in zip(given, again, strict=True):
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
            assert before[name].dtype == after[name].dtype
    assert second.report().delivered == 4


def test_what_was_in_flight_is_played_again_before_what_the_dataloader_gives(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    door = Door()

    async def through(number: int) -> Any:
        return await door.walk_through(trajectory_of(number)) if number in (1, 5) else trajectory_of(number)

    first = make_executor(**config)
    given = values_of(first.prepare_batch(ITEMS, Playing(through)))
    door.wait_for(2)
    first.commit(0)
    first.destroy()

    second = make_executor(resume_from=0, **config)
    assert second.resumed is not None
    assert (second.resumed.done, second.resumed.to_play) == (4, first.ledger.cancelled)
    given += take(second, player) + take(second, player)
    assert sorted(given, key=str) == sorted(range(12), key=str)
    assert {1, 5} <= set(player.played)


@pytest.mark.any_loop
def test_while_there_is_enough_of_the_run_before_the_dataloader_is_not_asked(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    first = make_executor(**config)
    take(first, player)
    turn_loop(first.runner)  # what the budget lets start has ended
    assert (first.ledger.finished, first.ledger.pending) == (4, 8)
    first.destroy()
    second, lists = make_executor(**config), Lists(4)
    assert take(second, player, lists) == [0, 1, 2, 3]
    assert lists.next == 0


@pytest.mark.any_loop
def test_what_comes_back_is_judged_by_the_version_that_the_trainer_has_set_by_then(
    make_executor: MakeExecutor, config: dict[str, Any]
) -> None:
    first = make_executor(Engine(version=5), **config)
    take(first, Player(5))
    first.destroy()
    engine = Engine(version=0)
    second, after = make_executor(engine, **config), Player(5)
    engine.version = 5
    assert take(second, after) == [0, 1, 2, 3]
    assert not {0, 1, 2, 3} & set(after.played)


@pytest.mark.any_loop
def test_a_start_that_fails_leaves_the_journal_to_the_next(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    engine = Engine()
    executor = WorkflowExecutor(InferenceEngineConfig(**config), engine)
    engine.version = "no number"  # type: ignore[assignment]
    with pytest.raises(TypeError, match="the version of the provider"):
        executor.initialize()
    assert take(make_executor(**config), player) == [0, 1, 2, 3]


@pytest.mark.any_loop
@pytest.mark.parametrize("on_stale", ["mask", "drop", "requeue"])
def test_one_that_is_too_old_by_now_is_played_again_instead_of_being_given(
    make_executor: MakeExecutor, config: dict[str, Any], on_stale: str
) -> None:
    first = make_executor(Engine(version=1), on_stale=on_stale, **config)
    take(first, Player(version=1))
    first.commit(0)
    take(first, Player(version=1))
    first.destroy()
    second, after = make_executor(Engine(version=3), on_stale=on_stale, resume_from=0, **config), Player(3)
    assert sorted(take(second, after), key=str) == [4, 5, 6, 7]
    assert {4, 5, 6, 7} <= set(after.played)
    assert second.ledger.stale == 0
    balance(second.ledger)


@pytest.mark.any_loop
def test_one_that_becomes_too_old_after_it_came_back_is_played_again(
    make_executor: MakeExecutor, config: dict[str, Any]
) -> None:
    config = {**config, "consumer_batch_size": 2}
    items = [[0, 1], [2, 3]]
    engine = TellingEngine()
    first = make_executor(engine, **config)
    take(first, Player(0), items)
    take(first, Player(0), items)
    first.destroy()
    second, after = make_executor(engine, **config), Player(2)
    assert take(second, after, items) == [0, 1]
    engine.set_version(2)
    assert sorted(take(second, after, items), key=str) == [2, 3]
    assert {2, 3} <= set(after.played)
    balance(second.ledger)


@pytest.mark.any_loop
@pytest.mark.parametrize(("on_stale", "plays_again"), [("requeue", True), ("drop", False)])
def test_what_became_too_old_before_it_was_given_is_what_it_was_to_the_run_before(
    make_executor: MakeExecutor, config: dict[str, Any], on_stale: str, plays_again: bool
) -> None:
    engine = TellingEngine()
    first = make_executor(engine, on_stale=on_stale, **config)
    take(first, Player(0))
    turn_loop(first.runner)  # 4 to 7 have ended, and wait
    first.commit(0)
    first.pause()
    engine.set_version(9)
    turn_loop(first.runner)
    assert first.ledger.stale == (0 if plays_again else 4)
    first.destroy()
    second, after = make_executor(engine, on_stale=on_stale, resume_from=0, **config), Player(9)
    take(second, after)
    assert ({4, 5, 6, 7} <= set(after.played)) is plays_again


@pytest.mark.any_loop
def test_what_was_made_by_a_version_that_is_no_more_is_played_again(
    make_executor: MakeExecutor, config: dict[str, Any]
) -> None:
    first = make_executor(Engine(version=5), **config)
    take(first, Player(5))
    first.destroy()
    second, after = make_executor(Engine(version=4), **config), Player(4)
    assert sorted(take(second, after), key=str) == [0, 1, 2, 3]
    assert {0, 1, 2, 3} <= set(after.played)


@pytest.mark.any_loop
def test_what_was_too_old_once_stays_so_for_the_run_after_the_next(
    make_executor: MakeExecutor, config: dict[str, Any]
) -> None:
    door = Door()

    async def through(number: int) -> Any:
        return await door.walk_through(trajectory_of(number))

    first = make_executor(Engine(version=5), **config)
    take(first, Player(5))
    first.destroy()
    second = make_executor(Engine(version=4), **config)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(second.prepare_batch, ITEMS, Playing(through))
        door.wait_for(4)
        second.destroy()
        assert isinstance(batch.exception(20.0), RunnerStoppedError)
    third, after = make_executor(Engine(version=5), **config), Player(5)
    assert sorted(take(third, after), key=str) == [0, 1, 2, 3]
    assert {0, 1, 2, 3} <= set(after.played)


async def _end(number: int) -> Any:
    if number == 0:
        return None
    if number == 1:
        raise ConnectionError("the machine goes down")
    if number in (2, 3):
        await park()
    return trajectory_of(number)


@pytest.mark.parametrize("is_committed", [True, False])
def test_what_failed_is_played_again_without_a_commit_and_what_was_rejected_or_cancelled_is_not(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player, is_committed: bool
) -> None:
    first = make_executor(on_stale="keep", **config)
    first.commit(0)
    first.prepare_batch(ITEMS, Playing(_end))
    by_id = {stuck.data_id: stuck.task_id for stuck in first.explain().rollouts}
    assert first.cancel(by_id["0:2"])
    turn_loop(first.runner)
    if is_committed:
        first.commit(1)
    first.destroy()

    engine = TellingEngine()
    second = make_executor(engine, resume_from=int(is_committed), on_stale="keep", **config)
    take(second, player), take(second, player)
    engine.set_version(1)  # what came back has used the budget up
    take(second, player)
    assert not {0, 2} & set(player.played), "rejected, cancelled by the caller"
    assert 3 in player.played, "cancelled because all ended"
    assert (1 in player.played) is not is_committed


@pytest.mark.any_loop
def test_the_dataloader_may_shuffle_items_that_have_ids_of_their_own(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    def items(order: list[int]) -> list[list[dict[str, Any]]]:
        return [[{"data_id": f"q{number}", "number": number} for number in order]]

    first = make_executor(**config)
    given = take(first, player, items([3, 1, 4, 5, 9, 2, 6, 0]))
    first.commit(0)
    first.destroy()
    second = make_executor(resume_from=0, **config)
    given += take(second, player, items([9, 0, 1, 2, 3, 4, 5, 6]))
    assert sorted(given, key=str) == [0, 1, 2, 3, 4, 5, 6, 9]


@pytest.mark.any_loop
def test_an_id_that_a_pass_gives_twice_names_two_items_in_any_order(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    def items(order: list[int]) -> list[list[dict[str, Any]]]:
        return [[{"data_id": number, "number": number} for number in order]]

    first = make_executor(**config)
    given = take(first, player, items([1, 2, 3, 4, 1, 2, 3, 4]))
    first.commit(0)
    first.destroy()
    second = make_executor(resume_from=0, **config)
    given += take(second, player, items([4, 4, 3, 2, 1, 1, 2, 3]))
    assert sorted(given, key=str) == [1, 1, 2, 2, 3, 3, 4, 4]


ODD_IDS = [
    7,
    "7",
    True,
    1.5,
    b"7",
    (7, "7"),
    ("7,7",),
    UUID(int=7),
    np.int64(8),
    "at 0x1234",
    "'",
    "=7",
]


@pytest.mark.any_loop
def test_ids_of_many_types_are_known_again_and_none_is_taken_for_another(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    items = [[{"data_id": own, "number": number} for number, own in enumerate(ODD_IDS)], [12, 13, 14, 15]]
    config["max_head_offpolicyness"] = 3
    first = make_executor(**config)
    given = take(first, player, items) + take(first, player, items)
    first.commit(0)
    first.destroy()
    second = make_executor(resume_from=0, **config)
    given += take(second, player, items[::-1]) + take(second, player, items[::-1])
    assert sorted(given, key=str) == sorted(range(16), key=str)


@pytest.mark.any_loop
@pytest.mark.parametrize("own", [object(), {1}, np.array([1, 2]), 1j], ids=lambda own: type(own).__name__)
def test_an_id_that_no_other_process_may_know_again_is_refused(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player, own: Any
) -> None:
    executor = make_executor(**config)
    with pytest.raises(ValueError, match=f"is a {type(own).__name__}, .* give a str or an int"):
        take(executor, player, [[{"data_id": own}]])


@pytest.mark.any_loop
def test_a_list_that_fails_takes_no_places_from_those_behind_it(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    items: list[Any] = [[0, 1, 2, {"data_id": object()}], *ITEMS[1:]]
    first = make_executor(**config)
    with pytest.raises(ValueError, match="give a str or an int"):
        take(first, player, items)
    assert take(first, player, items) == [4, 5, 6, 7]
    first.commit(0)
    first.destroy()
    second = make_executor(resume_from=0, **config)
    assert [*take(second, player), *take(second, player)] == [8, 9, 10, 11, 12, 13, 14, 15]


@pytest.mark.any_loop
def test_other_items_at_known_places_are_played_too_and_it_is_said(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player, log_lines: LogLines
) -> None:
    engine = TellingEngine()
    first = make_executor(engine, **config)
    assert take(first, player) == [0, 1, 2, 3]
    first.commit(0)
    assert first.ledger.submitted == 16
    first.destroy()
    second, given = make_executor(engine, resume_from=0, **config), list[int | None]()
    others = [[number + 100 for number in some] for some in ITEMS]
    for version in range(6):
        engine.set_version(version)
        given += take(second, player, others)
    assert given == [*range(4, 16), *range(104, 116)], "of what was committed only the places are known"
    assert "data_id" in log_lines.wait_for("journal_other_items").message


@pytest.mark.any_loop
def test_a_commit_up_to_a_mark_leaves_what_was_given_after_it(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    first = make_executor(**config)
    assert take(first, player) == [0, 1, 2, 3]
    mark = first.mark()
    assert take(first, player) == [4, 5, 6, 7]
    first.commit(0, up_to=mark)
    with pytest.raises(ValueError, match=r"up_to=9 is above 8"):
        first.commit(1, up_to=9)
    first.destroy()
    second = make_executor(resume_from=0, **config)
    assert take(second, player) == [4, 5, 6, 7]
    second.destroy()

    third = make_executor(resume_from=0, **config)
    assert take(third, player) == [4, 5, 6, 7]
    third.commit(1)
    third.destroy()
    assert take(make_executor(resume_from=1, **config), player) == [8, 9, 10, 11]


def test_what_is_given_again_is_given_in_the_order_in_which_it_was(
    make_executor: MakeExecutor, config: dict[str, Any]
) -> None:
    engine, door = TellingEngine(), Door()

    async def play(number: int) -> Any:
        if number in (0, 1):
            await door.walk_through(None)
        return trajectory_of(number, versions=engine.version)

    first = make_executor(engine, on_stale="keep", **{**config, "consumer_batch_size": 2})
    items = [[number, number + 1] for number in range(0, 40, 2)]
    given = [values_of(first.prepare_batch(items, Playing(play)))]
    engine.set_version(1)
    door.open()
    turn_loop(first.runner)
    given += [values_of(first.prepare_batch(items, Playing(play))) for _ in range(2)]
    first.destroy()
    second, player = make_executor(engine, on_stale="keep", **{**config, "consumer_batch_size": 2}), Player()
    assert [take(second, player, items) for _ in range(3)] == given


@pytest.mark.any_loop
@pytest.mark.parametrize("size", [10, 10**6], ids=["small", "large"])
def test_groups_that_a_filter_has_kept_come_back_whole(
    make_executor: MakeExecutor, config: dict[str, Any], size: int
) -> None:
    async def play(number: int) -> Any:
        return {**trajectory_of(number), "hidden": np.full((1, size), number, np.float32)}

    def keep(trajectory: dict[str, Any]) -> bool:
        return int(trajectory["input_ids"][0, 0]) % 2 == 0

    def batch(executor: WorkflowExecutor) -> list[Any]:
        return executor.prepare_batch(ITEMS, Playing(play), should_accept_fn=keep, group_size=2)

    first = make_executor(**config)
    given = batch(first)
    first.destroy()
    again = batch(make_executor(**config))
    assert values_of(given) == values_of(again) == [0, 2, 4, 6]
    for before, after in zip(given, again, strict=True):
        assert before["hidden"].shape == (2, size)
        np.testing.assert_array_equal(before["hidden"], after["hidden"])


@pytest.mark.any_loop
def test_the_older_of_two_steps_can_be_resumed(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    config["max_head_offpolicyness"] = 5
    first = make_executor(**config)
    for step in range(3):
        take(first, player)
        first.commit(step)
    first.destroy()
    second, after = make_executor(resume_from=1, **config), Player()
    assert take(second, after) == [8, 9, 10, 11]
    assert not {8, 9, 10, 11} & set(after.played)
    second.commit(7)
    second.destroy()
    assert take(make_executor(resume_from=7, **config), player) == [12, 13, 14, 15]


@pytest.mark.any_loop
def test_passes_go_on_being_counted_and_each_items_comes_once_in_each(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    engine = TellingEngine()
    executor, given = make_executor(engine, **config), list[int | None]()
    for step in range(9):
        engine.set_version(step)
        given += take(executor, player, SHORT)
        executor.commit(step)
        executor.destroy()
        executor = make_executor(engine, resume_from=step, **config)
    assert executor.resumed is not None
    assert executor.resumed.epoch >= 2
    assert sorted(given, key=str) == sorted([*range(12)] * 3, key=str)


class Unwritable:
    """What no journal can hold."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.mark.any_loop
def test_an_item_that_cannot_be_written_is_given_by_the_dataloader_again(
    make_executor: MakeExecutor, config: dict[str, Any], log_lines: LogLines
) -> None:
    played = []

    async def play(item: Unwritable) -> Any:
        played.append(item.number)
        return trajectory_of(item.number)

    def items() -> list[list[Unwritable]]:
        return [[Unwritable(number) for number in range(40)]]

    first = make_executor(Engine(version=1), **config)
    workflow = Playing(play)
    assert values_of(first.prepare_batch(items(), workflow)) == [0, 1, 2, 3]
    first.commit(0)
    assert values_of(first.prepare_batch(items(), workflow)) == [4, 5, 6, 7]
    first.destroy()
    played.clear()
    again = make_executor(Engine(version=1), resume_from=0, **config)
    assert values_of(again.prepare_batch(items(), workflow)) == [4, 5, 6, 7]
    assert not set(played) & {4, 5, 6, 7}, "the trajectories are there"
    again.destroy()
    late = make_executor(Engine(version=9), resume_from=0, **config)
    assert sorted(values_of(late.prepare_batch(items(), workflow)), key=str) == [4, 5, 6, 7]
    assert {4, 5, 6, 7} <= set(played), "the dataloader has given what was too old once more"
    assert "why=" in log_lines.wait_for("journal_left_out").message


@pytest.mark.any_loop
def test_the_dataloader_begins_with_the_pass_of_the_first_item_it_has_to_give_again(
    make_executor: MakeExecutor, config: dict[str, Any]
) -> None:
    async def play(item: Unwritable) -> Any:
        return trajectory_of(item.number)

    items = [[Unwritable(number) for number in range(6)]]
    first = make_executor(**config)
    assert values_of(first.prepare_batch(items, Playing(play))) == [0, 1, 2, 3]
    first.pause()
    first.commit(0)
    first.destroy()
    second = make_executor(Engine(version=9), resume_from=0, **config)
    assert second.resumed is not None
    assert second.resumed.epoch == 0
    assert values_of(second.prepare_batch(items, Playing(play))) == [4, 5, 0, 1]


@pytest.mark.any_loop
def test_a_trajectory_that_cannot_be_written_is_played_again_unless_it_was_committed(
    make_executor: MakeExecutor, config: dict[str, Any]
) -> None:
    async def play(number: int) -> Any:
        return {**trajectory_of(number), "picture": object()}

    first = make_executor(**config)
    assert values_of(first.prepare_batch(ITEMS, Playing(play))) == [0, 1, 2, 3]
    first.commit(0)
    assert values_of(first.prepare_batch(ITEMS, Playing(play))) == [4, 5, 6, 7]
    first.destroy()
    second, player = make_executor(resume_from=0, **config), Player()
    assert take(second, player) == [4, 5, 6, 7]
    assert {4, 5, 6, 7} <= set(player.played)


@pytest.mark.any_loop
def test_a_ctrl_c_at_any_step_of_a_batch_loses_nothing_to_a_commit(
    make_executor: MakeExecutor, config: dict[str, Any], tmp_path: Path
) -> None:
    config["max_head_offpolicyness"] = 5

    def survives(step: int) -> bool:
        """Interrupt a batch there, commit, go on, and see that all are given once; False past its end."""
        here = {**config, "journal_dir": tmp_path / str(step)}
        first, player, given = make_executor(**here), Player(), list[int | None]()
        hit = interrupt(lambda: given.extend(take(first, player)), step)
        turn_loop(first.runner)  # what was interrupted may still be taken back
        first.commit(0)
        first.destroy()
        if not hit.noticed:  # or in the line that was to keep the batch
            return False
        second = make_executor(resume_from=0, **here)
        while len(given) < 8:
            given += take(second, player)
        second.destroy()
        assert sorted(given, key=str) == list(range(8)), hit.where
        return True

    step = 0
    while survives(step):
        step += 61  # a prime; all steps of the whole call would take minutes
    for last in range(step - 60, step):  # where it is told that the batch has come to its caller
        survives(last)
    assert step > 300


def test_a_commit_is_of_a_greater_step_each_time_and_the_same_one_may_be_tried_again(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player, directory: Path
) -> None:
    executor = make_executor(**config)
    take(executor, player)
    executor.commit(3)
    executor.commit(3)
    with pytest.raises(ValueError, match="step=2 is not above 3"):
        executor.commit(2)
    take(executor, player)
    with pytest.raises(
        ValueError,
        match="step=3 is not above 3, which was committed up to mark 4; give up_to=4 to try that again, or a "
        "greater step",
    ):
        executor.commit(3)
    executor.commit(3, up_to=4)
    for other in (3, 8):
        with pytest.raises(ValueError, match="step=3 is not above 3, which was committed up to mark 4"):
            executor.commit(3, up_to=other)
    executor.commit(4)
    executor.destroy()
    assert resumable_steps(directory) == [3, 4]


@pytest.mark.any_loop
def test_a_commit_up_to_a_mark_may_be_tried_again_after_more_was_given(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(**config)
    take(executor, player)
    mark = executor.mark()
    assert take(executor, player) == [4, 5, 6, 7]
    monkeypatch.setattr(crash_points, "hook", _refuse)
    with pytest.raises(JournalError, match="disk is full"):
        executor.commit(0, up_to=mark)
    monkeypatch.setattr(crash_points, "hook", None)
    for _ in range(2):
        executor.commit(0, up_to=mark)
    executor.destroy()
    assert take(make_executor(resume_from=0, **config), player) == [4, 5, 6, 7]


@pytest.mark.any_loop
def test_a_commit_may_be_tried_again_after_a_batch_that_came_back(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(**config)
    take(executor, player)
    executor.commit(0)

    def interrupted(*_: object) -> None:
        assert executor.mark() == 8
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ids, "hand_out", interrupted)  # the journal was told that the batch is delivered
        with pytest.raises(KeyboardInterrupt):
            take(executor, player)
    executor.commit(0)
    assert take(executor, player) == [4, 5, 6, 7]


@pytest.mark.any_loop
def test_where_nothing_can_be_committed_it_says_so(
    make_executor: MakeExecutor, config: dict[str, Any], directory: Path
) -> None:
    without = make_executor()
    assert without.resumed is None
    with pytest.raises(ValueError, match=r"commit\(\): there is no journal; give config\.journal_dir"):
        without.commit(1)
    assert resumable_steps(directory) == []
    executor = make_executor(**config)
    for step, error in ((True, TypeError), ("1", TypeError), (-1, ValueError)):
        with pytest.raises(error, match="step="):
            executor.commit(step)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="loop thread"):
        executor.runner.run(_commit, executor)
    assert resumable_steps(directory / "other") == []
    assert not (directory / "other").exists()
    with pytest.raises(ValueError, match="journal_dir='' names no directory"):
        InferenceEngineConfig(journal_dir="")
    executor.destroy()
    with pytest.raises(RunnerStoppedError, match="its journal is closed"):
        executor.commit(1)


@pytest.mark.any_loop
def test_what_cannot_be_resumed_is_refused_and_nothing_is_left_open(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    with pytest.raises(ValueError, match=r"resume_from=3, and there is no journal"):
        WorkflowExecutor(InferenceEngineConfig(), Engine(), resume_from=3)
    with pytest.raises(JournalError, match="no step was committed: give resume_from=None"):
        make_executor(resume_from=0, **config)
    first = make_executor(**config)
    with pytest.raises(JournalError, match="is in use by this process"):
        make_executor(**config)
    take(first, player)
    first.commit(0)
    first.destroy()
    with pytest.raises(JournalError, match=r"give resume_from one of \[0\]"):
        make_executor(**config)
    assert take(make_executor(resume_from=0, **config), player) == [4, 5, 6, 7]


def test_initialized_again_it_goes_on_from_its_last_commit(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    executor = make_executor(**config)
    assert take(executor, player) == [0, 1, 2, 3]
    executor.commit(0)
    assert take(executor, player) == [4, 5, 6, 7]
    executor.destroy()
    executor.initialize()
    assert take(executor, player) == [4, 5, 6, 7]
    assert take(executor, player) == [8, 9, 10, 11]
    balance(executor.ledger)


@pytest.mark.any_loop
def test_a_commit_that_the_disk_refuses_is_an_error_and_can_be_made_again(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(**config)
    take(executor, player)
    monkeypatch.setattr(crash_points, "hook", _refuse)
    with pytest.raises(JournalError, match="disk is full"):
        executor.commit(0)
    monkeypatch.setattr(crash_points, "hook", None)
    executor.commit(0)
    executor.destroy()
    assert take(make_executor(resume_from=0, **config), player) == [4, 5, 6, 7]


@pytest.mark.any_loop
def test_after_a_commit_that_failed_it_begins_again_at_the_one_before(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(**config)
    take(executor, player)
    executor.commit(0)
    monkeypatch.setattr(crash_points, "hook", _refuse)
    with pytest.raises(JournalError, match="disk is full"):
        executor.commit(1)
    executor.destroy(timeout=2.0)
    monkeypatch.setattr(crash_points, "hook", None)
    executor.initialize()
    assert executor.resumed is not None
    assert executor.resumed.step == 0
    assert take(executor, player) == [4, 5, 6, 7]


class SlowDisk:
    """A disk on which a transaction hangs until it is `free`; to be given as the hook of crash points."""

    def __init__(self) -> None:
        self.hangs, self.free = threading.Event(), threading.Event()

    def __call__(self, point: str) -> None:
        if point == "before_fsync":
            self.hangs.set()
            assert self.free.wait(30)


@pytest.mark.any_loop
def test_initialized_again_it_goes_on_from_a_commit_that_destroy_did_not_wait_for(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, disk = make_executor(**config), SlowDisk()
    take(executor, player)
    executor.commit(0)
    assert take(executor, player) == [4, 5, 6, 7]
    monkeypatch.setattr(crash_points, "hook", disk)
    with pytest.raises(TimeoutError):
        executor.commit(1, timeout=0.01)
    assert disk.hangs.wait(30)
    executor.destroy(timeout=0.2)
    monkeypatch.setattr("areal_core._journal.lock.time.sleep", lambda _: disk.free.set())
    executor.initialize()
    assert executor.resumed is not None and executor.resumed.step == 1
    assert take(executor, player) == [8, 9, 10, 11]
    executor.commit(2)


@pytest.mark.any_loop
def test_while_the_disk_hangs_it_cannot_be_initialized_again_and_says_why(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, disk = make_executor(**config), SlowDisk()
    take(executor, player)
    monkeypatch.setattr(crash_points, "hook", disk)
    with pytest.raises(TimeoutError):
        executor.commit(0, timeout=0.01)
    assert disk.hangs.wait(30)
    executor.destroy(timeout=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(journaling, "_PATIENCE_S", 0.0)
        for _ in range(2):
            with pytest.raises(JournalError, match="still being written by the life before"):
                executor.initialize()
    disk.free.set()
    executor.initialize()
    assert executor.resumed is not None and executor.resumed.step == 0


ON_STALE = ["drop", "requeue", "keep", "mask"]


@pytest.mark.any_loop
@pytest.mark.parametrize("now", ON_STALE)
@pytest.mark.parametrize("then", ON_STALE)
def test_another_on_stale_than_the_run_before_had_gives_batches_of_one_kind(
    make_executor: MakeExecutor, config: dict[str, Any], then: str, now: str
) -> None:
    engine = Engine(version=3)

    async def play(data: int) -> Any:
        return trajectory_of(data, versions=[-1, engine.version - 1, engine.version], length=3)

    config.update(consumer_batch_size=2, max_head_offpolicyness=2)
    first = make_executor(engine, on_stale=then, **config)
    first.prepare_batch(ITEMS, Playing(play))
    turn_loop(first.runner, 50)
    first.destroy()
    engine.version = 5
    config.update(consumer_batch_size=4)
    second = make_executor(engine, on_stale=now, **config)
    assert second.resumed is not None and second.resumed.to_deliver == 6
    for _ in range(2):
        batch = second.prepare_batch(ITEMS, Playing(play))
        assert len({frozenset(one) for one in batch}) == 1
        for one in batch:
            assert "loss_mask" in one or now != "mask"
            if now == "mask":
                np.testing.assert_array_equal(one["loss_mask"], one["versions"] >= 3)


@pytest.mark.any_loop
def test_a_loss_mask_that_is_none_of_the_run_before_is_none(
    make_executor: MakeExecutor, config: dict[str, Any]
) -> None:
    engine = Engine(version=3)

    async def play(data: int) -> Any:
        return {**trajectory_of(data, versions=[-1, 3, 3], length=3), "loss_mask": None}

    config.update(consumer_batch_size=2, max_head_offpolicyness=2)
    first = make_executor(engine, on_stale="keep", **config)
    first.prepare_batch(ITEMS, Playing(play))
    first.destroy()
    second = make_executor(engine, on_stale="keep", **config)
    batch = second.prepare_batch(ITEMS, Playing(play))
    assert [one["loss_mask"] for one in batch] == [None, None]


@pytest.mark.any_loop
def test_a_torn_end_is_logged_by_who_finds_it(
    make_executor: MakeExecutor, config: dict[str, Any], log_lines: LogLines
) -> None:
    """Whoever opens it next does not find it any more, and the copy is there."""
    directory = Path(config["journal_dir"])
    paths = [directory / "journal.sqlite", directory / "journal.sqlite-wal"]
    first = make_executor(**config)
    first.commit(0)
    first.commit(1)
    database, log = [path.read_bytes() for path in paths]
    first.destroy()
    for look in (partial(resumable_steps, directory), partial(make_executor, resume_from=0, **config)):
        paths[0].write_bytes(database)
        paths[1].write_bytes(log[:-2_000] + bytes(2_000))
        look()
        assert str(directory / "journal.sqlite.torn-wal") in log_lines.wait_for("journal_torn_end").message
        log_lines.clear()


@pytest.mark.any_loop
@pytest.mark.parametrize("act", ["initialize", "resumable_steps"])
def test_a_ctrl_c_at_any_step_of_opening_leaves_the_directory_free(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player, directory: Path, act: str
) -> None:
    before = make_executor(**config)
    take(before, player)
    before.destroy()
    step, noticed = 0, 1
    while noticed:
        executor = WorkflowExecutor(InferenceEngineConfig(**config), Engine())
        call = executor.initialize if act == "initialize" else partial(resumable_steps, directory)
        noticed = interrupt(call, step).noticed
        executor.destroy()
        executor.initialize()  # or it raises that the directory is in use
        executor.destroy()
        step += 17
    for thread in threading.enumerate():
        if thread.name == "areal-journal-look" and thread.is_alive():  # it waits, though nobody waits for it
            thread.join(20.0)
    assert step > 50


@pytest.mark.any_loop
def test_a_log_handler_may_look_at_the_executor_wherever_the_journal_logs(
    make_executor: MakeExecutor, config: dict[str, Any]
) -> None:
    looked = threading.Event()

    class Looking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "journal_left_out" in record.getMessage():
                thread = threading.Thread(target=lambda: executor.ledger)
                thread.start()
                thread.join()
                looked.set()

    async def play(number: int) -> Any:
        return {**trajectory_of(number), "picture": object()}

    handler = Looking()
    logging.getLogger("areal_core").addHandler(handler)
    try:
        executor = make_executor(**config)
        executor.prepare_batch(ITEMS, Playing(play))
        assert looked.wait(20.0)
    finally:
        logging.getLogger("areal_core").removeHandler(handler)


@pytest.mark.any_loop
def test_damage_is_told_and_survived(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player, directory: Path, log_lines: LogLines
) -> None:
    first = make_executor(**config)
    take(first, player)
    first.commit(0)
    take(first, player)
    first.destroy()
    path = directory / "journal.sqlite"
    torn = bytearray(path.read_bytes())
    torn[4096:4160] = b"\0" * 64
    path.write_bytes(torn)
    second = make_executor(resume_from=0, **config)
    assert second.resumed is not None
    assert second.resumed.damaged > 0
    assert [copy.parent for copy in second.resumed.kept_beside] == [directory]
    assert "kept_beside=" in log_lines.wait_for("journal_damaged").message
    assert not {0, 1, 2, 3} & {*take(second, player), *take(second, player)}


@pytest.mark.any_loop
def test_other_rollouts_are_not_in_the_journal(
    make_executor: MakeExecutor, config: dict[str, Any], player: Player
) -> None:
    first = make_executor(**config)
    first.submit(100, player.workflow)
    first.submit(101, player.workflow, is_eval=True)
    first.rollout_batch([102], player.workflow)
    first.wait(1, timeout=20.0)
    first.wait_outcomes(1, timeout=20.0, is_eval=True)
    first.destroy()
    second = make_executor(**config)
    assert second.resumed is not None
    assert (second.resumed.done, second.resumed.to_deliver, second.resumed.to_play) == (0, 0, 0)
