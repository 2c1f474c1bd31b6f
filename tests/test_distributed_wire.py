"""What a worker tells, on its way: it arrives as it was, or as an error that says what could not."""

from __future__ import annotations

import asyncio
import functools
import pickle
import threading
from typing import Any

import numpy as np
import pytest

from areal_core._distributed.leases import Ended, Report
from areal_core._distributed.wire import HELD, InTurn, Orders, decode, encode, ship, text_of, unship
from areal_core._executor.freshness import Ages
from areal_core._executor.rollout import Verdict
from areal_core.errors import RemoteError

pytestmark = pytest.mark.any_loop

dumps = functools.partial(pickle.dumps, protocol=pickle.HIGHEST_PROTOCOL)

FIGURES = (3, 7, 1.0, 2.0, 3.0)


class TwoWordsError(Exception):
    """Pickles, and cannot be made again from what was pickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class LockedError(Exception):
    """Has something that belongs to its process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class LeavingError(Exception):
    """Ends the process that reads it, if that lets it."""

    def __reduce__(self) -> Any:
        return _leave, ()


class ImpostorError(Exception):
    """Becomes something else on its way."""

    def __reduce__(self) -> Any:
        return str, ("no error",)


class MuteError(Exception):
    """Cannot say what it is, nor be pickled."""

    def __str__(self) -> str:
        raise ValueError

    def __reduce__(self) -> Any:
        raise SystemExit


class OddlyNotedError(Exception):
    """Has notes that are none."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        vars(self)["__notes__"] = "no list"


class ApiError(Exception):
    """Has what was answered as its attributes, and nothing else: not the notes that others ask for."""

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class TouchyError(Exception):
    """Ends the program that asks it for what it does not have."""

    def __getattr__(self, name: str) -> Any:
        raise SystemExit(name)


class LockedTouchyError(TouchyError, LockedError):
    """Does that, and has something that belongs to its process."""


class MuteTouchyError(TouchyError):
    """Cannot say what it is, nor what it is not."""

    def __str__(self) -> str:
        raise SystemExit


class Key(str):
    """Is a str, and cannot be pickled."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")


class LeavingKey(str):
    """Is a str, and ends the process that reads it, if that lets it."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return _leave, ()


class MuteKey(Key):
    """Cannot be shown either."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise ValueError


class Closed(dict[str, Any]):
    """Does not say what is in it."""

    def items(self) -> Any:
        raise KeyError("closed")


class Leaving:
    """A value that ends the process that reads it, if that lets it."""

    def __reduce__(self) -> Any:
        return _leave, ()


def _leave() -> None:
    raise SystemExit("leaving")


def an_end(verdict: Verdict | None = None, error: BaseException | None = None, **fields: Any) -> Ended:
    told = {"timed_out": False, "seconds": 1.5, "figures": FIGURES, **fields}
    return Ended(7, 0, verdict, error, **told)


def sent(*ended: Ended, **report: Any) -> Report:
    """Return what comes of a report of *ended* on its way through a pickle, as Ray sends it."""
    told = {"returned": [], "stages": [], "stalled_s": 0.0, **report}
    return unship(pickle.loads(pickle.dumps(ship(ended, dumps=dumps, **told))), pickle.loads)


def sent_error(error: BaseException) -> BaseException:
    (came,) = sent(an_end(error=_raised(error))).ended
    assert came.verdict is None and came.error is not None
    return came.error


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def notes_of(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


# -- what ended ------------------------------------------------------------------------------------


def test_a_report_arrives_as_it_was() -> None:
    stage = (7, 0, ("playing its workflow", None, 0.5, 1, 2))
    brought = {"rewards": np.array([1.0]), "words": ["a"], "late": np.arange(3).astype(">i4")}
    report = sent(
        an_end(Verdict(brought, ages=Ages(1, 2, 3))),
        an_end(Verdict(None, "should_accept_fn said no"), seconds=0.5),
        an_end(Verdict(HELD)),
        an_end(error=TimeoutError("late"), timed_out=True),
        an_end(Verdict({"rewards": np.array([2.0])})),
        returned=[(8, 1)],
        stages=[stage],
        stalled_s=4.0,
    )
    accepted, rejected, held, failed, last = report.ended
    assert accepted.verdict is not None and accepted.verdict.trajectory is not None
    assert accepted.verdict.ages == Ages(1, 2, 3)
    assert set(accepted.verdict.trajectory) == set(brought)
    assert accepted.verdict.trajectory["rewards"].tolist() == [1.0]
    assert accepted.verdict.trajectory["words"] == ["a"]
    assert accepted.verdict.trajectory["late"].dtype == np.dtype(">i4")
    assert (accepted.parcel, accepted.sample_idx, accepted.seconds, accepted.figures) == (7, 0, 1.5, FIGURES)
    assert rejected.verdict is not None and rejected.verdict.trajectory is None
    assert (rejected.verdict.reason, rejected.seconds) == ("should_accept_fn said no", 0.5)
    assert held.verdict is not None and held.verdict.trajectory == {}, "it is there, though not here"
    assert (repr(failed.error), failed.timed_out) == ("TimeoutError('late')", True)
    assert last.verdict is not None and last.verdict.trajectory is not None
    assert last.verdict.trajectory["rewards"].tolist() == [2.0] and last.verdict.ages == Ages()
    assert not any(one.timed_out for one in (accepted, rejected, held, last))
    assert (report.returned, report.stages, report.stalled_s) == ([(8, 1)], [stage], 4.0)


def test_a_trajectory_without_anything_is_one_all_the_same() -> None:
    (came,) = sent(an_end(Verdict({}))).ended
    assert came.verdict is not None and came.verdict.trajectory == {} and came.error is None


def test_a_value_that_cannot_be_sent_fails_its_episode_alone() -> None:
    odd = {"rewards": np.array([1.0]), "a lock": threading.Lock(), "words": "a"}
    failed, fine = sent(an_end(Verdict(odd)), an_end(Verdict({"rewards": np.array([2.0])}))).ended
    assert failed.verdict is None and isinstance(failed.error, TypeError)
    assert "'a lock', 'words'" in str(failed.error) and "cannot pickle '_thread.lock'" in str(failed.error)
    assert fine.verdict is not None and fine.verdict.trajectory is not None
    assert fine.verdict.trajectory["rewards"].tolist() == [2.0]


def test_a_value_that_cannot_be_read_here_fails_its_episode_alone() -> None:
    odd = {"rewards": np.array([1.0]), "odd": Leaving()}
    failed, fine = sent(an_end(Verdict(odd)), an_end(Verdict({"rewards": np.array([2.0])}))).ended
    assert failed.verdict is None and isinstance(failed.error, RemoteError)
    assert "SystemExit: leaving" in str(failed.error)
    assert fine.verdict is not None and fine.verdict.trajectory is not None
    assert fine.verdict.trajectory["rewards"].tolist() == [2.0]


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({Key("z"): 1.0}, "returned 'z', which cannot be sent to the trainer (TypeError: not to be pickled)"),
        ({MuteKey("z"): 1.0}, "returned <a MuteKey whose repr raises ValueError>, which cannot be sent"),
        ({LeavingKey("z"): 1.0}, "cannot be read in the trainer's process (SystemExit: leaving)"),
    ],
    ids=["not pickled", "nor shown", "not made again"],
)
def test_a_name_that_cannot_be_sent_or_read_fails_its_episode_alone(odd: dict[Any, Any], told: str) -> None:
    trajectory = {"rewards": np.array([1.0]), **{name: np.array([value]) for name, value in odd.items()}}
    failed, fine = sent(an_end(Verdict(trajectory)), an_end(Verdict({"rewards": np.array([2.0])}))).ended
    assert failed.verdict is None and failed.error is not None and told in str(failed.error)
    assert fine.verdict is not None and fine.verdict.trajectory is not None
    assert fine.verdict.trajectory["rewards"].tolist() == [2.0]


def test_a_trajectory_that_does_not_say_what_is_in_it_fails_its_episode_alone() -> None:
    failed, fine = sent(an_end(Verdict(Closed())), an_end(Verdict({"rewards": np.array([2.0])}))).ended
    assert failed.verdict is None and isinstance(failed.error, RemoteError)
    assert "what the workflow returned cannot be sent to the trainer (KeyError: 'closed')" in str(
        failed.error
    )
    assert fine.verdict is not None and fine.verdict.trajectory is not None
    assert fine.verdict.trajectory["rewards"].tolist() == [2.0]


def test_a_name_that_is_no_str_arrives_as_it_was() -> None:
    brought: dict[Any, Any] = {7: np.array([1.0]), "rewards": np.array([2.0])}
    (came,) = sent(an_end(Verdict(brought))).ended
    assert came.verdict is not None and came.verdict.trajectory is not None
    assert {name: value.tolist() for name, value in came.verdict.trajectory.items()} == {
        "rewards": [2.0],
        7: [1.0],
    }


# -- errors ----------------------------------------------------------------------------------------


def test_an_error_arrives_with_its_notes_and_its_traceback_as_one() -> None:
    error = ValueError("no", 7)
    error.add_note("of the workflow's own")
    came = sent_error(error)
    assert type(came) is ValueError and came.args == ("no", 7)
    assert notes_of(came).startswith("of the workflow's own\nAt its worker:\n  File ")
    assert "in _raised\n    raise error" in notes_of(came)


def test_an_error_that_was_not_raised_has_no_note() -> None:
    (came,) = sent(an_end(error=asyncio.CancelledError("before it started"))).ended
    assert isinstance(came.error, asyncio.CancelledError) and not notes_of(came.error)


def test_the_causes_of_an_error_are_in_its_note() -> None:
    error = ValueError("no")
    error.__cause__ = _raised(KeyError("why"))
    assert "KeyError: 'why'\n\nThe above exception was the direct cause" in notes_of(sent_error(error))
    timeout = TimeoutError("late")
    timeout.__context__ = _raised(asyncio.CancelledError())
    (came,) = sent(an_end(error=timeout, timed_out=True)).ended
    assert came.error is not None and "in _raised\n    raise error" in notes_of(came.error)


def test_a_cause_that_is_hidden_is_not_told() -> None:
    error = ValueError("no")
    error.__context__, error.__suppress_context__ = _raised(KeyError("why")), True
    assert "why" not in notes_of(sent_error(error))
    assert "ValueError" not in notes_of(sent_error(error)), "the error says that itself"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (LockedError("mine"), "test_distributed_wire.LockedError: mine"),
        (TwoWordsError("one", "two"), "test_distributed_wire.TwoWordsError: one two"),
        (LeavingError("bye"), "test_distributed_wire.LeavingError: bye"),
        (ImpostorError("who"), "test_distributed_wire.ImpostorError: who"),
        (MuteError(), "test_distributed_wire.MuteError: <exception str() failed>"),
        (LockedTouchyError("busy"), "LockedTouchyError: busy"),
    ],
    ids=["not pickled", "not made again", "leaves", "no error", "says nothing", "not asked"],
)
def test_an_error_that_cannot_be_sent_arrives_as_its_text(error: Exception, text: str) -> None:
    came = sent_error(error)
    assert type(came) is RemoteError and str(came) == text
    assert "in _raised\n    raise error" in notes_of(came)


def test_an_error_whose_notes_are_its_own_arrives_without_ours() -> None:
    came = sent_error(OddlyNotedError("odd"))
    assert type(came) is OddlyNotedError and came.args == ("odd",)


@pytest.mark.parametrize("kind", [ApiError, TouchyError])
def test_an_error_that_cannot_be_asked_for_notes_arrives_without_ours(kind: type[Exception]) -> None:
    came = sent_error(kind("busy"))
    assert type(came) is kind and came.args == ("busy",)


def test_an_error_of_syntax_in_what_is_no_text_arrives_as_it_was() -> None:
    where: Any = ("reply", 1, 1, {"n": 3})
    came = sent_error(SyntaxError("bad reply", where))
    assert type(came) is SyntaxError and came.args == ("bad reply", where)
    assert "in _raised\n    raise error" in notes_of(came)


def test_an_error_of_which_nothing_can_be_said_has_its_name_as_its_text() -> None:
    assert text_of(MuteTouchyError()) == "MuteTouchyError (its str raises)"
    assert text_of(TouchyError("busy")) == "TouchyError: busy"


def test_an_error_whose_cause_cannot_be_told_is_told_without_it() -> None:
    error = ValueError("no")
    error.__cause__ = _raised(TouchyError("busy"))
    told = notes_of(sent_error(error))
    assert "in _raised\n    raise error" in told and "busy" not in told


def test_errors_that_end_programs_arrive_like_others() -> None:
    for error in (SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError("told to")):
        came = sent_error(error)
        assert type(came) is type(error) and came.args == error.args


# -- orders ----------------------------------------------------------------------------------------


def test_orders_arrive_as_they_were() -> None:
    orders = Orders(
        3, 7, True, False, True, {1: b"plan"}, [(4, b"head", [0, 1]), (5, None, [-1])], [(4, 0)], [2]
    )
    assert decode(encode(orders)) == orders
    nothing = Orders(1, 0, False, False)
    assert decode(encode(nothing)) == nothing


def test_reports_are_read_in_the_order_in_which_they_were_made() -> None:
    reports, read = InTurn(), list[int]()
    for number in (1, 0, 2, 5, 4, 3):
        read += [one.number for one in reports.take(sent(number=number))]
        read.append(-1)
    assert read == [-1, 0, 1, -1, 2, -1, -1, -1, 3, 4, 5, -1]


def test_who_raises_over_a_report_keeps_no_other_from_being_read() -> None:
    reports = InTurn()
    reading = reports.take(sent(number=0))
    assert next(reading).number == 0  # and whoever reads it goes no further
    assert [one.number for one in reports.take(sent(number=1))] == [1]


def test_those_after_one_that_does_not_come_can_be_read_in_the_end() -> None:
    reports = InTurn()
    for number in (2, 3, 1):
        assert not list(reports.take(sent(number=number)))
    assert [one.number for one in reports.rest()] == [1, 2, 3]
    assert not reports.rest()
