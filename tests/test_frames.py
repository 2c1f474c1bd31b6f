"""Looking at what other threads do."""

from __future__ import annotations

import pytest

from children import RunScript


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
