"""What an executor writes into its journal, and what the next one finds there, without either."""

from __future__ import annotations

import gc
import itertools
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from areal_core._executor.ending import make
from areal_core._executor.journaling import Journaling, steps_in
from areal_core._executor.resumed import Resumed
from areal_core._executor.rollout import Lane, Plan, Rollout
from areal_core._journal import crash_points
from areal_core._journal.packing import pack
from areal_core._journal.records import Queued
from areal_core.errors import JournalError
from executor_tools import answering, trajectory_of

PLAN = Plan(answering, None, 1, False, False)

Lines = list[tuple[Any, Any, dict[str, Any]]]


@contextmanager
def a_journal(directory: Path, step: int | None = None) -> Iterator[Journaling]:
    journal = Journaling(directory, step, None)
    journal.open()
    try:
        yield journal
    finally:
        journal.close()


def found_in(directory: Path, step: int | None = None) -> tuple[int, int, int]:
    """Return how many items are done, are to be delivered, and are to be played, from *step* on."""
    with a_journal(directory, step) as journal:
        found: Resumed = journal.recovery.resumed
        return found.done, found.to_deliver, found.to_play


def a_rollout(number: int = 0, **fields: Any) -> Rollout:
    rollout = PLAN.rollout(number, {"number": number}, Lane.BATCH, key=f"0:{number}")
    for name, value in fields.items():
        setattr(rollout, name, value)
    return rollout


def end(journal: Journaling, rollout: Rollout, status: Any = "accepted") -> Rollout:
    """Have *rollout* be in flight, and end."""
    packed, rollout.packed = rollout.packed, None
    journal.enqueued(rollout)
    rollout.packed = packed
    trajectory = trajectory_of(rollout.task_id) if status == "accepted" else None
    rollout.outcome = make(rollout, 0.0, status, trajectory=trajectory)
    journal.ended(rollout)
    return rollout


def deliver_two(journal: Journaling) -> int:
    """Deliver two items, one after the other; return the mark between them."""
    first, second = (end(journal, a_rollout(number)) for number in range(2))
    journal.delivered([first])
    mark = journal.mark
    journal.delivered([second])
    return mark


def lines_of(journal: Journaling) -> Lines:
    lines: Lines = []
    journal.log = lambda level, event, **fields: lines.append((level, event, fields))
    return lines


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"requeues": 1}, {"losses": 1}, {"is_journaled": True}], ids=str)
def test_an_item_is_in_flight_from_its_first_start(tmp_path: Path, fields: dict[str, Any]) -> None:
    with a_journal(tmp_path) as journal:
        journal.enqueued(a_rollout(**fields))
    assert found_in(tmp_path) == (0, 0, 0 if fields else 1)


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize(("status", "found"), [("accepted", (0, 1, 0)), ("rejected", (1, 0, 0))])
def test_what_ended_is_found_as_it_was(
    tmp_path: Path, status: str, found: tuple[int, int, int], is_packed: bool
) -> None:
    with a_journal(tmp_path) as journal:
        rollout = a_rollout(3)
        if is_packed:
            result = {"trajectory": trajectory_of(3), "start_version": 0, "seconds": 1.0}
            rollout.packed = pack(result) if status == "accepted" else None
        end(journal, rollout, status)
        assert rollout.packed is None
    assert found_in(tmp_path) == found
    with a_journal(tmp_path) as journal:
        finished, _ = journal.recovery.rollouts(PLAN, itertools.count())
        for one in finished:
            assert one.key == "0:3" and one.outcome is not None and one.outcome.trajectory is not None
            assert one.outcome.trajectory["input_ids"].tolist() == [[3]]


def test_what_was_delivered_after_a_mark_belongs_to_the_next_commit(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal:
        mark = deliver_two(journal)
        journal.commit(1, mark).wait(30.0)
        journal.commit(2, None).wait(30.0)
    assert found_in(tmp_path, 1) == (1, 1, 0)
    assert found_in(tmp_path, 2) == (2, 0, 0)


def test_a_step_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal:
        mark = deliver_two(journal)
        journal.commit(5, mark).wait(30.0)
        with pytest.raises(ValueError, match="4"):
            journal.commit(4, mark)
        journal.commit(6, None).wait(30.0)
    assert found_in(tmp_path, 6) == (2, 0, 0)


def test_a_kill_may_come_between_the_batch_and_the_note_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_journal(tmp_path) as journal:
        passed: list[tuple[str, int]] = []
        rollouts = [end(journal, a_rollout(0)), end(journal, a_rollout(1), "rejected")]
        journal.writer.flush(30.0)
        monkeypatch.setattr(crash_points, "hook", lambda name: passed.append((name, journal.mark)))
        journal.delivered(rollouts[1:])
        assert passed == []
        journal.delivered(rollouts)
        assert passed[0] == ("after_delivery", 0)


def test_what_came_back_is_in_no_checkpoint(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal:
        rollout = end(journal, a_rollout())
        journal.delivered([rollout])
        journal.came_back([rollout])
        journal.commit(1, None).wait(30.0)
    assert found_in(tmp_path, 1) == (0, 1, 0)


def test_the_step_that_it_goes_on_from_is_only_waited_for(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal:
        journal.commit(5, None).wait(30.0)
    with a_journal(tmp_path, 5) as journal:
        journal.commit(5, None).wait(30.0)


# -- what is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["nothing", "done", "to_deliver", "to_play"])
def test_what_was_found_is_told_if_there_is_something(tmp_path: Path, there: str) -> None:
    with a_journal(tmp_path) as journal:
        if there == "to_play":
            journal.enqueued(a_rollout())
        elif there != "nothing":
            end(journal, a_rollout(), "accepted" if there == "to_deliver" else "rejected")
    with a_journal(tmp_path) as journal:
        lines = lines_of(journal)
        journal.say_what_was_found()
        if there == "nothing":
            assert lines == []
        else:
            [(level, event, fields)] = lines
            assert (level, event, fields[there]) == ("info", "journal_resumed", 1)


def test_other_items_at_known_places_are_told_of_once(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal:
        journal.recovery.strangers = 2
        journal.say_strangers()  # to nobody, so far
        lines = lines_of(journal)
        journal.say_strangers()
        assert lines == []
        journal.recovery.strangers = 1
        journal.say_strangers()
        journal.say_strangers()
        [(level, event, fields)] = lines
        assert (level, event) == ("warning", "journal_other_items")
        assert fields["why"].startswith("the dataloader gives other items at places")
        assert fields["remedy"] == "give items a data_id, or the same order in each run"


def test_what_cannot_be_read_is_said_to_be_in_that_directory(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal:
        journal.writer.put(Queued("0:1", 0, b"no bytes of ours"))
    with pytest.raises(
        JournalError, match=f"^item 0:1 in the journal in {re.escape(str(tmp_path))} cannot be read"
    ):
        Journaling(tmp_path, None, None).open()


# -- opening and closing ---------------------------------------------------------------------------


def test_one_that_was_closed_before_it_was_opened_stays_closed(tmp_path: Path) -> None:
    early = Journaling(tmp_path, None, None)
    early.close()
    early.open()
    with a_journal(tmp_path):
        pass


def test_to_ask_for_its_steps_leaves_the_journal_free(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal:
        journal.commit(3, None).wait(30.0)
    assert steps_in(tmp_path) == [3]
    with a_journal(tmp_path, 3):
        pass


def test_the_life_before_is_let_go_when_its_journal_is_open_again(tmp_path: Path) -> None:
    before = Journaling(tmp_path, None, None)
    before.open()
    before.close()
    journal = Journaling(tmp_path, None, None, before)
    journal.open()
    ref = weakref.ref(before)
    del before
    gc.collect()
    assert ref() is None
    journal.close()
