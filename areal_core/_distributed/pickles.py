"""Many small things pickled one after the other."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

_LARGE = 1 << 16  # bytes: from there on a pickler keeps more memory than it saves time


class Pickles:
    """What ``dumps`` does, with one pickler for many: to make one takes longer than small things do.

    *make* makes one that writes to a file, such as cloudpickle's class.
    """

    def __init__(self, make: Callable[[io.BytesIO], pickle.Pickler]) -> None:
        self._make = make
        # Nobody's at the moment. Whoever finds none makes one: another thread, or what is pickled itself.
        self._free: list[tuple[pickle.Pickler, io.BytesIO]] = []

    def __call__(self, thing: Any) -> bytes:
        """Return *thing* pickled. Raises whatever that raises."""
        try:
            pickler, file = self._free.pop()
        except IndexError:
            file = io.BytesIO()
            pickler = self._make(file)
        pickler.dump(thing)
        data = file.getvalue()
        # One that failed is not used again; nor one that remembers more than its memo: cloudpickle's knows
        # functions' modules by their addresses, which may be others' later.
        if len(data) < _LARGE and not self._free and not getattr(pickler, "globals_ref", None):
            pickler.clear_memo()
            file.seek(0)
            file.truncate()
            self._free.append((pickler, file))
        return data
