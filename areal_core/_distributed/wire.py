"""What goes to and fro between the driver and a worker, a batch at a time."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from areal_core._distributed.leases import Ended, Report
from areal_core._distributed.packing import Packed, Parts, apart, pack, unpack
from areal_core._executor.freshness import Ages
from areal_core._executor.rollout import Verdict
from areal_core._log import describe
from areal_core._log import text_of as shown
from areal_core.errors import RemoteError

EndedHere = Ended
"""At the worker; its parcel is a number, its error the exception itself."""

MOST_PLANS = 128
"""How many plans a worker knows, the last that were made; what is sent needs no other."""

HELD: dict[str, Any] = {}
"""Stands for what a member of a group brought, which stays at its worker for the judge."""

Head = tuple[int, int, Any, int, Any]
"""Of a parcel: plan, task id, data id, version at its start, data."""


class Orders(Struct):
    """What a worker is to do."""

    number: int
    """The newest of several tells of version and pause."""
    version: int
    is_paused: bool
    """Whether nothing is to begin."""
    holds_generation: bool
    """Whether no request for tokens is to be sent."""
    takes_back: bool = False
    """Whether what has not begun is to be handed back."""
    plans: dict[int, bytes] = {}
    """Those that it does not know yet, pickled."""
    give: list[tuple[int, bytes | None, list[int]]] = []
    """Parcel, its head where it is new there, and the places in its group of those to be played. Each head is
    pickled by itself: one that cannot be read is no harm to others."""
    cancel: list[tuple[int, int]] = []
    forget: list[int] = []


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Orders).decode


Row = tuple[int, int, float, tuple[Any, ...], int, Any, bool]
"""Parcel, place, seconds, figures, what it is, what goes with that, and whether it timed out."""

_TRAJECTORY, _REJECTED, _ERROR = range(3)

Shipment = tuple[list[Row], Packed, list[tuple[int, int]], list[tuple[int, int, tuple[Any, ...]]], float, int]
"""A report, as it travels."""


def ship(
    ended: Sequence[EndedHere],
    returned: list[tuple[int, int]],
    stages: list[tuple[int, int, tuple[Any, ...]]],
    stalled_s: float,
    dumps: Callable[[Any], bytes],
    number: int = 0,
) -> Shipment:
    """Return a report of that, to be sent; *dumps* pickles errors. What cannot be sent fails alone."""
    rows: list[Row] = []
    trajectories: list[Parts] = []
    for one in ended:
        try:
            what, with_it = _told(one, trajectories, dumps)
        except BaseException as error:  # of the user's code, which may do anything
            what, with_it = _ERROR, (None, f"what the workflow returned {_cannot_be_sent(error)}", "")
        rows.append((one.parcel, one.sample_idx, one.seconds, one.figures, what, with_it, one.timed_out))
    return rows, pack(trajectories), returned, stages, stalled_s, number


def unship(shipment: Shipment, loads: Callable[[bytes], Any]) -> Report:
    """Return the report that was sent. What cannot be read fails alone."""
    rows, packed, returned, stages, stalled_s, number = shipment
    trajectories = unpack(packed)
    ended = []
    for parcel, place, seconds, figures, what, with_it, timed_out in rows:
        verdict: Verdict | None = None
        error: BaseException | None = None
        try:
            if what == _TRAJECTORY:
                verdict = _verdict(next(trajectories), with_it, loads)
            elif what == _REJECTED:
                verdict = Verdict(None, with_it)
            else:
                error = load_error(with_it, loads)
        except BaseException as odd:  # of the user's code, which may do anything
            told = f"what the workflow returned cannot be read in the trainer's process ({text_of(odd)})"
            error = RemoteError(f"{told}; return what can be unpickled there")
        ended.append(Ended(parcel, place, verdict, error, timed_out, seconds, figures))
    return Report(ended, returned, stages, stalled_s, number)


class InTurn:
    """The reports of one worker in the order in which it made them: a later one may come sooner."""

    def __init__(self) -> None:
        self._next = 0
        self._early: dict[int, Report] = {}

    def take(self, report: Report) -> Iterator[Report]:
        """Take one that came, and yield those whose turn it is."""
        self._early[report.number] = report
        while self._next in self._early:
            one = self._early.pop(self._next)
            self._next += 1  # first: whoever reads it may raise
            yield one

    def rest(self) -> list[Report]:
        """Return those that wait for one that does not come any more."""
        return [self._early.pop(number) for number in sorted(self._early)]


def _told(one: EndedHere, trajectories: list[Parts], dumps: Callable[[Any], bytes]) -> tuple[int, Any]:
    """Return what *one* is, and what goes with that; add what it brings to *trajectories*."""
    verdict = one.verdict
    if verdict is None:
        return _ERROR, dump_error(one.error, dumps)
    if verdict.trajectory is None:
        return _REJECTED, verdict.reason
    parts = apart(verdict.trajectory)
    try:
        data = dumps(parts.rest) if parts.rest else None
    except BaseException as error:  # of the user's code, which may do anything
        names = ", ".join(map(shown, parts.rest))
        refused = f"beside arrays of numbers the workflow returned {names}, which {_cannot_be_sent(error)}"
        return _ERROR, dump_error(TypeError(refused), dumps)
    trajectories.append(parts)
    return _TRAJECTORY, (astuple(verdict.ages), data)


def _cannot_be_sent(error: BaseException) -> str:
    return f"cannot be sent to the trainer ({text_of(error)}); return what can be pickled"


def _verdict(
    arrays: dict[str, Any], with_it: tuple[tuple[Any, ...], bytes | None], loads: Callable[[bytes], Any]
) -> Verdict:
    ages, rest = with_it
    return Verdict(arrays if rest is None else {**arrays, **loads(rest)}, ages=Ages(*ages))


def dump_error(error: BaseException | None, dumps: Callable[[Any], bytes]) -> tuple[bytes | None, str, str]:
    """Return an error pickled, if it can be; its text; and where it was raised. Never raises."""
    assert error is not None
    data: bytes | None = None
    with contextlib.suppress(BaseException):  # of the user's code, which may do anything
        data = dumps(error)
    return data, text_of(error), _where(error)


def text_of(error: BaseException) -> str:
    """Return what *error* is and says, also where it cannot say it. Never raises."""
    try:
        return "".join(traceback.format_exception_only(error)).strip()
    except BaseException:  # its notes, or what a SyntaxError tells of the code, are not what they are to be
        return describe(error)


def _where(error: BaseException) -> str:
    """Return the traceback of *error*, with that of its causes, which do not travel. Never raises."""
    try:
        context = None if error.__suppress_context__ else error.__context__
        if error.__cause__ is not None or context is not None:
            return "".join(traceback.format_exception(error))
    except BaseException:  # see `text_of`
        pass
    try:
        return "".join(traceback.format_tb(error.__traceback__))
    except BaseException:
        return ""


def load_error(dumped: tuple[bytes | None, str, str], loads: Callable[[bytes], Any]) -> BaseException:
    """Return the error that was dumped, or one that has its text; with where it was raised as a note."""
    data, text, where = dumped
    error: BaseException | None = None
    if data is not None:
        with contextlib.suppress(BaseException):  # of the user's code, which may do anything
            loaded = loads(data)
            error = loaded if isinstance(loaded, BaseException) else None
    error = RemoteError(text) if error is None else error
    if where:
        with contextlib.suppress(BaseException):  # where it has notes of its own kind, or cannot be asked
            BaseException.add_note(error, f"At its worker:\n{where.rstrip()}")
    return error
