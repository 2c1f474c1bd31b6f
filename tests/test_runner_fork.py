"""Forks beside a running runner: the child has none of it and can have its own, the parent never notices."""

from __future__ import annotations

import pytest

from children import RunScript

PRELUDE = """
    import asyncio, gc, importlib, multiprocessing, os, socket, sys, threading, traceback, warnings
    from areal_core import AsyncTaskRunner, register_loop_cleanup, workflow_context
    from areal_core.errors import RunnerStoppedError

    # Since 3.12 Python warns of a fork beside threads, whatever they are. That ours bear it is tested here.
    warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
    new_loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop

    async def give(value):
        return value

    def in_child(function, *args):
        '''Call *function* in a forked child, and return the child's exit code: 0 if it raised nothing.'''
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        try:
            function(*args)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)

    def hold_locks(runner, locked, forked):
        with runner._lifecycle, runner._life.ledger._lock, runner._life._calls._lock:
            locked.set()
            forked.wait()

    class Parked:
        '''Tasks that wait for a byte from a socket: the parent's loop must still hear of it.'''

        def __init__(self, runner, count):
            self.runner, self.pairs = runner, [socket.socketpair() for _ in range(count)]
            for ours, _ in self.pairs:
                ours.setblocking(False)
                runner.submit(self.listen, ours)
            runner.run(asyncio.sleep, 0.01)  # they are in the selector

        async def listen(self, ours):
            return await asyncio.get_running_loop().sock_recv(ours, 9)

        def release(self):
            for _, theirs in self.pairs:
                theirs.send(b"over")
            assert self.runner.wait(len(self.pairs), timeout=10) == [b"over"] * len(self.pairs)
            for pair in self.pairs:
                for end in pair:
                    end.close()
"""


def test_a_fork_pool_beside_a_hundred_live_requests(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    from aiohttp import web
    from areal_core.embedded import EmbeddedServer

    arrived, all_here, go_on = [], asyncio.Event(), asyncio.Event()

    async def answer_late(request):
        arrived.append(request)
        if len(arrived) == 100:
            all_here.set()
        await go_on.wait()
        return web.Response(text="late")

    async def serve():
        server = web.ServerRunner(web.Server(answer_late))
        await server.setup()
        await web.TCPSite(server, "127.0.0.1", 0).start()
        register_loop_cleanup(server.cleanup)
        return f"http://127.0.0.1:{server.addresses[0][1]}"

    async def get(url):
        session = await workflow_context.get_aiohttp_session()
        async with session.get(url) as reply:
            return await reply.text()

    async def generate(url):
        session = await workflow_context.get_aiohttp_session()
        sampling = {"max_new_tokens": 3, "ignore_eos": True}
        async with session.post(url + "/generate", json={"text": "?", "sampling_params": sampling}) as reply:
            return len((await reply.json())["output_ids"])

    def generate_ten(url):
        with AsyncTaskRunner(10, loop_factory=new_loop) as own:
            for _ in range(10):
                own.submit(generate, url)
            lengths = own.wait(10, timeout=20)
        gc.collect()
        return lengths

    async def let_go_on():
        go_on.set()

    with EmbeddedServer(ms_per_token=0) as server, AsyncTaskRunner(100, loop_factory=new_loop) as runner:
        url = runner.run(serve)
        for _ in range(100):
            runner.submit(get, url)
        runner.run(all_here.wait)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            lengths = pool.map(generate_ten, [server.url] * 4, chunksize=1)
            pool.close()
            pool.join()
        assert lengths == [[3] * 10] * 4, lengths
        assert runner.stats().running == 100, runner
        runner.run(let_go_on)
        assert runner.wait(100, timeout=20) == ["late"] * 100
        assert server.stats().completed == 40, server.stats()
    print("done")
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "done\n", 0)


def test_an_inherited_runner_does_nothing_and_says_so(run_script: RunScript) -> None:
    """At once, though another thread held every lock of it at the time of the fork."""
    child = run_script(
        PRELUDE
        + """
    runner = AsyncTaskRunner(8, loop_factory=new_loop)
    runner.initialize()
    parked = Parked(runner, 2)
    results = runner.as_completed()
    options = runner.with_options(task_timeout=9)
    locked, forked = threading.Event(), threading.Event()

    def refused(call, *args):
        try:
            call(*args)
        except RunnerStoppedError as error:
            assert str(error).startswith("runner of another process"), error
        else:
            raise AssertionError(f"{call} was not refused")

    def be_inert():
        assert repr(runner).startswith("<AsyncTaskRunner runner of another process "), runner
        assert runner.stats().state == "runner of another process"
        assert runner.destroy() is None
        assert runner.destroy(timeout=0) is None
        assert runner.__exit__(None, None, None) is None
        refused(runner.initialize)
        refused(runner.__enter__)
        refused(runner.submit, give, 1)
        refused(options.submit, give, 1)
        refused(runner.run, give, 1)
        refused(asyncio.run, runner.arun(give, 1))
        refused(runner.wait, 1)
        refused(runner.wait, 1, 0)
        refused(runner.wait_for_task, 1)
        refused(runner.as_completed)
        refused(next, results)
        refused(runner.cancel, 1)
        refused(runner.pause)
        refused(runner.resume)
        refused(runner.get_queue_sizes)
        refused(runner.get_input_queue_size)
        refused(runner.get_output_queue_size)
        for name in ("paused", "exiting", "thread"):
            refused(getattr, runner, name)
        with AsyncTaskRunner(1, loop_factory=new_loop) as own:
            own.submit(give, 7)
            assert own.wait(1, timeout=10) == [7]

    holder = threading.Thread(target=hold_locks, args=(runner, locked, forked))
    holder.start()
    locked.wait()
    print(in_child(be_inert))
    forked.set()
    holder.join()
    parked.release()
    runner.destroy()
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "0\n", 0)


ENDINGS = {
    "os._exit": "os._exit(0)",
    "sys.exit": "sys.exit(0)",
    "falling off the end": "pass",
    "collecting first": "runner = parked = None; gc.collect(); sys.exit(0)",
    "leaving a runner of its own": """
        own = AsyncTaskRunner(1, loop_factory=new_loop)
        own.initialize()
        own.submit(asyncio.sleep, 60)""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_parent_does_not_notice_how_its_child_ends(run_script: RunScript, ending: str) -> None:
    """Nor does the child wait for locks that another thread held, or complain of what it inherited."""
    child = run_script(
        PRELUDE
        + f"""
    async def park():
        await asyncio.get_running_loop().create_future()

    async def park_a_child():
        await asyncio.create_task(park())

    locked, forked, over = threading.Event(), threading.Event(), threading.Event()
    runner = AsyncTaskRunner(16, loop_factory=new_loop)
    runner.initialize()
    runner.submit(park)
    runner.submit(park_a_child)
    runner.submit(asyncio.to_thread, over.wait)
    parked = Parked(runner, 8)
    holder = threading.Thread(target=hold_locks, args=(runner, locked, forked))
    holder.start()
    locked.wait()
    if pid := os.fork():
        forked.set()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        parked.release()
        over.set()
        runner.destroy()
        print("parent")
    else:
        {ENDINGS[ending]}
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "0\nparent\n", 0)


def test_a_child_forked_by_a_task_has_a_runner_of_its_own(run_script: RunScript) -> None:
    """It runs on what was the loop thread, and must not take itself for it."""
    child = run_script(
        PRELUDE
        + """
    def be_a_child():
        try:
            runner.run(give, 1)
        except RunnerStoppedError:
            pass
        runner.destroy()
        with AsyncTaskRunner(1, loop_factory=new_loop) as own:
            own.submit(give, 7)
            assert own.wait(1, timeout=10) == [7]
        del own
        gc.collect()

    async def fork():
        return in_child(be_a_child)

    with AsyncTaskRunner(8, loop_factory=new_loop) as runner:
        parked = Parked(runner, 4)
        print(runner.run(fork))
        parked.release()
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "0\n", 0)


def test_a_grandchild_is_no_better_off_than_a_child(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    def look(runner):
        assert runner.stats().state == "runner of another process"
        gc.collect()

    def fork_again(first):
        with AsyncTaskRunner(8, loop_factory=new_loop) as second:
            parked = Parked(second, 4)
            assert in_child(look, first) == 0
            assert in_child(look, second) == 0
            parked.release()

    with AsyncTaskRunner(8, loop_factory=new_loop) as runner:
        parked = Parked(runner, 4)
        print(in_child(fork_again, runner))
        parked.release()
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "0\n", 0)


def test_a_child_does_not_wait_for_what_another_thread_imports_at_the_fork(run_script: RunScript) -> None:
    """The lock of a module that is half imported is held for ever in the child."""
    child = run_script(
        PRELUDE
        + """
    from importlib.abc import MetaPathFinder

    class SlowToFind(MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "_ctypes":
                come_so_far.set()
                go_on.wait()

    def import_ctypes():
        import ctypes
        come_so_far.set()

    come_so_far, go_on = threading.Event(), threading.Event()
    with AsyncTaskRunner(8, loop_factory=new_loop) as runner:
        sys.meta_path.insert(0, SlowToFind())
        importer = threading.Thread(target=import_ctypes)
        importer.start()
        come_so_far.wait()
        print(in_child(gc.collect))
        go_on.set()
        importer.join()
    """,
        timeout=10.0,
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "0\n", 0)


def test_a_python_without_ctypes_runs_and_forks_like_others(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    def use():
        gc.collect()
        with AsyncTaskRunner(8, loop_factory=new_loop) as own:
            own.submit(give, 7)
            assert own.wait(1, timeout=10) == [7]

    sys.modules["ctypes"] = None
    with AsyncTaskRunner(8, loop_factory=new_loop) as runner:
        parked = Parked(runner, 4)
        print(in_child(use))
        parked.release()
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "0\n", 0)


@pytest.mark.any_loop
@pytest.mark.parametrize("ctypes", ["there", "missing"])
def test_what_is_pinned_is_kept(run_script: RunScript, ctypes: str) -> None:
    child = run_script(
        f"""
        import gc, sys, weakref
        from areal_core import _process

        if {ctypes!r} == "missing":
            sys.modules["ctypes"] = None

        class Kept:
            pass

        kept = Kept()
        is_there = weakref.ref(kept)
        _process.pin(kept)
        del kept
        gc.collect()
        print(is_there() is not None)
        """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "True\n", 0)


def test_a_runner_made_and_not_initialized_before_a_fork_is_the_childs(run_script: RunScript) -> None:
    child = run_script(
        PRELUDE
        + """
    runner = AsyncTaskRunner(8, loop_factory=new_loop)

    def use():
        with runner:
            runner.submit(give, 7)
            assert runner.wait(1, timeout=10) == [7]

    print(in_child(use))
    use()
    print(in_child(lambda: print(runner.stats().state, flush=True)))
    """
    )
    assert (child.stderr, child.stdout, child.returncode) == ("", "0\nrunner of another process\n0\n", 0)
