"""Make sure that the process may open as many connections as it is going to."""

from __future__ import annotations

import threading

from areal_core._http.config import check_connections
from areal_core._log import get_logger
from areal_core._process import call_in_child

_RESERVE = 256  # for all else a process has open: the loops, logs, data files, other libraries' sockets

_lock = threading.Lock()  # two threads that raise the limit must not undo each other
_told_of = 0  # the most connections that were found not to fit, and said so, for a loop's clients


def ensure_descriptors(connections: int) -> bool:
    """Raise the soft limit of open files so that *connections* fit, and return whether they do.

    256 descriptors are added for the rest of the process. Where the hard limit is lower, or the system
    refuses, the limit is raised as far as possible and a warning tells both numbers. The limit is never
    lowered. Raises ValueError and TypeError for a bad number.
    """
    check_connections(connections)
    needed = connections + _RESERVE
    with _lock:
        limit = _raise_limit(needed)
    if limit is None or limit >= needed:
        return True
    get_logger().warning(
        "descriptor_limit_fell_short",
        connections=connections,
        needed=needed,
        limit=limit,
        advice="raise the hard limit (ulimit -Hn, LimitNOFILE) or keep fewer requests in flight",
    )
    return False


def ensure_descriptors_once(connections: int) -> None:
    """Do the same for the clients of a new loop, without saying again what was said for another loop."""
    global _told_of
    if connections > _told_of and not ensure_descriptors(connections):
        _told_of = connections


def _raise_limit(needed: int) -> int | None:
    """Raise the soft limit towards *needed* and return what it is then; None: there is no limit."""
    try:
        import resource
    except ImportError:  # Windows knows no such limit
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # macOS refuses more than OPEN_MAX, whatever the hard limit says
            pass
    return None if soft == resource.RLIM_INFINITY else soft


def _forget_lock() -> None:
    """Replace the lock, which another thread may have held at the fork."""
    global _lock
    _lock = threading.Lock()


call_in_child(_forget_lock)
