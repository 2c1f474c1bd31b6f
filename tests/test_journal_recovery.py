"""What a journal has of an earlier run, made into rollouts, without an executor."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from areal_core import journal
from areal_core._executor.recovery import Recovery, packed_if_large
from areal_core._executor.rollout import LOST, Episode, Lane, Plan, Rollout
from areal_core._journal.keys import Keys
from areal_core._journal.packing import pack, unpack
from areal_core._journal.records import Finished, Pending, Recovered
from areal_core._record import EpisodeRecord
from areal_core.errors import JournalError
from executor_tools import answering, trajectory_of, value_of

PLAN = Plan(answering, None, 1, False, False)
LARGE = 1 << 18
DAMAGED = b"no bytes of ours"
UNNAMED, NAMED = "an item", {"data_id": "q7"}


def recovery_of(*live: Finished | Pending, done: Keys | None = None) -> Recovery:
    finished = tuple(one for one in live if isinstance(one, Finished))
    pending = tuple(one for one in live if isinstance(one, Pending))
    return Recovery(Recovered(None, Keys() if done is None else done, finished, pending, 0), "of/mine")


def result_of(value: int, versions: int | None = None) -> bytes:
    trajectory = trajectory_of(value, versions=versions)
    return pack({"trajectory": trajectory, "start_version": 3, "seconds": 2.0})


def finished(key: str, data: Any, value: int = 0, versions: int | None = None) -> Finished:
    packed = None if data is LOST else pack(data)
    return Finished(key, 0, packed, result_of(value, versions), False)


def pending(key: str, data: Any) -> Pending:
    return Pending(key, 0, None if data is LOST else pack(data))


def rollouts_of(*live: Finished | Pending) -> tuple[list[Rollout], list[Rollout]]:
    return recovery_of(*live).rollouts(PLAN, itertools.count(5))


# -- a trajectory that is packed in a thread -------------------------------------------------------


def packed_of(**trajectory: Any) -> tuple[bytes | None, Episode]:
    rollout = PLAN.rollout(0, None, Lane.BATCH)
    rollout.start_version, rollout.started_at = 3, time.monotonic() - 2
    episode = Episode(rollout, 0, EpisodeRecord())
    return asyncio.run(packed_if_large(trajectory, episode)), episode


def test_a_large_trajectory_is_packed_with_all_that_is_known_of_it() -> None:
    packed, episode = packed_of(tokens=np.zeros(LARGE, np.int8), text="no array")
    assert packed is not None
    result = unpack(packed)
    assert result["trajectory"]["text"] == "no array"
    assert result["trajectory"]["tokens"].nbytes == LARGE
    assert result["start_version"] == 3
    assert 1 < result["seconds"] < 60
    assert episode.record.stage == "packing its trajectory for the journal"


def test_a_smaller_one_is_not() -> None:
    packed, episode = packed_of(tokens=np.zeros(LARGE - 1, np.int8), text="no array")
    assert packed is None
    assert episode.record.stage == "starting"


def test_one_that_cannot_be_packed_is_left_to_whoever_says_so() -> None:
    assert packed_of(tokens=np.zeros(LARGE, np.int8), other=object())[0] is None


# -- rollouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "data_id"), [(UNNAMED, "0:4"), (NAMED, "q7"), (LOST, "0:4")], ids=["unnamed", "named", "lost"]
)
def test_what_was_finished_is_as_if_it_had_just_ended(data: Any, data_id: str) -> None:
    (rollout,), _ = rollouts_of(finished("0:4", data, 9))
    outcome = rollout.outcome
    assert outcome is not None
    assert (rollout.data_id, outcome.data_id) == (data_id, data_id)
    assert (rollout.task_id, outcome.task_id) == (5, 5)
    assert (rollout.start_version, outcome.start_version) == (3, 3)
    assert rollout.data is LOST if data is LOST else rollout.data == data
    assert rollout.is_journaled is (data is not LOST)
    assert value_of(outcome.trajectory) == 9
    assert outcome.seconds == pytest.approx(2)


@pytest.mark.parametrize(("versions", "origin"), [(None, 3), (1, 1)])
def test_it_is_as_old_as_its_oldest_token_or_as_its_start(versions: int | None, origin: int) -> None:
    (rollout,), _ = rollouts_of(finished("0:4", UNNAMED, versions=versions))
    assert rollout.outcome is not None
    assert rollout.outcome.origin == origin


def test_what_was_finished_comes_in_its_order_before_all_that_starts() -> None:
    given, _ = rollouts_of(finished("0:4", UNNAMED), finished("0:2", UNNAMED))
    assert [(one.key, one.start_order) for one in given] == [("0:4", -2), ("0:2", -1)]


@pytest.mark.parametrize(("data", "data_id"), [(UNNAMED, "0:4"), (NAMED, "q7")], ids=["unnamed", "named"])
def test_what_was_in_flight_is_to_be_played_and_not_to_be_written_again(data: Any, data_id: str) -> None:
    _, (rollout,) = rollouts_of(pending("0:4", data))
    assert (rollout.data, rollout.data_id, rollout.key, rollout.is_journaled) == (data, data_id, "0:4", True)


@pytest.mark.parametrize(
    "one",
    [
        Finished("0:4", 0, DAMAGED, result_of(0), False),
        Finished("0:4", 0, pack(UNNAMED), DAMAGED, False),
        Pending("0:4", 0, DAMAGED),
    ],
    ids=["finished item", "trajectory", "pending item"],
)
def test_what_cannot_be_unpacked_is_said_to_be_so_by_its_key(one: Finished | Pending) -> None:
    said = "item 0:4 in the journal in of/mine cannot be read: these bytes are damaged"
    with pytest.raises(JournalError, match=said):
        recovery_of(one)


# -- what the dataloader gives ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "data", "is_place"),
    [
        (pending("0:4", UNNAMED), UNNAMED, True),
        (pending("0:4", UNNAMED), object(), True),
        (pending("0:4", UNNAMED), "another", False),
        (finished("0:4", LOST), "another", True),
        (finished("0:4", UNNAMED), UNNAMED, True),
    ],
    ids=["the same", "nobody can say", "by its own id", "lost", "finished"],
)
def test_what_an_earlier_run_has_is_not_played_again(known: Pending, data: Any, is_place: bool) -> None:
    recovery = recovery_of(known)
    assert recovery.new_key("0:4", recovery.pack(data), is_place=is_place) is None
    assert recovery.strangers == 0


def test_of_what_was_in_flight_what_is_lost_is_given_by_the_dataloader_again() -> None:
    recovery = recovery_of(pending("0:3", UNNAMED), pending("0:4", LOST))
    assert recovery.new_key("0:4", pack("another"), is_place=True) == "0:4"
    assert recovery.new_key("0:3", pack(UNNAMED), is_place=True) is None


def test_another_item_at_a_known_place_is_told_from_all_that_were_there() -> None:
    recovery = recovery_of(pending("0:4", "first"), pending("0:4+", "second"), pending("0:5", "one"))
    assert recovery.new_key("0:4", pack("third"), is_place=True) == "0:4++"
    assert recovery.new_key("0:4", pack("second"), is_place=True) is None


def test_items_at_places_of_others_are_counted() -> None:
    recovery = recovery_of(pending("0:4", "first"), pending("0:5", "second"))
    assert recovery.new_key("0:4", pack("another"), is_place=True) == "0:4+"
    assert recovery.strangers == 1
    assert recovery.new_key("0:5", pack("another"), is_place=True) == "0:5+"
    assert recovery.strangers == 2


def test_what_was_done_in_passes_that_are_over_is_counted_and_forgotten() -> None:
    done = Keys(["0:0", "0:'q7'", "1:0"])
    recovery = recovery_of(done=done)
    assert (recovery.resumed.epoch, recovery.resumed.done) == (1, 3)
    assert list(done) == ["1:0"]
    assert recovery.new_key("1:0", None, is_place=True) is None


# -- the module for trainers -----------------------------------------------------------------------


def test_the_public_module_names_what_is_for_callers() -> None:
    assert journal.__all__ == ["Resumed", "resumable_steps"]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_directory_without_a_journal_has_no_steps(directory: Path, kind: type[str | Path]) -> None:
    assert journal.resumable_steps(kind(directory)) == []
