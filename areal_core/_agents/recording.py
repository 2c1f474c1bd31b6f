"""The calls of one episode, and the trajectory they make: `Recording`."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from reprlib import repr as short
from typing import Any

import numpy as np

from areal_core import _context
from areal_core._agents.call import Call
from areal_core._agents.joining import Row, rows_of
from areal_core._checks import check_number
from areal_core._trajectory.joining import concat_padded_tensors

_MOST = float(np.finfo(np.float32).max)
_NAMED = 3  # ids in a message


class Recording:
    """The chat completions of one episode. All of it belongs to one loop's thread."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._ids: set[str] = set()

    def __repr__(self) -> str:
        sampled = sum(len(call.output_tokens) for call in self._calls)
        return f"<Recording of {len(self._calls)} calls, {sampled} sampled tokens>"

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls, in the order in which they began."""
        return tuple(self._calls)

    def add(self, call: Call) -> None:
        """Add a *call* that is over; of calls in parallel any may be the first.

        Raises ValueError for an id that another call has.
        """
        if call.id in self._ids:
            raise ValueError(
                f"there is a call with the id {short(call.id)} already; add each once, under its own id"
            )
        self._ids.add(call.id)
        insort(self._calls, call, key=attrgetter("began"))

    def to_trajectory(self, reward: float | Mapping[str, float], *, discount: float = 1.0) -> dict[str, Any]:
        """Return the calls as a trajectory: each token that was sampled is trained, and once.

        *reward* is that of the call that began last; or give a mapping, from ids of completions to the
        rewards of those calls. All others have none of their own. The return of a call is its own reward and
        *discount* (0..1) times the return of the call that began next.

        A call whose prompt begins with all tokens of an earlier one continues its row; any other begins a
        row: see `areal_core._agents.joining`. The arrays are ``[rows, seqlen]``: input_ids (int64),
        attention_mask (int32: 0 for the padding on the right), loss_mask (int32: 1 for what was sampled),
        logprobs (float32), versions (int32: -1 for what was not sampled) and returns (float32: of the call
        that sampled the token), which are 0 where nothing is said; and ``[rows]``: rewards (float32: the
        return of the row's last call) and sample_idx (int32: the episode's place in its group, 0 where there
        is none).

        Raises ValueError where nothing was sampled, for ids that no call has, and for numbers out of range;
        TypeError for what is no number; True is 1.
        """
        self._check_sampled()
        own = _own_rewards(self._calls, reward)
        returns = _returns(self._calls, own, check_number("discount", discount, least=0.0, most=1.0))
        place = _context.current.get().sample_idx or 0
        rows = [_one_row(row, returns, place) for row in rows_of(self._calls)]
        return rows[0] if len(rows) == 1 else concat_padded_tensors(rows)

    def _check_sampled(self) -> None:
        if not self._calls:
            raise ValueError("no call was recorded; return None to reject the episode")
        if not any(call.output_tokens for call in self._calls):
            raise ValueError(
                f"nothing was sampled in {len(self._calls)} calls; return None to reject the episode"
            )


def _own_rewards(calls: Sequence[Call], reward: object) -> dict[str, float]:
    """Return the rewards that were given, by the calls' ids."""
    if not isinstance(reward, Mapping):
        return {calls[-1].id: _number("reward", reward)}
    ids = [call.id for call in calls]
    unknown = set(reward).difference(ids)
    if unknown:
        odd = [name for name in reward if name in unknown]
        raise ValueError(
            f"reward has the ids {_some(odd)}, which no call has; there are {_some(ids)}; "
            "give ids of completions, or one number"
        )
    return {name: _number(f"reward[{short(name)}]", value) for name, value in reward.items()}


def _number(name: str, value: object) -> float:
    """Return *value* as a float; whether an answer is right is a number here too."""
    return float(value) if isinstance(value, bool) else check_number(name, value)


def _returns(calls: Iterable[Call], own: Mapping[str, float], discount: float) -> dict[str, float]:
    """Return the return of each call, by its id."""
    returns: dict[str, float] = {}
    following = 0.0
    for call in reversed(list(calls)):
        following = own.get(call.id, 0.0) + discount * following
        if abs(following) > _MOST:
            raise ValueError(
                f"the rewards make a return of {following:g}, and float32 ends at {_MOST:g}; give less"
            )
        returns[call.id] = following
    return returns


def _one_row(row: Row, returns: Mapping[str, float], place: int) -> dict[str, Any]:
    """Return *row* as a trajectory of one sample."""
    shape = (1, len(row))
    per_token: dict[str, Any] = {
        "input_ids": np.array([row.tokens], np.int64),
        "attention_mask": np.ones(shape, np.int32),
        "loss_mask": np.zeros(shape, np.int32),
        "logprobs": np.zeros(shape, np.float32),
        "versions": np.full(shape, -1, np.int32),
        "returns": np.zeros(shape, np.float32),
    }
    for where, call in row.sampled():
        per_token["loss_mask"][0, where] = 1
        per_token["logprobs"][0, where] = call.output_logprobs
        per_token["versions"][0, where] = call.output_versions
        per_token["returns"][0, where] = returns[call.id]
    reward = returns[row.calls[-1].id]
    return {**per_token, "rewards": np.array([reward], np.float32), "sample_idx": np.array([place], np.int32)}


def _some(names: Sequence[object]) -> str:
    """Name the first few."""
    named = ", ".join(map(short, names[:_NAMED]))
    return named if len(names) <= _NAMED else f"{named} and {len(names) - _NAMED} more"
