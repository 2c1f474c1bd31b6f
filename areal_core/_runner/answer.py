"""What a thread waits for that has another one do something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from areal_core._runner.gate import Gate

T = TypeVar("T")


class Answer(Generic[T]):
    """What *make* returned or raised, for the thread that waits for it."""

    __slots__ = ("_error", "_make", "_values", "gate")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: list[T] = []
        self._error: BaseException | None = None
        self.gate = Gate()

    def fill(self) -> None:
        """Find it, and let the thread go on."""
        try:
            self.find()
        finally:
            self.gate.open()

    def find(self) -> None:
        """Do what is to be done; of several times the last counts."""
        try:
            self._values, self._error = [self._make()], None
        except BaseException as error:
            self._error = error

    def get(self) -> T:
        """Return what it returned, or raise what it raised; once the gate is open."""
        if self._error is not None:
            raise self._error
        return self._values[0]
