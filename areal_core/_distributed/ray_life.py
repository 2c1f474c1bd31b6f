"""The Ray of this process: started where there is none, and shut down by the last that has its use."""

from __future__ import annotations

import logging
import threading

_lock = threading.RLock()
_users: set[object] = set()  # of the Ray that one of them started


def join(user: object) -> None:
    """Start Ray for *user*, unless it runs. Raises ImportError, and what Ray raises."""
    import ray

    with _lock:
        if not ray.is_initialized():
            _users.clear()  # that Ray is over
            ray.init(include_dashboard=False, logging_level=logging.WARNING)
            _users.add(user)
        elif _users:
            _users.add(user)


def leave(user: object) -> None:
    """Shut Ray down, if *user* was the last that has the use of one that was started here."""
    with _lock:
        if user in _users:
            _users.remove(user)
            if not _users:
                import ray

                ray.shutdown()
