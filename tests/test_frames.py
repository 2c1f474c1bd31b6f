"""Looking at what other threads do."""

from __future__ import annotations

import gc
import sys

import pytest

from areal_core._frames import frames_of_threads
from children import RunScript
from interrupts import each_step, interrupt


@pytest.mark.any_loop
def test_a_garbage_collection_while_it_looks_does_not_stop_the_process(run_script: RunScript) -> None:
    script = run_script(
        """
        import gc, threading, time
        from areal_core._frames import frames_of_threads

        def make_garbage():
            local = threading.local()
            local.value = 1
            cycle = [local]
            cycle.append(cycle)

        def make_more():
            while not done.is_set():
                make_garbage()

        done = threading.Event()
        gc.set_threshold(7, 1, 1)
        threads = [threading.Thread(target=make_more) for _ in range(2)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            make_garbage()
            assert threading.get_ident() in frames_of_threads()
        done.set()
        for thread in threads:
            thread.join()
        print(gc.isenabled())
        gc.disable()
        frames_of_threads()
        print(gc.isenabled())
        """,
        timeout=10,
        flags=("-W", "error"),
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "True\nFalse\n", "")


@pytest.mark.any_loop
def test_a_garbage_collection_between_a_frame_and_its_caller_does_not_kill_the_process(
    run_script: RunScript,
) -> None:
    script = run_script(
        """
        import gc, random, threading, time
        from areal_core._frames import frames_of_threads, with_callers

        class GivesTheInterpreterAway:
            def __init__(self):
                self.cycle = self

            def __del__(self):
                time.sleep(0.0001)

        # The stack is another one each time, and so is the size of each frame.
        functions = []
        for number in range(30):
            names = "=".join(f"v{k}" for k in range(number + 1))
            scope = {"functions": functions}
            exec(
                f"def call(depth):\\n"
                f"    {names} = float(depth)\\n"
                f"    return functions[(depth * 7 + {number}) % 30](depth - 1) + 1 if depth else 0",
                scope,
            )
            functions.append(scope["call"])

        def run_on():
            while not done.is_set():
                random.choice(functions)(random.randrange(100))

        done = threading.Event()
        thread = threading.Thread(target=run_on)
        thread.start()
        gc.set_threshold(7)
        before = gc.get_threshold()
        try:
            for _ in range(300):
                GivesTheInterpreterAway()
                frames = with_callers(frames_of_threads()[thread.ident])
                assert frames[-1].f_code.co_name == "_bootstrap"
        finally:
            done.set()
        thread.join()
        print(gc.get_threshold() == before)
        """,
        timeout=30,
        flags=("-W", "error"),
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "True\n", "")


needs_it = pytest.mark.skipif(sys.version_info >= (3, 12), reason="collects between two instructions only")


@needs_it
@pytest.mark.any_loop
def test_a_threshold_of_collections_set_while_it_looks_stays(run_script: RunScript) -> None:
    script = run_script(
        """
        import gc
        from areal_core import _frames

        before = gc.get_threshold()
        print(_frames.uncollected(lambda: gc.get_threshold()[0]), gc.get_threshold() == before)
        _frames.uncollected(gc.set_threshold, 33, 3, 3)
        print(gc.get_threshold())
        gc.set_threshold(0)
        print(_frames.uncollected(lambda: _frames.uncollected(int)), gc.get_threshold())
        """,
        flags=("-W", "error"),
    )
    assert (script.returncode, script.stdout) == (0, "0 True\n(33, 3, 3)\n0 (0, 3, 3)\n"), script.stderr


@needs_it
@pytest.mark.any_loop
def test_a_child_forked_while_a_thread_looks_collects_and_can_look(run_script: RunScript) -> None:
    script = run_script(
        """
        import gc, os, sys, threading
        from areal_core import _frames

        before = gc.get_threshold()
        looking, forked = threading.Event(), threading.Event()

        def look():
            looking.set()
            forked.wait()

        thread = threading.Thread(target=_frames.uncollected, args=(look,))
        thread.start()
        looking.wait()
        child = os.fork()
        if child == 0:
            print(gc.get_threshold() == before, len(_frames.frames_of_threads()), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        forked.set()
        thread.join()
        print(gc.get_threshold() == before)
        """,
        timeout=20,
    )
    assert (script.returncode, script.stdout) == (0, "True 1\nTrue\n"), script.stderr


@needs_it
@pytest.mark.any_loop
def test_a_coroutine_that_ends_while_its_frame_is_made_leaves_no_frame_of_memory_that_is_anothers(
    run_script: RunScript,
) -> None:
    script = run_script(
        """
        import gc, sys, threading, time, types, weakref
        from areal_core._frames import uncollected

        class GivesTheInterpreterAway:
            def __init__(self):
                self.cycle = self

            def __del__(self):
                time.sleep(0.0005)

        class Pause:
            def __await__(self):
                yield

        async def pause():
            await Pause()

        def run_on():
            while not done.is_set():
                coroutine = pause()
                coroutine.send(None)
                there.append(coroutine)
                time.sleep(0.0001)
                try:
                    coroutine.send(None)
                except StopIteration:
                    pass

        done, there = threading.Event(), []
        thread = threading.Thread(target=run_on)
        thread.start()
        frame_of = types.CoroutineType.cr_frame.__get__
        kept, end = set(), time.monotonic() + 0.5
        gc.set_threshold(0)
        try:
            while time.monotonic() < end:
                if not there:
                    continue
                GivesTheInterpreterAway()
                coroutine = there.pop()
                gc.set_threshold(1)
                frame = uncollected(frame_of, coroutine)
                gc.set_threshold(0)
                gc.collect()
                there.clear()
                if frame is None:
                    continue
                gone = weakref.ref(coroutine)
                del coroutine
                while gone() is not None:
                    time.sleep(0)
                kept.add(sys.getrefcount(frame))  # a frame of nobody's is referred to for ever
        finally:
            done.set()
        thread.join()
        print(*kept - {2})
        """,
        timeout=30,
        flags=("-W", "error"),
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "\n", "")


@needs_it
@pytest.mark.any_loop
def test_a_ctrl_c_at_any_step_of_a_look_leaves_collections_as_they_were() -> None:
    before, after = list[int](), list[int]()

    def look() -> None:
        before.append(gc.get_threshold()[0])
        try:
            frames_of_threads()
        finally:
            after.append(gc.get_threshold()[0])

    for step in each_step():
        outcome = interrupt(look, step)
        assert {*before} == {*after}, outcome.where
        if not outcome.tripped:
            break
    assert step > 5
    assert before[0] > 0


@pytest.mark.any_loop
def test_who_registers_a_cleanup_asks_no_close_that_is_no_loops_for_its_variables(
    run_script: RunScript,
) -> None:
    script = run_script(
        """
        import asyncio, threading
        from areal_core.loop_cleanup import register_loop_cleanup

        class Handle:
            def __del__(self):
                ended.append(self)

        class Thing:
            def close(self):
                handle = Handle()
                inside.set()
                looked.wait()
                handle = Handle()  # the one before is held by what has looked, if anything has
                inside_again.set()
                looked_again.wait()

        def register():
            loop = asyncio.new_event_loop()
            register_loop_cleanup(lambda: None, loop=loop)
            loop.close()

        inside, looked, inside_again, looked_again = (threading.Event() for _ in range(4))
        ended = []
        thread = threading.Thread(target=Thing().close)
        thread.start()
        inside.wait()
        register()
        looked.set()
        inside_again.wait()
        print(len(ended))
        looked_again.set()
        thread.join()
        """,
        timeout=30,
        flags=("-W", "error"),
    )
    assert (script.returncode, script.stdout, script.stderr) == (0, "1\n", "")
