"""Which of several policy versions, read or told by several threads, is the last.

A number is taken while the provider is at its version: between two reads that agree, or as the provider sets
it. So in the order of their numbers the versions are in the order in which the provider had them, whoever
comes first. The core takes none whose number is below that of the last it took: what it sees falls only where
the trainer went back. It never sees a version that was told after a later one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

from areal_core._checks import check_integer
from areal_core._executor.desk import Desk
from areal_core._executor.requests import Request

_MOST_READS = 100  # of a provider that never says the same twice


def checked(version: object) -> int:
    """Return *version* of a provider. Raises TypeError, ValueError."""
    return check_integer("the version of the provider", version, least=0)


class Versions:
    """Tells the core of *desk* of the versions that *read* gives, in the order in which they were.

    It is a subscriber for a provider that has any.
    """

    def __init__(self, desk: Desk, read: Callable[[], int]) -> None:
        self._desk = desk
        self._read = read
        self._numbers = itertools.count(1)
        self._last = 0

    def begin(self) -> None:
        """Have the core take the version, before anything starts. Raises what *read* raises."""
        number = next(self._numbers)  # first: what is told from now on comes after it
        self._desk.call(self._take, number, self._read())

    def look(self) -> None:
        """Read the version and tell it; in callers' threads only. Raises what *read* raises."""
        number, version = 0, self._read()
        for _ in range(_MOST_READS):
            number, before = next(self._numbers), version
            version = self._read()
            if version == before:  # so it was when the number was taken
                break
        self._desk.post(self._take, number, version)

    def has_moved(self, request: Request) -> bool:
        """Return whether the version is not that any more at which *request* was answered.

        Where it is read it may only have risen, and then the core is told: a provider whose reads lag what it
        tells has not gone back. In callers' threads only. Raises what *read* raises.
        """
        version = self._read()
        if version > request.version:
            self._desk.post(self._raise_to, version)
        return version > request.version or self._desk.core.budget.changes != request.changes

    def __call__(self, version: int) -> None:
        """Tell *version*, which was set a moment ago. Never blocks."""
        self.in_order()(version)

    def in_order(self) -> Callable[[int], None]:
        """Return what is to be called with the version that is set just now; under the provider's lock.

        It may be called later, when other threads have set others.
        """
        return functools.partial(self._tell, next(self._numbers))

    def _tell(self, number: int, version: int) -> None:
        self._desk.post(self._take, number, checked(version))

    def _raise_to(self, version: int) -> None:
        core = self._desk.core
        core.set_version(max(version, core.budget.version))

    def _take(self, number: int, version: int) -> None:
        if number > self._last:
            self._last = number
            self._desk.core.set_version(version)
