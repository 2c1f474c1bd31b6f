"""The Ray of this process: started where there is none, and shut down by the last that has its use."""

from __future__ import annotations

import logging
import threading

_lock = threading.RLock()
_users: set[object] = set()  # of the Ray that one of them started
_node = ""  # which that is: the program may shut it down, and start another


def join(user: object) -> None:
    """Start Ray for *user*, unless it runs. Raises ImportError, and what Ray raises."""
    global _node
    import ray

    with _lock:
        if not _is_there():
            _users.clear()  # that Ray is over
        if not ray.is_initialized():
            ray.init(include_dashboard=False, logging_level=logging.WARNING)
            _node = ray.get_runtime_context().get_node_id()
            _users.add(user)
        elif _users:
            _users.add(user)


def leave(user: object) -> None:
    """Shut Ray down, if *user* was the last that has the use of one that was started here."""
    with _lock:
        if user in _users:
            _users.remove(user)
            if not _users and _is_there():
                import ray

                ray.shutdown()


def _is_there() -> bool:
    """Return whether the Ray that was started here is the one that runs."""
    import ray

    return bool(ray.is_initialized() and ray.get_runtime_context().get_node_id() == _node)
