"""The ids that callers chose, and which of them are in use.

They are taken and freed in callers' threads, where a Ctrl-C may come at any call: an id must not be free
while its outcome may come back, nor stay in use for a rollout that was never submitted. So what frees one is
a store, and the table is put in order later. A signal handler may come at any call, too, and take one: so
what is looked up and what is done about it are one call of C code, or have none in between. Where there is
none, no other thread comes in either. So there is no lock: the main thread could hold it, in a handler that
waits for the loop's, and that one could wait for it to take an id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from areal_core._executor.requests import Receipt, Request
from areal_core._executor.rollout import Rollout
from areal_core._runner.arguments import FIRST_OWN_ID


class Ids:
    """Knows whose an id is. Any thread may call it.

    *is_submitted* says whether a core has taken a rollout, and is not called but for one that was abandoned.
    """

    def __init__(self, is_submitted: Callable[[Rollout], bool]) -> None:
        self._is_submitted = is_submitted
        self._holders: dict[int, Rollout | Receipt] = {}  # or what says whether its outcome has arrived
        self._given: dict[int, Receipt] = {}

    def take(self, rollout: Rollout) -> None:
        """Let *rollout* have its id. Raises ValueError when another has it."""
        while (holder := self._holders.setdefault(rollout.task_id, rollout)) is not rollout:
            if not self._is_gone(holder):
                raise ValueError(
                    f"task_id={rollout.task_id} is in use until its outcome is collected; "
                    "pass another, or none"
                )
            _free(self._holders, rollout.task_id, holder)

    def hand_out(self, request: Request) -> None:
        """Let the ids of what *request* was given be free as soon as it ``is_delivered``."""
        self._put_in_order()
        for rollout in request.rollouts:
            if rollout.task_id < FIRST_OWN_ID:
                self._holders[rollout.task_id] = self._given[rollout.task_id] = request.receipt

    def _is_gone(self, holder: Rollout | Receipt) -> bool:
        if isinstance(holder, Receipt):
            return holder.is_delivered
        return holder.is_abandoned and not self._is_submitted(holder)

    def _put_in_order(self) -> None:
        for task_id, receipt in list(self._given.items()):
            if receipt.is_delivered:
                _free(self._holders, task_id, receipt)
                _free(self._given, task_id, receipt)


def _free(table: dict[int, Any], task_id: int, holder: Rollout | Receipt) -> None:
    """Take *holder* out of *table*, unless another is in its place."""
    if task_id in table and table[task_id] is holder:
        del table[task_id]
