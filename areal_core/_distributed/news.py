"""What a worker's engine is told, by a thread of its own: it may not return from that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from areal_core._distributed.wire import Orders
from areal_core._log import get_logger, log


class News:
    """Tells *engine* the newest policy version, and whether to generate; not what came and went meanwhile.

    *on_known* is called with the number of what it has been told.
    """

    def __init__(self, engine: Any, on_known: Callable[[int], None]) -> None:
        self._engine = engine
        self._on_known = on_known
        self._changed = threading.Condition(threading.Lock())
        self._number = 0  # of the newest
        self._newest: tuple[int, bool] | None = None  # None: to be told anew, whatever it is
        self._told = 0
        self._is_closed = False
        self._since: float | None = None  # when the calls of the engine began that run now
        threading.Thread(target=self._run, name="areal-news", daemon=True).start()

    def tell(self, orders: Orders) -> int:
        """Have the engine told what *orders* say, if that is new; return the number of the newest news."""
        news = orders.version, orders.holds_generation
        with self._changed:
            if orders.number > self._number and news != self._newest:
                self._number, self._newest = orders.number, news
                self._changed.notify()
            return self._number

    def telling_s(self) -> float:
        """Return for how long the calls of the engine have run that run now."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """Tell nothing more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._told != self._number)
                if self._is_closed:
                    return
                assert self._newest is not None
                number, (version, holds) = self._number, self._newest
                self._since = time.monotonic()
            went_well = self._tell("set_version", self._set_version, version)
            went_well &= self._tell("hold_generation", self._hold_generation, holds)
            with self._changed:
                self._since, self._told = None, number
                if not went_well and self._number == number:
                    self._newest = None  # the next orders say it again
            self._on_known(number)

    def _tell(self, what: str, tell: Callable[[Any], None], news: Any) -> bool:
        """Let the engine know. If it raises, what is to be played is played all the same."""
        try:
            tell(news)
        except BaseException as error:  # of the user's code, which may do anything
            log(get_logger(), "error", "engine_took_no_news", {"method": what, "exc_info": error})
            return False
        return True

    def _set_version(self, version: int) -> None:
        set_version = getattr(self._engine, "set_version", None)
        if callable(set_version) and self._engine.get_version() != version:
            set_version(version)

    def _hold_generation(self, holds: bool) -> None:
        hold = getattr(self._engine, "hold_generation", None)
        if callable(hold):
            hold(holds)
