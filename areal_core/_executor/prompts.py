"""The items that `prepare_batch` is fed with, one dataloader after another, pass after pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from areal_core._executor.work import data_id_of


class Prompts:
    """Takes lists of items from a dataloader, in the thread that asks for them. Each item has an id."""

    def __init__(self) -> None:
        self._loader: Iterable[Any] | None = None
        self._items: Iterator[Any] = iter(())
        self._epoch = 0
        self._index = 0

    def next_list(self, loader: Iterable[Any]) -> list[tuple[Any, Any]]:
        """Return some more items of *loader* with their ids, at least one; iterate it again at its end.

        An item's id is its own ``data_id``, or ``"epoch:index"``. Another loader than last time begins anew.
        Raises ValueError for a loader without items, TypeError for one that gives no lists, and whatever
        it raises itself.
        """
        if loader is not self._loader:
            self._items = iter(loader)
            self._epoch += self._loader is not None  # an id names one item, whichever loader it is from
            self._loader = loader
            self._index = 0
        while True:
            for items in self._items:
                if isinstance(items, str | bytes | dict) or not isinstance(items, Iterable):
                    raise TypeError(
                        f"the dataloader gave a {type(items).__name__}; it has to give lists of items"
                    )
                named = [self._name(item) for item in items]
                if named:
                    return named
            if not self._index:
                raise ValueError("the dataloader gave no item in a whole pass; give one that is not empty")
            self._items = iter(loader)
            self._epoch += 1
            self._index = 0

    def _name(self, item: Any) -> tuple[Any, Any]:
        own = data_id_of(item)
        name = f"{self._epoch}:{self._index}" if own is None else own
        self._index += 1
        return item, name
