"""Many small things pickled one after the other."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

_LARGE = 1 << 16  # bytes: from there on a pickler keeps more memory than it saves time


class Pickles:
    """What ``dumps`` does, with one pickler for many: to make one takes longer than small things do.

    *make* makes one that writes to a file, such as cloudpickle's class. One thread only.
    """

    def __init__(self, make: Callable[[io.BytesIO], pickle.Pickler]) -> None:
        self._make = make
        self._file = io.BytesIO()
        self._pickler: pickle.Pickler | None = None

    def __call__(self, thing: Any) -> bytes:
        """Return *thing* pickled. Raises whatever that raises."""
        pickler, self._pickler = self._pickler, None
        if pickler is None:
            self._file = io.BytesIO()
            pickler = self._make(self._file)
        pickler.dump(thing)
        data = self._file.getvalue()
        # One that failed is not used again; nor one that remembers more than its memo: cloudpickle's knows
        # functions' modules by their addresses, which may be others' later.
        if len(data) < _LARGE and not getattr(pickler, "globals_ref", None):
            pickler.clear_memo()
            self._file.seek(0)
            self._file.truncate()
            self._pickler = pickler
        return data
