"""An engine from `initialize` to `destroy`: servers at first, threads and loops, forks, the end."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import noticed
from areal_core._engine.backends import sglang
from areal_core._engine.deadlines import Deadlines
from areal_core._engine.events import Events
from areal_core._engine.generation import Generation
from areal_core._engine.limits import Limits
from areal_core._engine.opening import Opening
from areal_core._engine.router import Router
from areal_core._engine.running import Running
from areal_core.async_task_runner import AsyncTaskRunner
from areal_core.config import InferenceEngineConfig
from areal_core.errors import EngineStoppedError, ServerUnreachableError
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import ModelRequest, ModelResponse
from children import RunScript
from conftest import MakeRunner
from engine_tools import Sending, a_request, an_engine, check_balanced, check_none_live, check_reply
from logged import LogLines, LogLinesHandler
from reused_servers import ReusedServer
from threaded_loops import MakeLoop, ThreadedLoop, threaded_loops, turns_until

Run = AsyncTaskRunner[Any]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("areal_core._engine.prober._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("areal_core._engine.prober._PROBE_EVERY_S", 0.1)
    noticed.notice(monkeypatch, Router, "put_in", "take_out")


@pytest.fixture
def servers(servers: list[ReusedServer]) -> list[ReusedServer]:
    return servers[:2]


@pytest.fixture
def runner(make_runner: MakeRunner) -> Run:
    return make_runner(1000)


@pytest.fixture
def unused() -> Iterator[str]:
    """Give an address where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        yield f"127.0.0.1:{held.getsockname()[1]}"


def an_idle_engine(**config: Any) -> RemoteInfEngine:
    return RemoteInfEngine(InferenceEngineConfig(**{"setup_timeout": 10.0, **config}))


def generate(runner: Run, engine: RemoteInfEngine, times: int = 4) -> None:
    request = a_request(most=2)
    for reply in Sending(runner, engine).replies([request] * times):
        check_reply(reply, request, latest=0)


def prober_of(engine: RemoteInfEngine) -> asyncio.Task[None] | None:
    assert engine._state is not None
    return engine._state.lookout._task


def runs(prober: asyncio.Task[None] | None) -> bool:
    return prober is not None and not prober.done()


# -- initialize


def test_initialize_waits_until_the_servers_are_well(servers: list[ReusedServer]) -> None:
    servers[0].faults(["status=503,next=1,path=/health"])
    servers[1].faults(["status=503,next=8,path=/health"])
    with an_engine(*servers) as engine:
        assert set(engine.servers.values()) == {None}
        assert [server.stats().faults["status_503"] for server in servers] == [1, 8]


def test_with_min_servers_it_begins_without_the_others_when_the_time_is_over(
    servers: list[ReusedServer], unused: str
) -> None:
    with an_engine(servers[0], unused, setup_timeout=0.3) as engine:
        assert engine.servers[servers[0].addr] is None
        assert "cannot be reached" in (engine.servers[unused] or "")


def test_with_fewer_the_error_names_each_server_and_why(servers: list[ReusedServer], unused: str) -> None:
    engine = an_idle_engine(setup_timeout=0.3, min_servers=3)
    servers[1].faults(["status=503,path=/health"])
    with pytest.raises(ServerUnreachableError) as caught:
        engine.initialize([servers[0].addr, servers[1].addr, unused])
    text = str(caught.value)
    assert "1 servers were ready within setup_timeout=0.3 s, where min_servers=3" in text
    assert f"{unused} is out: {unused} cannot be reached: Connect call failed" in text
    assert f"{servers[1].addr} is out: {servers[1].addr} answered GET /health with 503" in text
    assert servers[0].addr not in text


def test_an_engine_whose_initialize_failed_can_be_initialized(
    servers: list[ReusedServer], unused: str
) -> None:
    engine = an_idle_engine(setup_timeout=0.3)
    with pytest.raises(ServerUnreachableError):
        engine.initialize(unused)
    assert "stopped" in repr(engine)
    engine.initialize(servers[0].addr)
    with pytest.raises(RuntimeError, match="initialized already"):
        engine.initialize(servers[0].addr)
    engine.destroy()


@pytest.mark.any_loop
@pytest.mark.parametrize(
    "addr", ["127.0.0.1", "http://", "ftp://a:1", "a:99999", "", [], ["a:1", "b"], ["a:1 "]]
)
def test_what_is_no_address_is_refused_at_once(loop_name: str, addr: Any) -> None:
    with pytest.raises(ValueError, match="addr"):
        an_idle_engine().initialize(addr)


@pytest.mark.any_loop
def test_an_address_given_twice_is_refused(loop_name: str) -> None:
    with pytest.raises(ValueError, match="one of the servers already"):
        an_idle_engine().initialize(["a:80", "http://A/"])


def test_the_environment_can_name_the_servers(
    servers: list[ReusedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = an_idle_engine()
    monkeypatch.delenv("AREAL_LLM_SERVER_ADDRS", raising=False)
    with pytest.raises(ValueError, match="AREAL_LLM_SERVER_ADDRS is not set"):
        engine.initialize()
    monkeypatch.setenv("AREAL_LLM_SERVER_ADDRS", f" {servers[0].addr} ,http://{servers[1].addr},")
    engine.initialize()
    assert engine.servers.keys() == {server.addr for server in servers}
    engine.destroy()


def test_on_the_thread_of_a_loop_the_blocking_calls_refuse(
    loop_factory: MakeLoop, servers: list[ReusedServer]
) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"initialize\(\) blocks"):
            an_idle_engine().initialize(servers[0].addr)
        with pytest.raises(RuntimeError, match=r"destroy\(\) blocks"):
            an_idle_engine().destroy()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.any_loop
def test_the_logger_gets_the_lines_of_the_whole_engine(loop_name: str, servers: list[ReusedServer]) -> None:
    lines, logger = LogLines(), logging.getLogger("one of a test")
    logger.addHandler(LogLinesHandler(lines))
    logger.setLevel(logging.INFO)

    def raises(_: int) -> None:
        raise ZeroDivisionError

    engine = an_idle_engine()
    engine.subscribe(raises)
    engine.initialize(servers[0].addr, logger)
    engine.set_version(1)
    engine.destroy()
    assert [line.message.split()[0] for line in lines] == ["server_in_rotation", "version_subscriber_raised"]


@pytest.mark.any_loop
def test_what_is_no_backend_or_config_is_refused(loop_name: str) -> None:
    with pytest.raises(ValueError, match="sglang"):
        RemoteInfEngine(InferenceEngineConfig(), "nobody")
    with pytest.raises(TypeError, match="InferenceEngineConfig"):
        RemoteInfEngine({})  # type: ignore[arg-type]


# -- destroy


def test_destroy_ends_generations_under_way_and_aborts_them(runner: Run, servers: list[ReusedServer]) -> None:
    with an_engine(*servers) as engine:
        sending = Sending(runner, engine)
        tasks = [sending.send(a_request(most=5000)) for _ in range(8)]
        for server in servers:
            server.stats(in_flight=4)
        engine.destroy()
        for task in tasks:
            error = sending.ending(task)
            assert isinstance(error, EngineStoppedError)
            assert "destroyed" in str(error)
        check_none_live(*servers)


@pytest.mark.parametrize("waits_for", ["a pause", "a slot", "a server", "its back-off"])
def test_destroy_wakes_generations_that_wait(
    runner: Run, servers: list[ReusedServer], waits_for: str
) -> None:
    with an_engine(servers[0], max_inflight_per_server=1) as engine:
        state = engine._state
        assert state is not None
        sending = Sending(runner, engine)
        generate(runner, engine, 1)
        if waits_for == "a pause":
            runner.run(engine.pause_generation)
        elif waits_for == "a slot":
            sending.send(a_request(most=5000))
            servers[0].stats(in_flight=1)
        elif waits_for == "a server":
            servers[0].kill()
            noticed.wait_for(lambda: set(engine.servers.values()) != {None})
        else:
            servers[0].faults(["status=503,retry_after=20"])
        waits = sending.send(a_request(most=3))
        stage = {
            "a pause": "to be continued",
            "a slot": "waiting for a server",
            "a server": "waiting for a server",
            "its back-off": "backing off",
        }[waits_for]
        runner.run(turns_until, lambda: any(stage in one.stage for one in state.generations))
        engine.destroy()
        assert isinstance(sending.ending(waits), EngineStoppedError)


def test_destroy_may_be_called_again_and_from_several_threads(servers: list[ReusedServer]) -> None:
    engine = an_idle_engine()
    engine.destroy()
    engine.initialize(servers[0].addr)
    errors: list[BaseException] = []

    def destroy() -> None:
        try:
            engine.destroy()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=destroy) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.destroy()
    assert errors == []
    with pytest.raises(EngineStoppedError, match="does not run"):
        _ = engine.servers


def test_destroy_while_generations_begin_leaves_none(
    make_runner: MakeRunner, servers: list[ReusedServer]
) -> None:
    runners = [make_runner(), make_runner()]
    for _ in range(5):
        with an_engine(*servers) as engine:
            sending = [Sending(runner, engine) for runner in runners]
            tasks = [(one, one.send(a_request(most=5000))) for _ in range(20) for one in sending]
            engine.destroy()
            for one, task in tasks:
                assert isinstance(one.ending(task, timeout=10), EngineStoppedError)
    check_none_live(*servers)


def test_a_generation_that_just_began_ends_with_the_engine_too(
    runner: Run, servers: list[ReusedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with an_engine(*servers) as engine:
        really = Running.begin

        def begin(running: Running, request: ModelRequest) -> Generation:
            thread = threading.Thread(target=engine.destroy)  # in the middle of it
            thread.start()
            thread.join()
            return really(running, request)

        monkeypatch.setattr(Running, "begin", begin)
        sending = Sending(runner, engine)
        assert isinstance(sending.ending(sending.send(a_request(most=2))), EngineStoppedError)
        assert not any(server.stats().generations for server in servers)


def test_an_engine_begins_again_after_destroy(runner: Run, servers: list[ReusedServer]) -> None:
    engine = an_idle_engine()
    for _ in range(3):
        engine.initialize([server.addr for server in servers])
        generate(runner, engine)
        check_balanced(engine)
        engine.destroy()
        with pytest.raises(EngineStoppedError):
            generate(runner, engine)
    with engine:
        engine.initialize(servers[0].addr)
    assert repr(engine) == "<RemoteInfEngine sglang, version 0, stopped>"


@pytest.mark.any_loop
def test_destroy_ends_an_initialize_that_waits_for_servers(loop_name: str) -> None:
    engine = an_idle_engine(setup_timeout=4.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        begins = pool.submit(engine.initialize, f"127.0.0.1:{silent.getsockname()[1]}")
        silent.accept()[0].close()
        with pytest.raises(RuntimeError, match="initialized already"):
            engine.initialize("127.0.0.1:1")
        with pytest.raises(EngineStoppedError, match="does not run"):
            engine.add_server("127.0.0.1:1")
        engine.destroy()
        with pytest.raises(EngineStoppedError, match="destroyed"):
            begins.result()
    assert "stopped" in repr(engine)


def test_limits_that_are_stopped_before_they_begin_end_what_begins_and_complain_of_nothing(
    loop_factory: MakeLoop,
) -> None:
    async def main() -> None:
        problems: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
        limits = Limits(Deadlines(60.0, Opening(Events())), lambda: "nothing yet")
        limits.stop("destroyed")
        for _ in range(3):
            await asyncio.sleep(0)
        assert problems == []
        with pytest.raises(EngineStoppedError, match="destroyed"), limits:
            await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


# -- several loops, and the prober


def test_generations_of_two_loops_share_an_engine(
    make_runner: MakeRunner, servers: list[ReusedServer]
) -> None:
    runners = [make_runner(), make_runner()]
    with an_engine(*servers, max_inflight_per_server=4) as engine:
        request = a_request(most=20)
        tasks = []
        for number in range(60):
            sending = Sending(runners[number % 2], engine)
            tasks.append((sending, sending.send(request)))
        for sending, task in tasks:
            check_reply(sending.reply(task), request, latest=0)
        assert max(server.stats().peak for server in servers) >= 1
        check_balanced(engine)


def test_the_prober_is_on_the_loop_of_the_first_generation_and_ends_with_destroy(
    runner: Run, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers) as engine:
        assert prober_of(engine) is None
        generate(runner, engine)
        prober = prober_of(engine)
        assert runs(prober)
        generate(runner, engine)
        assert prober_of(engine) is prober
        engine.destroy()
        runner.run(turns_until, lambda: not runs(prober))


def test_when_a_loop_ends_the_next_has_the_prober(
    make_runner: MakeRunner, servers: list[ReusedServer]
) -> None:
    first, second = make_runner(), make_runner()
    with an_engine(*servers) as engine:
        generate(first, engine)
        prober = prober_of(engine)
        first.destroy()
        assert not runs(prober)
        generate(second, engine)
        assert runs(prober_of(engine))
        servers[0].kill()
        noticed.wait_for(lambda: engine.servers[servers[0].addr] is not None)
        servers[0].start()
        noticed.wait_for(lambda: engine.servers[servers[0].addr] is None)


def test_a_loop_that_only_stopped_keeps_the_next_from_nothing(
    loop_factory: MakeLoop, runner: Run, servers: list[ReusedServer]
) -> None:
    async def once(engine: RemoteInfEngine) -> ModelResponse:
        return await engine.agenerate(a_request(most=2))

    loop = loop_factory()
    with an_engine(*servers) as engine:
        loop.run_until_complete(once(engine))
        left = prober_of(engine)
        assert runs(left)
        generate(runner, engine)
        assert prober_of(engine) is not left
        assert runs(prober_of(engine))
        loop.run_until_complete(once(engine))
        assert not runs(left)
        loop.close()


def test_a_loop_that_is_just_closed_ends_the_prober(
    loop_factory: MakeLoop, servers: list[ReusedServer]
) -> None:
    async def once(engine: RemoteInfEngine) -> ModelResponse:
        return await engine.agenerate(a_request(most=2))

    with an_engine(*servers) as engine:
        loop = loop_factory()
        loop.run_until_complete(once(engine))
        prober = prober_of(engine)
        assert runs(prober)
        loop.close()
        assert not runs(prober)


def test_after_a_long_rest_without_servers_they_get_the_time_to_be_found(
    make_runner: MakeRunner, servers: list[ReusedServer]
) -> None:
    first, second = make_runner(), make_runner()
    with an_engine(servers[0]) as engine:
        generate(first, engine)
        servers[0].kill()
        noticed.wait_for(lambda: set(engine.servers.values()) != {None})
        first.destroy()
        assert engine._state is not None
        engine._state.router._deserted_since = 0.0  # long ago
        servers[0].start()
        generate(second, engine)


def test_a_prober_that_dies_is_told_of_and_replaced(
    runner: Run, servers: list[ReusedServer], log_lines: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    with an_engine(*servers) as engine:
        with monkeypatch.context() as broken:
            broken.setattr("areal_core._engine.prober._LOOK_EVERY_S", None)
            generate(runner, engine)
            assert isinstance(log_lines.wait_for("prober_died").error, TypeError)
        generate(runner, engine)
        assert runs(prober_of(engine))


def test_generations_on_a_loop_that_is_closed_under_them_leave_the_engine_as_it_was(
    loop_factory: MakeLoop, runner: Run, servers: list[ReusedServer]
) -> None:
    with an_engine(*servers, max_inflight_per_server=2) as engine:
        gone = ThreadedLoop(loop_factory)
        for _ in range(8):
            gone.begin(engine.agenerate(a_request(most=5000)))
        for server in servers:
            server.stats(in_flight=2)
        gone.close()
        generate(runner, engine)
        check_balanced(engine)
        check_none_live(*servers)


def test_threads_may_add_and_remove_servers_and_ask_while_it_generates(
    loop_factory: MakeLoop, servers: list[ReusedServer]
) -> None:
    ended = threading.Event()

    def shake(engine: RemoteInfEngine) -> None:
        while not ended.is_set():
            engine.add_server(servers[1].addr)
            assert repr(engine).startswith("<RemoteInfEngine sglang, version 0, <Server ")
            engine.get_version()
            assert servers[0].addr in engine.servers
            engine.remove_server(servers[1].addr)

    async def generations(engine: RemoteInfEngine) -> None:
        request = a_request(most=5)
        for _ in range(5):
            for reply in await asyncio.gather(*(engine.agenerate(request) for _ in range(10))):
                check_reply(reply, request, latest=0)

    with an_engine(servers[0]) as engine:
        shaking = threading.Thread(target=shake, args=(engine,))
        with threaded_loops(loop_factory, 2) as loops:
            shaking.start()
            try:
                for one in [loop.begin(generations(engine)) for loop in loops]:
                    one.result(20)
            finally:
                ended.set()
                shaking.join()
            check_balanced(engine)


# -- processes

_BEGINNING = """
    import asyncio, importlib, os, sys
    from areal_core.config import InferenceEngineConfig
    from areal_core.remote_inf_engine import RemoteInfEngine
    from areal_core.types import GenerationHyperparameters, ModelRequest

    engine = RemoteInfEngine(InferenceEngineConfig(setup_timeout=10, request_timeout=30))
    request = ModelRequest([1, 2], GenerationHyperparameters(max_new_tokens=3, ignore_eos=True))
    long = ModelRequest([1, 2], GenerationHyperparameters(max_new_tokens=100_000, ignore_eos=True))
    make_loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop
"""


@pytest.mark.parametrize(
    "ending",
    [
        "engine.destroy()",
        "pass",  # nobody destroys it
    ],
)
def test_an_engine_leaves_nothing_behind(
    run_script: RunScript, servers: list[ReusedServer], ending: str
) -> None:
    done = run_script(
        _BEGINNING
        + f"""
    async def main():
        await asyncio.gather(*(engine.agenerate(request) for _ in range(8)))
        begun = [asyncio.create_task(engine.agenerate(long)) for _ in range(8)]
        while sum("generating" in one.stage for one in engine._state.generations) < 8:
            await asyncio.sleep(0)
        begun[0].cancel()
        await engine.pause_generation()
        await engine.continue_generation()
        print(len(asyncio.all_tasks()) > 1)

    engine.initialize(sys.argv[1:])
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())
    print(engine._state.lookout._task.done(), engine._state.generations)
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(engine.agenerate(request))
    {ending}
    """,
        *(server.addr for server in servers),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\nTrue set()\n", "")
    check_none_live(*servers)


def test_destroy_before_the_loops_end_leaves_nothing_behind(
    run_script: RunScript, servers: list[ReusedServer]
) -> None:
    done = run_script(
        _BEGINNING
        + """
    import logging
    from areal_core.async_task_runner import AsyncTaskRunner
    from areal_core.errors import EngineStoppedError

    logging.getLogger("areal_core").setLevel(logging.CRITICAL)  # it tells of failed tasks
    engine.initialize(sys.argv[1:])
    runner = AsyncTaskRunner(100, loop_factory=make_loop)
    runner.initialize()
    tasks = [runner.submit(engine.agenerate, long) for _ in range(8)]
    runner.run(engine.agenerate, request)
    engine.destroy()
    for task in tasks:
        assert isinstance(runner.wait_for_task(task, timeout=10).error, EngineStoppedError)
    runner.destroy()
    """,
        *(server.addr for server in servers),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    check_none_live(*servers)


def test_a_forked_child_is_told_that_the_engine_is_its_parents_and_may_begin_its_own(
    run_script: RunScript, servers: list[ReusedServer]
) -> None:
    done = run_script(
        _BEGINNING
        + """
    import threading
    from areal_core.async_task_runner import AsyncTaskRunner
    from areal_core.errors import EngineStoppedError

    def generate():
        with asyncio.Runner(loop_factory=make_loop) as runner:
            return len(runner.run(engine.agenerate(request)).output_tokens)

    engine.initialize(sys.argv[1:])
    print(generate(), flush=True)
    held, go_on = threading.Event(), threading.Event()

    def hold():  # as another initialize() would
        with engine._lock, engine._policy._lock, engine._policy.changing():
            held.set()
            go_on.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        try:
            generate()
        except EngineStoppedError as error:
            print(error, flush=True)
        engine.destroy()
        engine.initialize(sys.argv[1:])
        print(generate(), flush=True)
        engine.destroy()
        os._exit(0)
    go_on.set()
    thread.join()
    print(os.waitpid(child, 0)[1], generate())
    engine.destroy()
    """,
        *(server.addr for server in servers),
    )
    words = "this engine belongs to another process; initialize() it here"
    assert (done.returncode, done.stdout) == (0, f"3\n{words}\n3\n0 3\n")
    assert done.stderr == ""


def test_initialize_can_be_interrupted(run_script: RunScript, unused: str) -> None:
    done = run_script(
        _BEGINNING
        + """
    import signal, threading
    import areal_core._engine.running  # the interrupt is not for the import
    main_thread = threading.main_thread().ident
    threading.Timer(0.3, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
    try:
        engine.initialize(sys.argv[1])
    except KeyboardInterrupt:
        print("interrupted", engine)
    engine.destroy()
    """,
        unused,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "interrupted <RemoteInfEngine sglang, version 0, stopped>\n"


@pytest.mark.any_loop
def test_what_is_no_config_backend_or_request_is_refused_with_its_type_alone(loop_name: str) -> None:
    with pytest.raises(TypeError, match=r"^config is a dict; pass an InferenceEngineConfig$"):
        RemoteInfEngine({"api_key": "secret"})  # type: ignore[arg-type]
    for backend in (None, object()):
        with pytest.raises(TypeError, match=r"^backend=.* is not a Backend; pass one"):
            RemoteInfEngine(InferenceEngineConfig(), backend)  # type: ignore[arg-type]
    engine = RemoteInfEngine(InferenceEngineConfig(), sglang.BACKEND)
    with pytest.raises(TypeError, match=r"^request is a dict; pass a ModelRequest$"):
        asyncio.run(engine.agenerate({"input_ids": [1]}))  # type: ignore[arg-type]
