"""The items that `prepare_batch` is fed with, one dataloader after another, pass after pass.

They are taken in the caller's thread, where a Ctrl-C may come at any call. An item is either still in the
dataloader, or kept here, or submitted: each step is one call of C code, or adjacent stores. The dataloader's
own code is its own affair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from areal_core._executor.desk import Desk
from areal_core._executor.rollout import Lane, Rollout
from areal_core._executor.work import Plan, data_id_of


class Prompts:
    """Takes lists of items from a dataloader, and submits rollouts of them for batches.

    An item's id is its own ``data_id``, or ``"epoch:index"``. *ids* are for the rollouts.
    """

    def __init__(self, ids: Iterator[int]) -> None:
        self._ids = ids
        self._loader: Iterable[Any] | None = None
        self._lists: Iterator[Any] = iter(())
        self._epoch = 0
        self._index = 0
        self._pulled: deque[Any] = deque()  # a list that was taken from the dataloader
        self._made: Sequence[Rollout] = ()  # rollouts of such a list

    def feed(self, desk: Desk, loader: Iterable[Any], plan: Plan, wanted: int) -> None:
        """Submit at least *wanted* rollouts of items of *loader*, which is iterated again at its end.

        Another loader than last time is begun anew, once what was taken of the last is submitted.
        Raises ValueError for one without items, TypeError for one that gives no lists, and whatever it
        raises itself.
        """
        while wanted > 0:
            while not self._made:
                if not self._pulled:
                    self._pull(loader)
                self._make(plan)
            wanted -= len(self._made)
            desk.post(desk.core.submit, self._made)  # a second time is no harm
            self._made = ()

    def _pull(self, loader: Iterable[Any]) -> None:
        if loader is not self._loader:
            lists = iter(loader)
            epoch = self._epoch + (self._loader is not None)  # an id names one item of one loader
            self._loader, self._lists, self._epoch, self._index = loader, lists, epoch, 0
        self._pulled.extend(islice(self._lists, 1))
        if self._pulled:
            return
        if not self._index:
            raise ValueError("the dataloader gave no item in a whole pass; give one that is not empty")
        lists = iter(loader)
        self._lists, self._epoch, self._index = lists, self._epoch + 1, 0

    def _make(self, plan: Plan) -> None:
        """Make rollouts of the list that was pulled, if one was."""
        for items in self._pulled:
            if isinstance(items, str | bytes | dict) or not isinstance(items, Iterable):
                self._pulled.clear()
                raise TypeError(
                    f"the dataloader gave a {type(items).__name__}; it has to give lists of items"
                )
            named = [(item, self._name(item, place)) for place, item in enumerate(items, self._index)]
            made = [
                Rollout(next(self._ids), plan.work_on(item, data_id), Lane.BATCH) for item, data_id in named
            ]
            index, nothing = self._index + len(made), deque[Any]()
            self._made, self._pulled, self._index = made, nothing, index
            return

    def _name(self, item: Any, place: int) -> Any:
        own = data_id_of(item)
        return f"{self._epoch}:{place}" if own is None else own
