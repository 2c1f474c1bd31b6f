"""The items that `prepare_batch` is fed with, one dataloader after another, pass after pass.

They are taken in the caller's thread, where a Ctrl-C may come at any call. An item is either still in the
dataloader, or kept here, or submitted: each step is one call of C code, or adjacent stores. The dataloader's
own code is its own affair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from numbers import Integral
from operator import index
from reprlib import repr as short
from typing import TYPE_CHECKING, Any
from uuid import UUID

from areal_core._executor.desk import Desk
from areal_core._executor.rollout import Lane, Plan, Rollout, data_id_of
from areal_core.errors import DataExhaustedError

if TYPE_CHECKING:
    from areal_core._executor.recovery import Recovery

_MOST_EMPTY = 1000  # lists in a row: a dataloader that gives more of them gives nothing else


class Prompts:
    """Takes lists of items from a dataloader, and submits rollouts of them for batches.

    An item's id is its own ``data_id``, or ``"epoch:index"``. *ids* are for the rollouts. With a *recovery*
    what an earlier run left comes first, and what the dataloader gives of it is left out; *say_strangers* is
    posted where that gave other items. None: there is no journal.
    """

    def __init__(
        self,
        ids: Iterator[int],
        recovery: Recovery | None = None,
        say_strangers: Callable[[], object] = lambda: None,
    ) -> None:
        self._ids = ids
        self._recovery = recovery
        self._say_strangers = say_strangers
        self._left: tuple[list[Rollout], list[Rollout]] | None = None  # by the earlier run
        self._is_recovered = recovery is None
        self._named: dict[str, int] = {}  # own ids in this pass, and the first place of each
        self._again: dict[str, dict[int, int]] = {}  # the other places of an id, and how many came before
        self._loader: Iterable[Any] | None = None
        self._lists: Iterator[Any] = iter(())
        self._epoch = 0 if recovery is None else recovery.resumed.epoch
        self._index = 0
        self._has_given = False  # this loader, in any pass
        self._empty = 0  # lists in a row
        self._pulled: deque[tuple[Any, Plan]] = deque()  # a list, or what is left of it, and how to play it
        self._items: list[Any] = []  # those of that list
        self._made: Sequence[Rollout] = ()  # rollouts of such a list
        self._failure: tuple[Iterable[Any], Exception] | None = None  # of a loader, not raised so far

    @property
    def is_recovered(self) -> bool:
        """Whether all that an earlier run left was handed over."""
        return self._is_recovered

    def feed(self, desk: Desk, loader: Iterable[Any], plan: Plan, wanted: int, is_last: bool) -> bool:
        """Submit at least *wanted* rollouts of items of *loader*, which is iterated again at its end.

        Return whether they could be had. If not, the error is kept, and nothing more is taken of this loader,
        until a call that *is_last*, without which nothing goes on: that raises it, and the next tries again.
        It is a ValueError for a loader without items, a DataExhaustedError for one without any more; a
        TypeError for one that gives no lists; or whatever the loader raised.

        Another loader than last time is begun anew, once what was taken of the last is submitted.
        """
        if not self._is_recovered:
            wanted -= self._recover(desk, plan)
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

    def _recover(self, desk: Desk, plan: Plan) -> int:
        """Hand over what an earlier run left; return how many of it are to be played.

        Interrupted anywhere, it is called again.
        """
        recovery = self._recovery
        assert recovery is not None
        if self._left is None:
            self._left = recovery.rollouts(plan, self._ids)
        finished, pending = self._left
        desk.call(desk.core.recover, finished)
        for rollout in finished:
            if rollout.is_abandoned:
                recovery.leave_to_loader(rollout)
        desk.post(desk.core.submit, pending)
        recovery.forget()
        self._left, self._is_recovered = None, True
        return len(pending)

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
            if self._recovery is not None and self._recovery.strangers:
                desk.post(self._say_strangers)

    def _pull(self, loader: Iterable[Any], plan: Plan) -> None:
        """Take a list from *loader*, or begin its next pass."""
        if loader is not self._loader:
            lists = iter(loader)
            epoch = self._epoch + (self._loader is not None)  # an id names one item of one loader
            self._loader, self._lists, self._epoch, self._index = loader, lists, epoch, 0
            self._has_given, self._empty, self._named, self._again = False, 0, {}, {}
        self._pulled.extend(zip(islice(self._lists, 1), repeat(plan)))
        if self._pulled:
            return
        lists, had_items = iter(loader), self._index > 0
        self._lists, self._epoch, self._index = lists, self._epoch + 1, 0
        self._named, self._again = {}, {}
        if not had_items:
            raise _nothing(self._has_given)

    def _open(self) -> None:
        """Take the items out of the list that was pulled: each once, also where that is interrupted."""
        given, plan = self._pulled[0]
        try:
            if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
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
            made = [
                rollout
                for place, item in enumerate(self._items, self._index)
                if (rollout := self._rollout_of(item, place, plan)) is not None
            ]
            self._count_empty()
        except Exception:  # or they would raise for ever; those behind keep their places
            self._pulled, self._items, self._index = deque(), [], self._index + len(self._items)
            raise
        place, nothing = self._index + len(self._items), deque[tuple[Any, Plan]]()
        self._made, self._pulled, self._items, self._index = made, nothing, [], place
        self._has_given = self._has_given or place > 0

    def _count_empty(self) -> None:
        self._empty = 0 if self._items else self._empty + 1
        if self._empty >= _MOST_EMPTY:
            self._empty = 0
            raise ValueError(
                f"the dataloader gave {_MOST_EMPTY} empty lists in a row; give one that gives lists of items"
            )

    def _rollout_of(self, item: Any, place: int, plan: Plan) -> Rollout | None:
        """Return the rollout of the item at *place* of this pass; None if an earlier run has it."""
        own = data_id_of(item)
        by_place = f"{self._epoch}:{place}"
        key = packed = None
        if self._recovery is not None:
            packed = self._recovery.pack(item)
            name = by_place if own is None else self._key_of(own, place)
            key = self._recovery.new_key(name, packed, is_place=own is None)
            if key is None:
                return None
        data_id = by_place if own is None else own
        rollout = plan.rollout(next(self._ids), item, Lane.BATCH, data_id=data_id, key=key)
        rollout.packed = packed
        return rollout

    def _key_of(self, own: Any, place: int) -> str:
        """Return what the journal calls the item at *place*, whose id is its *own*: the same in any order.

        Raises ValueError for an id that no other process can know again.
        """
        name = _lasting_name(own)
        first = self._named.setdefault(name, place)  # as often as one likes: a Ctrl-C may come at any call
        if first == place:
            return f"{self._epoch}:{name}"
        again = self._again.setdefault(name, {})
        return f"{self._epoch}:{name}#{again.setdefault(place, len(again) + 1)}"


def _lasting_name(own: Any) -> str:
    """Return a text that is the same in each process, and another for each id."""
    if isinstance(own, str):
        return repr(str(own))
    if isinstance(own, bool | float | bytes | UUID):
        return f"{type(own).__name__}={own!r}"
    if isinstance(own, Integral):
        return f"={index(own)}"  # NumPy's numbers too, and never mistaken for a place
    if isinstance(own, tuple):
        return f"({','.join(map(_lasting_name, own))})"
    raise ValueError(
        f"data_id={short(own)} is a {type(own).__name__}, which the journal may not know again in the next "
        "process; give a str or an int"
    )


def _nothing(has_given: bool) -> ValueError:
    if has_given:
        return DataExhaustedError(
            "the dataloader is exhausted: it gave items before, and gives none when it is iterated again"
        )
    return ValueError("the dataloader gave no item in a whole pass; give one that is not empty")
