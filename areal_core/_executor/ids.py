"""The ids that callers chose, and which of them are in use.

They are taken and freed in callers' threads, where a Ctrl-C may come at any call: an id must not be free
while its outcome may come back, nor stay in use for a rollout that was never submitted. So what frees one is
a store, and the table is put in order later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from areal_core._executor.requests import Request
from areal_core._executor.rollout import Rollout
from areal_core._runner.arguments import FIRST_OWN_ID


class Ids:
    """Knows whose an id is. Any thread may call it.

    *is_submitted* says whether a core has taken a rollout, and is not called but for one that was abandoned.
    """

    def __init__(self, is_submitted: Callable[[Rollout], bool]) -> None:
        self._is_submitted = is_submitted
        self._lock = threading.RLock()
        self._holders: dict[int, Rollout] = {}
        self._takers: dict[Rollout, Request] = {}

    def take(self, rollout: Rollout) -> None:
        """Let *rollout* have its id. Raises ValueError when another has it."""
        with self._lock:
            holder = self._holders.get(rollout.task_id)
            if holder is not None and not self._is_gone(holder):
                raise ValueError(
                    f"task_id={rollout.task_id} is in use until its outcome is collected; "
                    "pass another, or none"
                )
            self._holders[rollout.task_id] = rollout

    def hand_out(self, request: Request) -> None:
        """Let the ids of what *request* was given be free as soon as it ``is_delivered``."""
        with self._lock:
            self._put_in_order()
            for rollout in request.rollouts:
                if rollout.task_id < FIRST_OWN_ID:
                    self._takers[rollout] = request

    def _is_gone(self, holder: Rollout) -> bool:
        taker = self._takers.get(holder)
        if taker is not None and taker.is_delivered:
            return True
        return holder.is_abandoned and not self._is_submitted(holder)

    def _put_in_order(self) -> None:
        for rollout, taker in list(self._takers.items()):
            if taker.is_delivered and self._holders.get(rollout.task_id) is rollout:
                del self._holders[rollout.task_id]
            if taker.is_delivered or taker.is_withdrawn:
                del self._takers[rollout]
