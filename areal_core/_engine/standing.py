"""Whether a server fails all that it is given, and is better avoided, though it says that it is well.

Such a server is a black hole: it is done with each request at once, so it has the fewest in flight, and is
chosen for nearly all. The remedy is Envoy's "outlier detection"
(https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier): after so many failures in
a row (``consecutive_5xx``) a host is ejected for a time that grows from ``base_ejection_time`` to
``max_ejection_time``. Here that time doubles, and is much shorter: it is one generation that finds out
whether all is well again, and it goes on elsewhere if not. One that ends without having found that out, as
when it is cancelled or the server is busy, makes the time no longer.
"""

from __future__ import annotations

import math
import time

from areal_core._engine.retries import did_not_begin, may_try_again
from areal_core._engine.wire.exchange import StaleConnectionError
from areal_core.errors import MalformedReplyError, ServerStatusError, ServerUnreachableError

# As in Envoy. A generation counts once at a server, however often it is tried there: so one prompt that no
# server can take condemns none, though its conversation stays where it is.
_IN_A_ROW = 5

# What a server that failed for a moment could have done in that time is lost; one that fails for hours costs
# a generation one attempt in a minute, and is used again within a minute of its repair.
_BASE_S = 1.0
_MOST_S = 60.0

_now = time.monotonic


class Standing:
    """How a server's attempts have ended of late. The router's lock guards what changes it."""

    def __init__(self) -> None:
        self.failures = 0
        """In a row, without an attempt that brought tokens."""
        self.is_told = False
        """Whether it was told that it is avoided, since it last worked."""
        self._rest_s = 0.0  # the last time of being avoided
        self._until = -math.inf
        self._is_tried = False  # an attempt is to show how it is, and has not yet

    @property
    def is_doubtful(self) -> bool:
        """Whether so much has failed that only tokens can show that it works."""
        return self.failures >= _IN_A_ROW

    @property
    def is_avoided(self) -> bool:
        """Whether it is given nothing new for now."""
        return self.is_doubtful and _now() < self._until

    def fail(self) -> bool:
        """Count a failed attempt; return whether it is avoided from now on, and was not before."""
        self.failures += 1
        if not self.is_doubtful or (self.is_avoided and not self._is_tried):
            return False  # attempts that were under way when it began say nothing new
        was_avoided = self._rest_s > 0
        self._rest_s = min(_MOST_S, 2 * self._rest_s or _BASE_S)
        self._avoid(is_tried=False)
        return not was_avoided

    def give(self) -> None:
        """Take note of an attempt: if it was avoided until now, that one alone is to show how it is."""
        if self.is_doubtful and not self.is_avoided:
            self._avoid(is_tried=True)

    def clear(self) -> None:
        """Forget all: it has brought tokens."""
        self.failures, self._rest_s = 0, 0.0
        self.is_told = self._is_tried = False

    def _avoid(self, is_tried: bool) -> None:
        self._until = _now() + self._rest_s
        self._is_tried = is_tried


def is_servers_fault(error: BaseException) -> bool:
    """Return whether an attempt that brought no token failed by its server, not by what was asked or by us.

    One that is busy, that ended it as in a pause, or that leaves rotation for this, is not at fault, nor one
    that could not be asked for its weights because something was short here.
    """
    if isinstance(error, ServerStatusError):
        return may_try_again(error) and not did_not_begin(error)
    if isinstance(error, ServerUnreachableError):
        return error.sent and not error.is_shortage and not isinstance(error, StaleConnectionError)
    return isinstance(error, MalformedReplyError)
