"""The limit of open files. Lowering a hard limit is for ever, so each test has a process of its own."""

from __future__ import annotations

import pytest

from areal_core.workflow_context import ensure_descriptors
from children import RunScript

pytestmark = pytest.mark.any_loop

LIMITS = """
import resource
from areal_core.workflow_context import ensure_descriptors

def limits(soft=None, hard=None):
    if soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)
"""


def fell_short(connections: int, limit: int) -> str:
    return (
        f"descriptor_limit_fell_short connections={connections} needed={connections + 256} limit={limit} "
        "advice=raise the hard limit (ulimit -Hn, LimitNOFILE) or keep fewer requests in flight\n"
    )


def test_the_soft_limit_is_raised_as_far_as_needed_and_never_lowered(run_script: RunScript) -> None:
    child = run_script(
        LIMITS
        + """
limits(300, 2000)
print(ensure_descriptors(44), limits())
print(ensure_descriptors(500), limits())
print(ensure_descriptors(1), limits())
print(ensure_descriptors(1744), limits())
resource.setrlimit = None  # not called for what is so already
print(ensure_descriptors(1744), limits())
"""
    )
    expected = "True (300, 2000)\nTrue (756, 2000)\nTrue (756, 2000)\n" + 2 * "True (2000, 2000)\n"
    assert (child.stdout, child.stderr) == (expected, "")


def test_where_the_hard_limit_is_too_low_both_numbers_are_told(run_script: RunScript) -> None:
    child = run_script(
        LIMITS
        + """
limits(300, 2000)
print(ensure_descriptors(1745), limits())
print(ensure_descriptors(9000), limits())
"""
    )
    assert child.stdout == "False (2000, 2000)\nFalse (2000, 2000)\n"
    assert child.stderr == fell_short(1745, 2000) + fell_short(9000, 2000)


@pytest.mark.parametrize("error", ["ValueError", "OSError"])
def test_a_system_that_refuses_is_told_of(run_script: RunScript, error: str) -> None:
    child = run_script(
        LIMITS
        + f"""
def refuse(*_):
    raise {error}
limits(300, 2000)
resource.setrlimit = refuse  # as macOS does above OPEN_MAX
print(ensure_descriptors(500), limits())
"""
    )
    assert (child.stdout, child.stderr) == ("False (300, 2000)\n", fell_short(500, 300))


def test_where_nothing_is_limited_nothing_is_raised(run_script: RunScript) -> None:
    child = run_script(
        LIMITS
        + """
resource.setrlimit = None  # must not be called
resource.getrlimit = lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
print(ensure_descriptors(10**9))
"""
    )
    assert (child.stdout, child.stderr) == ("True\n", "")


def test_a_hard_limit_that_is_none_allows_what_is_needed(run_script: RunScript) -> None:
    child = run_script(
        LIMITS
        + """
resource.setrlimit = lambda _, limits: print(limits == (1256, resource.RLIM_INFINITY))
resource.getrlimit = lambda _: (300, resource.RLIM_INFINITY)
print(ensure_descriptors(1000))
"""
    )
    assert (child.stdout, child.stderr) == ("True\nTrue\n", "")


def test_a_system_without_such_limits_has_room(run_script: RunScript) -> None:
    child = run_script(
        """
        import sys
        sys.modules["resource"] = None
        from areal_core.workflow_context import ensure_descriptors
        print(ensure_descriptors(10**9))
        """
    )
    assert (child.stdout, child.stderr) == ("True\n", "")


def test_a_number_of_connections_is_a_positive_int() -> None:
    with pytest.raises(ValueError, match=r"^connections=0 is not positive; give a number of connections$"):
        ensure_descriptors(0)
    with pytest.raises(TypeError, match=r"^connections=True is not an int; give a number of connections$"):
        ensure_descriptors(True)


FIRST_CLIENTS = (
    LIMITS
    + """
import asyncio
from areal_core import workflow_context
from areal_core.workflow_context import HttpConfig, configure_http

async def make_clients():
    await workflow_context.get_control_session()
    await workflow_context.get_httpx_client()
"""
)


def test_a_loops_first_clients_see_to_the_descriptors(run_script: RunScript) -> None:
    child = run_script(
        FIRST_CLIENTS
        + """
limits(100, 2000)
for connections in (1, 1000, 1001):
    configure_http(HttpConfig(connections=connections))
    asyncio.run(make_clients())
    print(limits())
"""
    )
    assert (child.stdout, child.stderr) == ("(257, 2000)\n(1256, 2000)\n(1257, 2000)\n", "")


def test_the_clients_of_many_loops_complain_once(run_script: RunScript) -> None:
    child = run_script(
        FIRST_CLIENTS
        + """
limits(300, 2000)
configure_http(HttpConfig(connections=3000))
asyncio.run(make_clients())
asyncio.run(make_clients())
configure_http(HttpConfig(connections=2999))
asyncio.run(make_clients())
configure_http(HttpConfig(connections=3001))
asyncio.run(make_clients())
asyncio.run(make_clients())
print(limits())
"""
    )
    assert child.stdout == "(2000, 2000)\n"
    assert child.stderr == fell_short(3000, 2000) + fell_short(3001, 2000)


def test_two_threads_do_not_undo_each_other(run_script: RunScript) -> None:
    child = run_script(
        LIMITS
        + """
import threading
from areal_core._http import descriptors

class Lock:
    def __init__(self):
        self.lock, self.awaited = threading.Lock(), threading.Event()
    def __enter__(self):
        if not self.lock.acquire(blocking=False):
            self.awaited.set()
            self.lock.acquire()
    def __exit__(self, *_):
        self.lock.release()

def setrlimit(kind, limits):
    if threading.current_thread() is first:
        second.start()
        while second.is_alive() and not descriptors._lock.awaited.wait(0.01):
            pass
    really_set(kind, limits)

limits(300, 4000)
assert isinstance(descriptors._lock, type(threading.Lock()))
descriptors._lock = Lock()
really_set, resource.setrlimit = resource.setrlimit, setrlimit
first = threading.Thread(target=ensure_descriptors, args=(1000,))
second = threading.Thread(target=ensure_descriptors, args=(2000,))
first.start()
first.join()
second.join()
print(limits())
"""
    )
    assert (child.stdout, child.stderr) == ("(2256, 4000)\n", "")


def test_a_child_forked_while_the_lock_is_held_is_not_stuck(run_script: RunScript) -> None:
    child = run_script(
        LIMITS
        + """
import os
from areal_core._http import descriptors
with descriptors._lock:
    child = os.fork()
    if child == 0:
        os._exit(0 if ensure_descriptors(1) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""",
        timeout=10,
    )
    assert (child.stdout, child.stderr) == ("0\n", "")
