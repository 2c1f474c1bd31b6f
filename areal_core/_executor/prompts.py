"""The items that `prepare_batch` is fed with, one dataloader after another, pass after pass.

They are taken in the caller's thread, where a Ctrl-C may come at any call. An item is either still in the
dataloader, or kept here, or submitted: each step is one call of C code, or adjacent stores. The dataloader's
own code is its own affair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from typing import Any

from areal_core._executor.desk import Desk
from areal_core._executor.rollout import Lane, Rollout
from areal_core._executor.work import Plan, data_id_of

_MOST_EMPTY = 1000  # lists in a row: a dataloader that gives more of them gives nothing else


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
        self._has_given = False  # this loader, in any pass
        self._empty = 0  # lists in a row
        self._pulled: deque[tuple[Any, Plan]] = deque()  # a list, or what is left of it, and how to play it
        self._items: list[Any] = []  # those of that list
        self._made: Sequence[Rollout] = ()  # rollouts of such a list
        self._failure: tuple[Iterable[Any], Exception] | None = None  # of a loader, not raised so far

    def feed(self, desk: Desk, loader: Iterable[Any], plan: Plan, wanted: int, is_last: bool) -> bool:
        """Submit at least *wanted* rollouts of items of *loader*, which is iterated again at its end.

        Return whether they could be had. If not, the error is kept, and nothing more is taken of this loader,
        until a call that *is_last*, without which nothing goes on: that raises it, and the next tries again.
        It is a ValueError for a loader without items, or without any more; a TypeError for one that gives no
        lists; or whatever the loader raised.

        Another loader than last time is begun anew, once what was taken of the last is submitted.
        """
        if self._failure is None or self._failure[0] is not loader:
            self._failure = None
            try:
                self._submit(desk, loader, plan, wanted)
            except Exception as error:
                self._failure = loader, error
        failure = self._failure
        if failure is not None and is_last:
            self._failure = None
            raise failure[1]
        return failure is None

    def _submit(self, desk: Desk, loader: Iterable[Any], plan: Plan, wanted: int) -> None:
        while wanted > 0:
            while not self._made:
                if not self._pulled:
                    self._pull(loader, plan)
                if self._pulled:
                    self._open()
                    self._make()
            wanted -= len(self._made)
            desk.post(desk.core.submit, self._made)  # a second time is no harm
            self._made = ()

    def _pull(self, loader: Iterable[Any], plan: Plan) -> None:
        """Take a list from *loader*, or begin its next pass."""
        if loader is not self._loader:
            lists = iter(loader)
            epoch = self._epoch + (self._loader is not None)  # an id names one item of one loader
            self._loader, self._lists, self._epoch, self._index = loader, lists, epoch, 0
            self._has_given, self._empty = False, 0
        self._pulled.extend(zip(islice(self._lists, 1), repeat(plan)))
        if self._pulled:
            return
        lists, had_items = iter(loader), self._index > 0
        self._lists, self._epoch, self._index = lists, self._epoch + 1, 0
        if not had_items:
            raise ValueError(_why_nothing(self._has_given))

    def _open(self) -> None:
        """Take the items out of the list that was pulled: each once, also where that is interrupted."""
        given, plan = self._pulled[0]
        try:
            if isinstance(given, str | bytes | dict) or not isinstance(given, Iterable):
                raise TypeError(
                    f"the dataloader gave a {type(given).__name__}; it has to give lists of items"
                )
            items = iter(given)
            self._pulled[0] = items, plan
            self._items.extend(items)
        except Exception:
            self._pulled[0] = iter(()), plan  # it may raise for ever; what it gave before stays
            raise

    def _make(self) -> None:
        """Make rollouts of these items, the way that was asked for when they were pulled."""
        _, plan = self._pulled[0]
        try:
            named = [(item, self._name(item, place)) for place, item in enumerate(self._items, self._index)]
            made = [
                Rollout(next(self._ids), plan.work_on(item, data_id), Lane.BATCH) for item, data_id in named
            ]
            self._count_empty(made)
        except Exception:
            self._pulled, self._items = deque(), []  # or they would raise for ever
            raise
        index, nothing = self._index + len(made), deque[tuple[Any, Plan]]()
        self._made, self._pulled, self._items, self._index = made, nothing, [], index
        self._has_given = self._has_given or index > 0

    def _count_empty(self, made: Sequence[Rollout]) -> None:
        self._empty = 0 if made else self._empty + 1
        if self._empty >= _MOST_EMPTY:
            self._empty = 0
            raise ValueError(
                f"the dataloader gave {_MOST_EMPTY} empty lists in a row; give one that gives lists of items"
            )

    def _name(self, item: Any, place: int) -> Any:
        own = data_id_of(item)
        return f"{self._epoch}:{place}" if own is None else own


def _why_nothing(has_given: bool) -> str:
    if has_given:
        return (
            "the dataloader is exhausted: it gave items before, and gives none when it is iterated again; "
            "give one that can be iterated again, such as a list or a DataLoader, or another one"
        )
    return "the dataloader gave no item in a whole pass; give one that is not empty"
