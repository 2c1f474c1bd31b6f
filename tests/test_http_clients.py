"""Whose clients one gets, and what becomes of them when their loop ends."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web

from areal_core import workflow_context
from areal_core._http.pool import ConnectionPool
from areal_core._process import home
from areal_core.loop_cleanup import register_loop_cleanup
from areal_core.workflow_context import (
    HttpClientManager,
    HttpConfig,
    get_aiohttp_session,
    get_control_session,
    get_httpx_client,
)
from children import RunScript, StartScript
from logged import LogLines
from peers import Holding, gathering, limited, read_request, serving, talking

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
GETTERS: list[Callable[[], Awaitable[Any]]] = [get_aiohttp_session, get_control_session, get_httpx_client]


@pytest.fixture(autouse=True)
def _default_config() -> Iterator[None]:
    yield
    workflow_context.configure_http(HttpConfig())


def is_closed(client: Any) -> bool:
    return bool(client.is_closed if isinstance(client, httpx.AsyncClient) else client.closed)


async def close(client: Any) -> None:
    await (client.aclose() if isinstance(client, httpx.AsyncClient) else client.close())


async def get_all() -> list[Any]:
    return [await get() for get in GETTERS]


def stats() -> tuple[int, int, int, int]:
    manager = HttpClientManager.current()
    assert manager is not None
    seen = manager.stats()
    return seen.open, seen.idle, seen.opened, seen.requests


async def pong(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    return web.Response(text="pong")


# --- one of each per loop


@pytest.mark.parametrize("get", GETTERS)
def test_everybody_on_a_loop_has_the_same_client(loop_factory: LoopFactory, get: Any) -> None:
    async def main() -> None:
        clients = await asyncio.gather(*(get() for _ in range(100)))
        assert all(client is clients[0] for client in clients)
        assert await get() is clients[0]
        assert not is_closed(clients[0])

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


def test_nothing_is_awaited_between_looking_for_a_client_and_keeping_it(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        for get in GETTERS:
            with pytest.raises(StopIteration):  # not one step of the loop
                get().send(None)  # type: ignore[attr-defined]

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(get_all())  # all is imported
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


def test_the_clients_are_what_they_are_called(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        session, control, client = await get_all()
        assert type(session) is type(control) is aiohttp.ClientSession
        assert session is not control
        assert session.connector is not control.connector
        assert type(client) is httpx.AsyncClient

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


@pytest.mark.parametrize("get", GETTERS)
def test_there_is_a_new_client_when_somebody_closed_the_old_one(loop_factory: LoopFactory, get: Any) -> None:
    async def main() -> None:
        others = await get_all()
        first = await get()
        await close(first)
        second = await get()
        assert second is not first
        assert not is_closed(second)
        assert [other for other in others if is_closed(other)] == [first]
        async with serving(pong) as peer:
            assert (await second.get(peer.url)).status_code if get is get_httpx_client else True

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


def test_two_loops_of_a_thread_have_their_own_clients(loop_factory: LoopFactory) -> None:
    with (
        asyncio.Runner(loop_factory=loop_factory) as one,
        asyncio.Runner(loop_factory=loop_factory) as other,
    ):
        ones, others = one.run(get_all()), other.run(get_all())
        assert len({*ones, *others}) == 6
        assert one.run(get_all()) == ones
        assert other.run(get_all()) == others
        other.close()
        assert [is_closed(client) for client in ones + others] == 3 * [False] + 3 * [True]


def test_without_a_running_loop_there_is_no_client() -> None:
    for get in GETTERS:
        with pytest.raises(RuntimeError, match="no running event loop"):
            get().send(None)  # type: ignore[attr-defined]
    assert HttpClientManager.current() is None


# --- the end of a loop


def test_the_clients_are_closed_with_their_loop(loop_factory: LoopFactory) -> None:
    async def main() -> list[Any]:
        clients = await get_all()
        async with serving(pong) as peer:
            for client in clients:
                await client.get(peer.url)
        return clients

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        clients = runner.run(limited(main()))
        loop = runner.get_loop()
        assert not any(map(is_closed, clients))
    assert all(map(is_closed, clients))
    assert not [name for name in vars(loop) if "http" in name]


def test_one_client_alone_is_closed_with_its_loop(loop_factory: LoopFactory) -> None:
    for get in GETTERS:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            client: Any = runner.run(get())  # type: ignore[arg-type]
        assert is_closed(client)


def test_a_loop_that_died_without_cleanup_leaves_no_client_to_the_next(loop_factory: LoopFactory) -> None:
    """`closed` of a client says nothing about the loop it lived on."""
    loop = loop_factory()
    dead = loop.run_until_complete(get_all())
    type(loop).close(loop)  # past the cleanup
    assert not any(map(is_closed, dead))
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        alive = runner.run(get_all())
    assert not set(alive) & set(dead)
    # what the clients of a dead loop would say when they are collected is right, and no concern of this test
    for session in dead[:2]:
        session.detach()


def test_a_callback_of_the_closing_loop_gets_new_clients_which_are_closed_too(
    loop_factory: LoopFactory,
) -> None:
    made: list[Any] = []

    async def use_late() -> None:
        made.extend(await get_all())
        async with serving(pong) as peer:
            await made[0].get(peer.url)

    async def main() -> list[Any]:
        register_loop_cleanup(use_late)  # the oldest runs last
        return await get_all()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        first = runner.run(limited(main()))
    assert len({*first, *made}) == 6
    assert all(map(is_closed, first + made))


def test_a_request_that_nobody_takes_does_not_hold_up_the_end_of_its_loop(
    loop_factory: LoopFactory, log_lines: LogLines
) -> None:
    """A cancelled request stays in the transport's buffer until the peer takes it, which may be never."""

    async def main() -> None:
        begun = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            begun.set()
            yield bytes(2**25)

        session = await get_aiohttp_session()
        posting = asyncio.create_task(session.post(url, data=body()).__aenter__())
        await begun.wait()
        posting.cancel()
        await asyncio.wait([posting])
        assert stats()[:2] == (1, 0)

    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts in the kernel, reads nothing
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(limited(main()))
    gc.collect()  # an unclosed transport would warn
    assert log_lines == []


def test_a_session_that_is_closed_has_hung_up_on_everybody(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        session, holding = await get_aiohttp_session(), Holding()
        pool = session.connector
        assert isinstance(pool, ConnectionPool)
        async with serving(pong) as peer, serving(holding) as slow:
            await (await session.get(peer.url)).read()
            waiting = asyncio.create_task(session.post(slow.url).__aenter__())
            await holding.wait_for(1)
            assert (pool.open_connections, pool.idle_connections) == (2, 1)
            await session.close()
            assert (pool.open_connections, pool.idle_connections) == (0, 0)
            holding.go_on.set()
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await waiting

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


def test_a_session_that_is_closed_has_hung_up_on_who_took_nothing_too(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            begun.set()
            yield bytes(2**25)

        session = await get_aiohttp_session()
        pool = session.connector
        assert isinstance(pool, ConnectionPool)
        posting = asyncio.create_task(session.post(url, data=body()).__aenter__())
        await begun.wait()
        posting.cancel()
        await asyncio.wait([posting])
        assert pool.open_connections == 1
        await session.close()
        assert pool.open_connections == 0

    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts in the kernel, reads nothing
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(limited(main()))


def test_nothing_is_said_on_stderr_from_first_client_to_exit(run_script: RunScript) -> None:
    child = run_script(
        """
        import asyncio, importlib, os
        from aiohttp import web
        from areal_core import workflow_context

        async def pong(request):
            return web.Response(text="pong")

        async def main():
            runner = web.ServerRunner(web.Server(pong))
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            session = await workflow_context.get_aiohttp_session()
            control = await workflow_context.get_control_session()
            client = await workflow_context.get_httpx_client()
            unread = [await session.get(url), await control.get(url)]
            cancelled = [asyncio.create_task(client.get(url)) for _ in range(10)]
            await asyncio.sleep(0)
            for task in cancelled[::2]:
                task.cancel()
            await asyncio.gather(*cancelled, return_exceptions=True)
            async with client.stream("GET", url):
                pass
            await runner.cleanup()
            print("done")

        make = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop
        for _ in range(3):
            with asyncio.Runner(loop_factory=make) as runner:
                runner.run(main())
        """
    )
    assert (child.stdout, child.stderr) == ("done\ndone\ndone\n", "")


# --- nothing grows


@pytest.mark.parametrize("cleaned", [True, False])
def test_threads_and_loops_that_are_gone_leave_nothing(loop_factory: LoopFactory, cleaned: bool) -> None:
    """A thread's id is used again at once: 200 threads often have one id among them."""
    idents: list[int] = []
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    sessions: list[weakref.ref[Any]] = []

    def live_and_die() -> None:
        loop = loop_factory()
        clients = loop.run_until_complete(get_all())
        idents.append(threading.get_ident())
        loops.append(weakref.ref(loop))
        sessions.extend(map(weakref.ref, clients))
        if cleaned:
            loop.close()
        else:
            for session in clients[:2]:
                loop.run_until_complete(session.close())
            type(loop).close(loop)

    for _ in range(200):
        thread = threading.Thread(target=live_and_die)
        thread.start()
        thread.join()
    gc.collect()
    assert len(loops) == 200
    assert len(set(idents)) < 200
    assert [ref for ref in loops + sessions if ref() is not None] == []


def test_the_ssl_context_is_made_once_per_process(run_script: RunScript) -> None:
    child = run_script(
        """
        import asyncio, importlib, os, ssl

        made = []
        load_default_certs = ssl.SSLContext.load_default_certs
        load_verify_locations = ssl.SSLContext.load_verify_locations
        def counting(load):
            return lambda context, *args, **kwargs: (made.append(context), load(context, *args, **kwargs))[1]
        for name in ("load_default_certs", "load_verify_locations"):  # what takes 25 ms
            setattr(ssl.SSLContext, name, counting(getattr(ssl.SSLContext, name)))

        from areal_core import workflow_context

        async def main():
            await workflow_context.get_aiohttp_session()
            await workflow_context.get_control_session()
            await workflow_context.get_httpx_client()
            print(len(set(made)))

        make = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop
        for _ in range(3):
            with asyncio.Runner(loop_factory=make) as runner:
                runner.run(main())
        """
    )
    assert (child.stdout, child.stderr) == ("1\n1\n1\n", "")


# --- forks


FORKING = """
import asyncio, gc, importlib, os, sys, threading, warnings
from areal_core import workflow_context

warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # it is: that is the point
url = sys.argv[1]
make = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop
inherited = set()

async def get(session):
    async with session.get(url) as reply:
        return await reply.text()

async def get_many():
    session = await workflow_context.get_aiohttp_session()
    client = await workflow_context.get_httpx_client()
    inherited.update({session, client, await workflow_context.get_control_session()})
    requests = [asyncio.create_task(get(session)) for _ in range(50)]
    requests += [asyncio.create_task(client.get(url)) for _ in range(50)]
    while (await client.get(url + "stats")).json()["seen"] < 100:
        pass
    all_there.set()
    await asyncio.to_thread(forked.wait)
    assert await get(session) == "ok"  # the last one the server waits for
    replies = await asyncio.gather(*requests)
    print({reply if isinstance(reply, str) else reply.text for reply in replies}, len(replies))

async def in_child():
    session = await workflow_context.get_aiohttp_session()
    client = await workflow_context.get_httpx_client()
    assert not {session, client} & inherited
    for _ in range(5):
        async with session.get(url + "stats") as reply:
            assert (await reply.json())["seen"] == 100
        assert (await client.get(url + "stats")).json()["seen"] == 100

def run(coroutine):
    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(coroutine)

all_there, forked = threading.Event(), threading.Event()
parent = threading.Thread(target=lambda: run(get_many()))
parent.start()
all_there.wait()
child = os.fork()
if not child:
    run(in_child())
    inherited.clear()
    gc.collect()
    sys.exit()  # with a whole finalization
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
forked.set()
parent.join()
"""


def test_a_forked_child_has_its_own_clients_and_the_parent_never_notices(
    run_script: RunScript, start_script: StartScript
) -> None:
    with gathering(start_script, 101) as url:
        child = run_script(FORKING, url)
    assert (child.stdout, child.stderr) == ("0\n{'ok'} 100\n", "")


def test_a_forked_child_that_drops_an_idle_loop_neither_closes_nor_collects_its_clients(
    run_script: RunScript, start_script: StartScript
) -> None:
    with gathering(start_script, 2) as url:
        child = run_script(
            """
            import asyncio, gc, importlib, os, sys
            from areal_core import workflow_context

            async def get(sent=None):
                client = await workflow_context.get_httpx_client()
                session = await workflow_context.get_aiohttp_session()
                await (await session.get(sys.argv[1] + "stats")).read()  # leaves an idle connection
                if sent is not None:
                    asyncio.get_running_loop().call_later(0, sent.set)
                return (await client.get(sys.argv[1])).text

            async def begin():
                sent = asyncio.Event()
                waiting = asyncio.create_task(get(sent))
                await sent.wait()
                return waiting

            loop = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop()
            waiting = loop.run_until_complete(begin())
            child = os.fork()
            if not child:
                del loop, waiting
                gc.collect()
                if "uvloop" in sys.modules:
                    os._exit(0)  # libuv would join the threads of its pool, which a child does not have
                sys.exit()  # with a whole finalization
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            print(loop.run_until_complete(get()), loop.run_until_complete(waiting))
            loop.close()
            """,
            url,
        )
    assert (child.stdout, child.stderr) == ("0\nok ok\n", "")


def test_the_clients_of_a_loop_of_another_process_are_refused(
    loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        for get in GETTERS:
            with pytest.raises(RuntimeError) as caught:
                await get()
            assert str(caught.value) == (
                "this event loop belongs to the parent process; make a new one in this process"
            )

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(get_all())
        parents = home()
        monkeypatch.setattr("areal_core._process._home", object())  # what a fork does in the child
        assert home() is not parents
        runner.run(limited(main()))
        monkeypatch.undo()
        runner.run(get_all())


# --- connections


def test_a_connection_is_used_again_and_never_more_are_opened_than_requests_in_flight(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        session, client = await get_aiohttp_session(), await get_httpx_client()
        left = iter(range(2000))

        async def worker() -> None:
            for count in left:
                if count % 2:
                    async with session.post(peer.url, data=b"ping") as reply:
                        assert await reply.text() == "pong"
                else:
                    assert (await client.post(peer.url, content=b"ping")).text == "pong"

        async with serving(pong) as peer:
            await asyncio.gather(*(worker() for _ in range(64)))
            assert len(peer.requests) == 2000
            assert peer.accepted <= 64
            assert stats() == (peer.accepted, peer.accepted, peer.accepted, 2000)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


def test_2048_requests_are_all_under_way_at_once(
    loop_factory: LoopFactory, start_script: StartScript
) -> None:
    if not workflow_context.ensure_descriptors(2048):
        pytest.fail(
            f"2048 connections and 256 files more exceed {resource.getrlimit(resource.RLIMIT_NOFILE)}"
        )

    async def main() -> None:
        client = await get_httpx_client()
        replies = await asyncio.gather(*(client.post(url, content=b"ping") for _ in range(2048)))
        assert {(reply.status_code, reply.text) for reply in replies} == {(200, "ok")}
        assert (await client.get(url + "stats")).json() == {"accepted": 2048, "seen": 2048}

    with gathering(start_script, 2048) as url, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main(), 50))


def test_an_idle_connection_is_given_up_before_the_server_does(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        given_up = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            if await reader.read() == b"":  # at the end of the connection
                given_up.set()

        async with talking(answer) as peer:
            await (await get_httpx_client()).get(peer.url)
            assert stats() == (1, 1, 1, 1)
            await asyncio.wait_for(given_up.wait(), 5)

    workflow_context.configure_http(HttpConfig(keepalive_expiry=0.05))
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


def test_a_peer_that_vanished_is_noticed_while_nothing_is_sent(loop_factory: LoopFactory) -> None:
    def option(reply: aiohttp.ClientResponse, level: int, name: int) -> Any:
        assert reply.connection is not None
        assert reply.connection.transport is not None
        return reply.connection.transport.get_extra_info("socket").getsockopt(level, name)

    async def main() -> None:
        go_on = asyncio.Event()

        async def slow(request: web.BaseRequest) -> web.StreamResponse:
            reply = web.StreamResponse()
            await reply.prepare(request)
            await go_on.wait()
            return reply

        async with serving(slow) as peer:
            for session in (await get_aiohttp_session(), await get_control_session()):
                async with session.get(peer.url) as reply:
                    assert option(reply, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                    assert option(reply, socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 15
                    assert option(reply, socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 4
                    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
                    assert idle is not None
                    assert option(reply, socket.IPPROTO_TCP, idle) == 60
            go_on.set()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


def test_cancelled_requests_leave_room_for_others(loop_factory: LoopFactory) -> None:
    """Httpcore's pool loses the slot of a request that is cancelled while it waits for one."""

    async def main() -> None:
        client, holding = await get_httpx_client(), Holding()
        async with serving(holding) as peer:
            held: list[asyncio.Task[httpx.Response]] = []
            for _ in range(3):
                held += [asyncio.create_task(client.get(peer.url)) for _ in range(150)]
                await holding.wait_for(150)
                for task in held[::2]:
                    task.cancel()
                await asyncio.wait(held[::2])
                del held[::2]
            assert stats() == (len(held), 0, 450, 450)
            held += [asyncio.create_task(client.get(peer.url)) for _ in range(150)]
            holding.go_on.set()
            assert {reply.text for reply in await asyncio.gather(*held)} == {"pong"}

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


def test_control_calls_have_connections_of_their_own(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        session, control = await get_aiohttp_session(), await get_control_session()
        async with serving(pong) as peer:
            async with session.get(peer.url) as reply:
                await reply.read()
            async with control.get(peer.url) as reply:
                await reply.read()
            assert peer.accepted == 2
            assert stats() == (1, 1, 1, 1)  # control calls are not counted

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


def test_calls_that_come_in_crowds_share_half_of_the_control_connections_to_a_server(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        pool = (await get_control_session()).connector
        assert isinstance(pool, ConnectionPool)
        for _ in range(8):
            assert not pool.turns["one"].locked()
            await pool.turns["one"].acquire()
        assert pool.turns["one"].locked()
        assert not pool.turns["other"].locked()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


def test_a_server_that_answers_no_control_calls_delays_only_its_own(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        control, holding = await get_control_session(), Holding()
        async with serving(holding) as hung, serving(pong) as healthy:
            calls = [asyncio.create_task(control.get(hung.url).__aenter__()) for _ in range(16)]
            await holding.wait_for(16)
            async with control.get(healthy.url) as reply:
                assert await reply.text() == "pong"
            with pytest.raises(aiohttp.ConnectionTimeoutError):
                await control.get(hung.url)
            holding.go_on.set()
            for reply in await asyncio.gather(*calls):
                assert await reply.text() == "pong"
            assert (hung.accepted, len(hung.requests)) == (16, 16)

    workflow_context.configure_http(HttpConfig(control_connect=0.2))
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


# --- the numbers


def test_the_stats_count_what_went_through_the_loops_clients(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        assert HttpClientManager.current() is None
        session, client = await get_aiohttp_session(), await get_httpx_client()
        manager = HttpClientManager.current()
        assert isinstance(manager, HttpClientManager)
        assert stats() == (0, 0, 0, 0)
        holding = Holding()
        async with serving(holding) as peer:
            held = [asyncio.create_task(client.get(peer.url)) for _ in range(3)]
            await holding.wait_for(3)
            assert stats() == (3, 0, 3, 3)
            holding.go_on.set()
            await asyncio.gather(*held)
            assert stats() == (3, 3, 3, 3)
            await client.get(peer.url)
            assert stats() == (3, 3, 3, 4)
            await session.close()
            assert stats() == (0, 0, 3, 4)
            await client.get(peer.url)
            assert stats() == (1, 1, 4, 5)
            assert HttpClientManager.current() is manager
            assert await asyncio.to_thread(manager.stats) == manager.stats()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


def test_a_loop_with_nothing_but_a_control_session_has_stats(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        await get_control_session()
        assert stats() == (0, 0, 0, 0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))


def test_stats_are_a_frozen_snapshot(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        await get_aiohttp_session()
        manager = HttpClientManager.current()
        assert manager is not None
        with pytest.raises(FrozenInstanceError):
            manager.stats().open = 1  # type: ignore[misc]

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited(main()))
