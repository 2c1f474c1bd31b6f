"""What goes to and fro between the driver and a worker, a batch at a time."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any, cast

from msgspec import Struct

from areal_core._distributed.leases import Ended, Report
from areal_core._distributed.packing import Packed, pack, unpack
from areal_core._executor.freshness import Ages
from areal_core._executor.rollout import Verdict
from areal_core._executor.work import Plan
from areal_core.errors import RemoteError

EndedHere = Ended
"""At the worker; its parcel is a number, its error the exception itself."""

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
    plans: dict[int, Plan] = {}
    """Those that it does not know yet."""
    dropped_plans: Sequence[int] = ()
    give: Sequence[tuple[int, Head | None, Sequence[int]]] = ()
    """Parcel, its head where it is new there, and the places in its group of those to be played."""
    cancel: Sequence[tuple[int, int]] = ()
    forget: Sequence[int] = ()


Row = tuple[int, int, float, tuple[Any, ...], int, Any, bool]
"""Parcel, place, seconds, figures, what it is, what goes with that, and whether it timed out."""

_TRAJECTORY, _REJECTED, _HELD, _ERROR = range(4)

Shipment = tuple[list[Row], Packed, list[tuple[int, int]], list[tuple[int, int, tuple[Any, ...]]], float]
"""A report, as it travels."""


def ship(
    ended: Sequence[EndedHere],
    returned: list[tuple[int, int]],
    stages: list[tuple[int, int, tuple[Any, ...]]],
    stalled_s: float,
    dumps: Callable[[Any], bytes],
) -> Shipment:
    """Return a report of that, to be sent; *dumps* pickles errors."""
    rows: list[Row] = []
    trajectories: list[dict[str, Any]] = []
    for one in ended:
        verdict, with_it = one.verdict, cast(Any, None)
        if verdict is None:
            what, with_it = _ERROR, _dumped(one.error, dumps)
        elif verdict.trajectory is None:
            what, with_it = _REJECTED, verdict.reason
        elif verdict.trajectory is HELD:
            what = _HELD
        else:
            what, with_it = _TRAJECTORY, tuple(verdict.ages)
            trajectories.append(verdict.trajectory)
        rows.append((one.parcel, one.sample_idx, one.seconds, one.figures, what, with_it, one.timed_out))
    return rows, pack(trajectories), returned, stages, stalled_s


def unship(shipment: Shipment, loads: Callable[[bytes], Any]) -> Report:
    """Return the report that was sent."""
    rows, packed, returned, stages, stalled_s = shipment
    trajectories = unpack(packed)
    ended = []
    for parcel, place, seconds, figures, what, with_it, timed_out in rows:
        verdict, error = None, None
        if what == _TRAJECTORY:
            verdict = Verdict(next(trajectories), ages=Ages(*with_it))
        elif what == _REJECTED:
            verdict = Verdict(None, with_it)
        elif what == _HELD:
            verdict = Verdict(HELD)
        else:
            error = _loaded(with_it, loads)
        ended.append(Ended(parcel, place, verdict, error, timed_out, seconds, figures))
    return Report(ended, returned, stages, stalled_s)


def _dumped(error: BaseException | None, dumps: Callable[[Any], bytes]) -> tuple[bytes | None, str, str]:
    """Return an error pickled, if it can be; its text; and where it was raised."""
    assert error is not None
    text = "".join(traceback.format_exception_only(error)).strip()
    try:
        return dumps(error), text, "".join(traceback.format_tb(error.__traceback__))
    except Exception:
        return None, text, "".join(traceback.format_tb(error.__traceback__))


def _loaded(dumped: tuple[bytes | None, str, str], loads: Callable[[bytes], Any]) -> BaseException:
    data, text, where = dumped
    error: Any = None
    if data is not None:
        try:
            error = loads(data)
        except Exception:
            error = None
    if not isinstance(error, BaseException):
        error = RemoteError(text)
    if where:
        error.add_note(f"At its worker:\n{where.rstrip()}")
    return error  # type: ignore[no-any-return]
