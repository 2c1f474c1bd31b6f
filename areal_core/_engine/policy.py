"""The policy version, and who wants to know when it changes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from areal_core._checks import check_integer
from areal_core._engine.events import Events
from areal_core._engine.subscribers import Subscribers
from areal_core._engine.wire.address import Address


@dataclass(frozen=True, slots=True)
class Moment:
    """The version when a request was sent, and what to compare later to tell whether it held."""

    version: int
    changes: int


@dataclass(frozen=True, slots=True)
class Weights:
    """The last weights that all servers were given."""

    path: str
    version: int


class Policy:
    """Which version the servers generate with. Any thread may ask and tell."""

    def __init__(self, events: Events) -> None:
        self.events = events
        """Where it logs."""
        self._lock = threading.RLock()
        self._version = 0
        self._subscribers: Subscribers[int] = Subscribers("a version", self._subscriber_raised)
        self._changes = 0
        self._changing = 0
        self.weights: Weights | None = None
        """The last update that came by way of this engine; None: there was none."""
        self.set_by_hand = False
        """Whether the version was set without such an update, so that nobody here has its weights."""
        self.doubted: set[Address] = set()
        """Servers that were removed, or left by an engine that ended, with weights that nobody can tell."""

    def renew(self) -> None:
        """Forget, in a forked process, who held the lock or changed weights in the parent."""
        self._lock = threading.RLock()
        self._subscribers.renew()
        self._changing = 0

    @property
    def version(self) -> int:
        """The policy version."""
        return self._version

    def moment(self) -> Moment:
        """Return the version now, with what tells later whether it changed."""
        with self._lock:
            return Moment(self._version, self._changes)

    def held_since(self, moment: Moment) -> bool:
        """Return whether nothing has changed, nor begun to change, since *moment*."""
        return self._changes == moment.changes

    @property
    def is_changing(self) -> bool:
        """Whether servers may have other weights now than the version says."""
        return self._changing > 0

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Take note that servers get other weights in the body of this context."""
        with self._lock:
            self._changing += 1
            self._changes += 1
        try:
            yield
        finally:
            with self._lock:
                self._changing -= 1
                self._changes += 1

    def set(self, version: int, weights: Weights | None = None) -> None:
        """Set the version, which the servers have got as *weights* (None: in another way).

        Calls the subscribers, in this thread, if it changed.
        """
        version = check_integer("version", version, least=0)
        with self._lock:
            changed = version != self._version
            self._version = version
            self._changes += 1
            if weights is not None:
                self.weights = weights
            if weights is not None or changed:
                self.set_by_hand = weights is None
            subscribers = [_in_order(one) for one in self._subscribers.now()] if changed else []
        self._subscribers.tell(version, subscribers)

    def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have *callback* called with each new version; return what ends that.

        Of two threads that set it, the later may be the first to call. One to whom that matters has a method
        ``in_order`` beside: it is called as the version is set, and what it returns is called instead.
        """
        return self._subscribers.add(callback)

    def _subscriber_raised(self, error: BaseException) -> None:
        self.events.version_subscriber_raised(error)  # which may be others by now


def _in_order(callback: Callable[[int], None]) -> Callable[[int], None]:
    in_order = getattr(type(callback), "in_order", None)  # not what a mock has
    try:
        return callback if in_order is None else in_order(callback)
    except Exception:  # it is something else that somebody calls so
        return callback
