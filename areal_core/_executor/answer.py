"""What a thread waits for that has the one which owns the core do something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from areal_core._runner.gate import Gate


class Answer:
    """What an operation returned or raised, for the thread that waits for it."""

    __slots__ = ("_args", "_op", "error", "gate", "value")

    def __init__(self, op: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._op = op
        self._args = args
        self.gate = Gate()
        self.value: Any = None
        self.error: BaseException | None = None

    def fill(self) -> None:
        """Find it, and let the thread go on."""
        self.find()
        self.gate.open()

    def find(self) -> None:
        """Do the operation; of several times the last counts."""
        try:
            self.value, self.error = self._op(*self._args), None
        except Exception as error:
            self.error = error

    def get(self) -> Any:
        """Return what it returned, or raise what it raised; once the gate is open."""
        if self.error is not None:
            raise self.error
        return self.value
