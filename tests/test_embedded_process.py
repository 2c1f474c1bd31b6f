"""The embedded server as a command and as a child process, which is never left behind."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import aiohttp
import pytest

from areal_core.embedded import EmbeddedServer
from children import RunScript, StartScript, without_slow_callbacks

# The command, on the loop the test asks for.
COMMAND = """
    import os, sys
    if os.environ["AREAL_TEST_LOOP"] == "asyncio":
        sys.modules["uvloop"] = None
    from areal_core.embedded.__main__ import main
    sys.exit(main())
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has descriptors for processes")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """Share a server that answers at once."""
    with EmbeddedServer(ms_per_token=0) as server:
        yield server


def listening(child: subprocess.Popen[str]) -> tuple[str, int]:
    """Wait for the line the command prints; return host and port."""
    assert child.stdout is not None
    line = json.loads(child.stdout.readline())
    assert line == {"addr": line["addr"], "pid": child.pid}
    host, _, port = line["addr"].rpartition(":")
    return host, int(port)


def ended(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end of *child*; return its status and the rest of its output."""
    stdout, stderr = child.communicate(timeout=10)
    return child.returncode, stdout, without_slow_callbacks(stderr)


def wait_for_end(pid: int) -> None:
    """Wait until the process *pid*, no child of ours, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([descriptor], [], [], 10)[0]:
            os.kill(pid, signal.SIGKILL)
            pytest.fail("the server outlived its parent")
    finally:
        os.close(descriptor)


def descriptors() -> list[str]:
    return sorted(os.listdir("/dev/fd"))  # noqa: PTH208 - names of descriptors, not paths


# The command


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_on_a_signal_and_cuts_off_what_runs(
    start_script: StartScript, signum: signal.Signals
) -> None:
    child = start_script(COMMAND, "--ms-per-token=1e6")
    address = listening(child)
    with ExitStack() as stack:
        running, waiting = (
            stack.enter_context(closing(http.client.HTTPConnection(*address, timeout=10))) for _ in range(2)
        )
        running.request("POST", "/generate", b'{"text": "x"}')
        waiting.request("GET", "/stats?in_flight=1")
        assert json.loads(waiting.getresponse().read())["in_flight"] == 1
        waiting.request("GET", "/stats?in_flight=2")
        child.send_signal(signum)
        child.send_signal(signum)
        assert ended(child) == (0, "", "")
        for connection in (running, waiting):
            with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
                connection.getresponse()


@pytest.mark.any_loop
def test_a_signal_at_any_moment_ends_the_command_quietly(run_script: RunScript) -> None:
    # While aiohttp is imported, when all is over, and while the interpreter is finalized.
    script = """
        import os, signal, sys
        from areal_core.embedded.__main__ import main

        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "aiohttp":
                    os.kill(os.getpid(), signal.SIGINT)

        class Late:
            def __del__(self, kill=os.kill, pid=os.getpid(), signum=signal.SIGTERM):
                kill(pid, signum)

        late = Late()
        sys.meta_path.insert(0, Finder())
        status = main(["--port=0"])
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        sys.exit(status)
    """
    done = run_script(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith('{"addr": "127.0.0.1:')


@pytest.mark.any_loop
def test_the_command_refuses_a_bad_option_in_one_sentence(run_script: RunScript) -> None:
    done = run_script(COMMAND, "--port=70000")
    assert (done.returncode, done.stdout) == (2, "")
    usage, *_, problem = done.stderr.splitlines()
    assert usage == "usage: python -m areal_core.embedded [-h] [--host HOST] [--port PORT]"
    assert (
        problem == "python -m areal_core.embedded: error: port=70000 is not in 0..65535; 0 takes a free one"
    )


@pytest.mark.any_loop
def test_an_address_that_cannot_be_had_ends_the_command_with_one_sentence(
    run_script: RunScript, server: EmbeddedServer
) -> None:
    port = server.addr.rpartition(":")[2]
    for host, arguments in (("127.0.0.1", [f"--port={port}"]), ("a..b", ["--host=a..b", f"--port={port}"])):
        done = run_script(COMMAND, *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(f"cannot listen on {re.escape(host)}, port {port}: .+\n", done.stderr)


@linux
@pytest.mark.any_loop
def test_a_command_that_cannot_say_its_address_ends_with_one_sentence(run_script: RunScript) -> None:
    done = run_script(
        """
        import os, subprocess, sys
        descriptor = os.open("/dev/full", os.O_WRONLY)
        command = [sys.executable, "-W", "error", "-m", "areal_core.embedded"]
        sys.exit(subprocess.run(command, stdout=descriptor).returncode)
        """
    )
    said = "cannot say where it listens: No space left on device\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_the_command_ends_when_the_pipe_from_its_parent_does(start_script: StartScript) -> None:
    child = start_script(COMMAND, f"--parent={os.getpid()}")
    listening(child)
    assert child.stdin is not None
    child.stdin.close()
    child.stdin = None
    assert ended(child) == (0, "", "")


@linux
def test_the_command_ends_with_its_parent_though_another_process_holds_the_pipe(
    start_script: StartScript,
) -> None:
    # Here that other process is this one.
    parent = start_script("input()")
    child = start_script(COMMAND, f"--parent={parent.pid}")
    listening(child)
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    assert child.wait(timeout=10) == 0
    assert ended(child) == (0, "", "")
    late = start_script(COMMAND, f"--parent={parent.pid}")
    assert late.wait(timeout=10) == 0
    listening(late)
    assert ended(late) == (0, "", "")


# The child process: start and stop


def test_importing_the_class_imports_no_http_library(run_script: RunScript) -> None:
    done = run_script(
        """
        import sys
        from areal_core.embedded import EmbeddedServer
        EmbeddedServer()
        print({"aiohttp", "httpx", "uvloop"} & set(sys.modules))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")


def test_start_and_stop_may_be_repeated_and_the_address_stays() -> None:
    before = descriptors()
    server = EmbeddedServer(ms_per_token=0)
    with pytest.raises(RuntimeError, match=r"^the embedded server has no address yet; call start\(\)"):
        _ = server.url
    server.stop()
    assert repr(server) == "<EmbeddedServer without address stopped>"
    with server:
        pid, addr = server.pid, server.addr
        server.start()
        assert (server.pid, server.addr, server.running) == (pid, addr, True)
        assert repr(server) == f"<EmbeddedServer {addr} running>"
        server.stop()
        server.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        for ask in (server.stats, lambda: server.pid):
            with pytest.raises(RuntimeError, match=r"^the embedded server does not run; call start\(\)"):
                ask()
        server.start()
        assert (server.addr, server.stats().connections) == (addr, 1)
        assert server.pid != pid
    assert descriptors() == before


def test_a_server_that_died_starts_again_at_its_address() -> None:
    before = descriptors()
    with EmbeddedServer(ms_per_token=0) as server:
        addr = server.addr
        server.kill()
        assert not server.running
        with pytest.raises(RuntimeError, match=r"^the embedded server does not run; call start\(\)"):
            server.stats()
        server.start()
        assert (server.addr, server.stats().connections) == (addr, 1)
        server.kill()
    assert descriptors() == before


def test_threads_that_start_a_server_at_once_get_one_which_outlives_them() -> None:
    server = EmbeddedServer(ms_per_token=0)
    pids: list[int] = []

    def start() -> None:
        server.start()
        pids.append(server.pid)

    threads = [threading.Thread(target=start) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(pids), len(set(pids))) == (3, 1)
        assert server.stats().requests == 1
    finally:
        server.stop()


def test_a_server_works_beside_a_running_loop(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def talk() -> int:
        with EmbeddedServer(ms_per_token=0) as server:
            async with aiohttp.request("GET", f"{server.url}/health") as reply:
                return reply.status

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(talk()) == 200


def test_a_server_on_ipv6_has_an_address_for_a_url() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with EmbeddedServer(host="::1", ms_per_token=0) as server:
        assert re.fullmatch(r"http://\[::1\]:\d+", server.url)
        assert server.stats().requests == 1


def test_a_port_in_use_is_told_in_the_words_of_the_server(server: EmbeddedServer) -> None:
    before = descriptors()
    port = int(server.addr.rpartition(":")[2])
    problem = f"^the embedded server ended with status 1 and said: cannot listen on 127.0.0.1, port {port}: "
    second = EmbeddedServer(port=port)
    with pytest.raises(RuntimeError, match=problem):
        second.start()
    assert not second.running
    assert descriptors() == before


@pytest.mark.any_loop
def test_a_start_that_takes_too_long_is_given_up_and_leaves_nothing(run_script: RunScript) -> None:
    done = run_script(
        """
        import os
        from areal_core.embedded import EmbeddedServer

        before = os.listdir("/dev/fd")
        try:
            EmbeddedServer(start_timeout=0.001).start()
        except TimeoutError as error:
            print(str(error).partition(";")[0])
        assert os.listdir("/dev/fd") == before
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("no child")
        """
    )
    said = "the embedded server did not listen within 0.001 s\nno child\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_what_the_server_says_on_stderr_is_passed_on_when_it_stops(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "bogus")
    with EmbeddedServer(ms_per_token=0):
        pass
    assert capsys.readouterr().err == "Invalid -W option ignored: invalid action: 'bogus'\n"


@pytest.mark.any_loop
def test_the_server_imports_from_where_its_parent_does(run_script: RunScript, tmp_path: Path) -> None:
    # The parent's path has the directory of its script, and not the one it works in.
    (tmp_path / "uvloop.py").write_text("import sys; sys.stderr.write('found'); raise ImportError")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "json.py").write_text("raise SystemExit('this is not the json of its parent')")
    done = run_script(
        """
        import os
        from areal_core.embedded import EmbeddedServer

        os.chdir("work")
        with EmbeddedServer():
            pass
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "found")


def test_an_interpreter_that_cannot_be_run_is_an_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = descriptors()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    server = EmbeddedServer()
    with pytest.raises(FileNotFoundError, match="/nowhere/python"):
        server.start()
    assert not server.running
    assert descriptors() == before


@pytest.mark.any_loop
def test_more_connections_than_the_soft_limit_of_descriptors_are_accepted(start_script: StartScript) -> None:
    parent = start_script(
        """
        import resource, sys
        from areal_core.embedded import EmbeddedServer

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        with EmbeddedServer(ms_per_token=0) as server:
            print(server.addr, flush=True)
            sys.stdin.read()
            print(server.stats(connections=101).connections)
        """
    )
    assert parent.stdout is not None
    host, port = parent.stdout.readline().strip().split(":")
    with ExitStack() as sockets:
        for _ in range(100):
            sockets.enter_context(socket.create_connection((host, int(port))))
        assert ended(parent) == (0, "101\n", "")


# The child process: its end


def test_an_exception_in_the_block_stops_the_server() -> None:
    with pytest.raises(ZeroDivisionError), EmbeddedServer(ms_per_token=0) as server:
        1 / 0  # noqa: B018
    assert not server.running


def test_a_server_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("areal_core.embedded._child._STOP_GRACE_S", 0.01)
    with EmbeddedServer(ms_per_token=0) as server:
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.any_loop
def test_a_stop_that_is_interrupted_leaves_nothing(run_script: RunScript) -> None:
    done = run_script(
        """
        import os, signal
        from areal_core.embedded import EmbeddedServer

        before = os.listdir("/dev/fd")
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        server = EmbeddedServer(ms_per_token=0)
        server.start()
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)  # so that the alarm finds stop() waiting
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            server.stop()
        except KeyboardInterrupt:
            print("interrupted")
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            print("gone")
        server.stop()
        assert os.listdir("/dev/fd") == before
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\ngone\n", "")


@pytest.mark.any_loop
def test_a_server_nobody_stopped_is_stopped_when_collected_with_a_warning(run_script: RunScript) -> None:
    # The warning is an error here, which must not keep the server from being stopped.
    done = run_script(
        """
        import gc, os, sys
        from areal_core.embedded import EmbeddedServer

        unraisable = []
        sys.unraisablehook = unraisable.append
        for in_a_cycle in (False, True):
            server = EmbeddedServer(ms_per_token=0)
            server.start()
            if in_a_cycle:
                server.itself = server
            pid, addr = server.pid, server.addr
            del server
            gc.collect()
            print(str(unraisable.pop().exc_value).replace(addr, "ADDR"))
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                print("gone")
        print(unraisable)
        """
    )
    said = "<EmbeddedServer ADDR running> was never stopped; use it in a `with`\ngone\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{said}{said}[]\n", "")


@pytest.mark.any_loop
def test_a_server_ends_with_the_interpreter_and_nothing_is_said(run_script: RunScript) -> None:
    done = run_script(
        """
        from areal_core.embedded import EmbeddedServer
        server = EmbeddedServer(ms_per_token=0)
        server.start()
        print(server.pid)
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


@linux
@pytest.mark.any_loop
@pytest.mark.parametrize("worker", ["no worker", "forked worker"])
def test_a_server_ends_with_a_parent_that_is_killed(start_script: StartScript, worker: str) -> None:
    parent = start_script(
        """
        import os, signal, sys
        from areal_core.embedded import EmbeddedServer

        server = EmbeddedServer(ms_per_token=0)
        server.start()
        if sys.argv[1] == "forked worker" and os.fork() == 0:
            signal.pause()
        print(server.pid, flush=True)
        signal.pause()
        """,
        worker,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    wait_for_end(pid)
    assert parent.wait() == -signal.SIGKILL


@pytest.mark.any_loop
def test_ctrl_c_leaves_the_server_to_its_parent(
    start_script: StartScript,
) -> None:
    child = start_script(
        """
        import signal, sys
        from areal_core.embedded import EmbeddedServer

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        with EmbeddedServer(ms_per_token=0) as server:
            try:
                print("ready", flush=True)
                sys.stdin.read()
            except KeyboardInterrupt:
                print(server.stats().requests, flush=True)
        """
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    os.killpg(child.pid, signal.SIGINT)
    assert ended(child) == (0, "1\n", "")


@pytest.mark.any_loop
def test_a_forked_child_has_a_stopped_server_and_leaves_that_of_its_parent_alone(
    run_script: RunScript,
) -> None:
    done = run_script(
        """
        import gc, os, sys
        from areal_core.embedded import EmbeddedServer

        before = os.listdir("/dev/fd")
        with EmbeddedServer(ms_per_token=0) as server:
            addr = server.addr
            pid = os.fork()
            if pid == 0:
                # Not even the pipe is open whose end is the end of the server.
                assert os.listdir("/dev/fd") == before
                server.stop()
                with server:
                    print(server.addr != addr, server.stats().requests)
                del server
                gc.collect()
                sys.exit()
            assert os.waitpid(pid, 0)[1] == 0
            print(server.stats().requests)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True 1\n1\n", "")
