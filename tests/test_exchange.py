"""What goes out to a server, and what of its replies comes back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
import zlib
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from areal_core._engine.backend import HttpCall
from areal_core._engine.wire.exchange import Exchange, Reply
from areal_core.errors import MalformedReplyError, ServerStatusError, ServerUnreachableError
from children import RunScript
from exchanging import (
    CHUNKED,
    GET,
    KEY,
    LAST_CHUNK,
    POST,
    STREAM,
    RunWithSession,
    add_events,
    chunks,
    exchange_with,
    reply_of,
    saying,
    take_request,
    until_all_are_closed,
)
from peers import Holding, Peer, reset, serving, talking


async def pong(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    return web.json_response("pong")


async def take_all(reply: Reply) -> list[bytes]:
    return [event async for event in reply.events()]


# --- what goes out


@pytest.mark.parametrize(
    ("call", "key", "first", "expected", "body"),
    [
        (
            HttpCall("POST", "/generate", b"{}"),
            KEY,
            "POST /base/generate HTTP/1.1",
            {"content-type": "application/json", "content-length": "2", "authorization": f"Bearer {KEY}"},
            b"{}",
        ),
        (
            HttpCall("POST", "/pause", params={"mode": "abort"}),
            KEY,
            "POST /base/pause?mode=abort HTTP/1.1",
            {"content-length": "0", "authorization": f"Bearer {KEY}"},
            b"",
        ),
        (HttpCall("GET", "/health"), None, "GET /base/health HTTP/1.1", {}, b""),
    ],
)
def test_a_request_carries_what_it_should_and_no_more(
    use: RunWithSession, call: HttpCall, key: str | None, first: str, expected: dict[str, str], body: bytes
) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        seen: list[bytes] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await take_request(reader))
            writer.write(reply_of("200 OK", b"fine"))

        async with talking(note) as peer:
            exchange = exchange_with(peer.url + "/base/", key=key)
            assert await exchange.call(session, call, 5) == b"fine"
        head, _, sent = seen[0].partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
        assert (line, sent) == (first, body)
        assert headers.pop("host") == peer.url.removeprefix("http://")
        assert headers.pop("user-agent").startswith("Python")
        assert headers.pop("accept") == "*/*"
        assert headers.pop("accept-encoding") == "identity"
        if not body:
            headers.pop("content-type", None)
        assert headers == expected

    use(work)


@pytest.mark.parametrize("size", [2**18, 2**20 + 1, 5 * 2**20])
def test_a_body_of_any_size_arrives_whole_and_without_a_warning(use: RunWithSession, size: int) -> None:
    async def digest(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        return web.json_response([len(body), zlib.crc32(body)])

    async def work(session: aiohttp.ClientSession) -> None:
        body = (bytes(range(256)) * (size // 256 + 1))[:size]
        async with serving(digest) as peer:
            call = HttpCall("POST", "/x", body)
            assert await exchange_with(peer).call(session, call, 5) == b"[%d, %d]" % (size, zlib.crc32(body))

    use(work)


# --- what comes back


@pytest.mark.parametrize(
    "raw",
    [
        reply_of("200 OK", b'{"text": "x"}'),
        reply_of("299 Odd", b'{"text": "x"}'),
        CHUNKED + chunks(b'{"te', b'xt": "x"}') + LAST_CHUNK,
        b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"text": "x"}',
        b'HTTP/1.0 200 OK\r\n\r\n{"text": "x"}',
        b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"text": "x"}',
        reply_of("200 OK", zlib.compress(b'{"text": "x"}'), "Content-Encoding: deflate"),
        reply_of("200 OK", b'{"text": "x"}', "Content-Type: text/event-stream"),
    ],
)
def test_a_call_returns_the_whole_body(use: RunWithSession, raw: bytes) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(raw)) as peer:
            assert await exchange_with(peer).call(session, POST, 5) == b'{"text": "x"}'

    use(work)


def test_an_empty_body_is_a_body(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(b"HTTP/1.1 204 No Content\r\n\r\n")) as peer:
            assert await exchange_with(peer).call(session, POST, 5) == b""

    use(work)


def test_events_are_given_as_they_come(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        taken = asyncio.Queue[None]()

        async def stream(request: web.BaseRequest) -> web.StreamResponse:
            reply = web.StreamResponse(headers={"Content-Type": "Text/Event-Stream; charset=utf-8"})
            await reply.prepare(request)
            for event in (
                b"data: 1\r\n\r\n",
                b"data: 2\r\n\r\ndata: ",
                b"3\r\n\r\n",
                b"data: [DONE]\r\n\r\n",
            ):
                await reply.write(event)
                await taken.get()
            return reply

        seen = []
        async with serving(stream) as peer, exchange_with(peer).open(session, POST) as reply:
            assert reply.streamed
            async for event in reply.events():
                seen.append(event)
                taken.put_nowait(None)
        assert seen == [b"1", b"2", b"3", b"[DONE]"]

    use(work)


def test_a_reply_that_is_no_stream_is_one_document_though_a_stream_was_asked_for(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async with serving(pong) as peer, exchange_with(peer).open(session, POST) as reply:
            assert not reply.streamed
            assert await reply.read() == b'"pong"'

    use(work)


def test_a_stream_that_ends_early_ends_and_its_last_event_is_not_given(use: RunWithSession) -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\ndata: [2"

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(raw)) as peer, exchange_with(peer).open(session, POST) as reply:
            assert await take_all(reply) == [b"1"]

    use(work)


def cut_by_end(writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize("cut", [cut_by_end, reset])
def test_what_came_before_a_stream_broke_is_given_before_the_error(
    use: RunWithSession, cut: Callable[[asyncio.StreamWriter], None]
) -> None:
    class Seen(list[bytes]):
        def append(self, event: bytes) -> None:
            super().append(event)
            taken.set()

    taken = asyncio.Event()

    async def work(session: aiohttp.ClientSession) -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await take_request(reader)
            writer.write(STREAM + chunks(b"data: 1\n\n"))
            await taken.wait()
            if cut is cut_by_end:
                writer.write(chunks(b"data: 2\n\n", b"data: 3\n\n", b"data: cut"))  # and the end, at once
            cut(writer)

        seen = Seen()
        async with talking(talk) as peer:
            with pytest.raises(ServerUnreachableError, match="hung up in the middle of its answer") as caught:
                await add_events(exchange_with(peer), session, seen)
        assert caught.value.sent
        assert caught.value.server == peer.url.removeprefix("http://")
        assert seen == ([b"1", b"2", b"3"] if cut is cut_by_end else [b"1"])

    use(work)


def test_what_came_in_while_nobody_read_is_given_before_the_error(use: RunWithSession) -> None:
    raw = STREAM + chunks(*[b"data: %d\n\n" % i for i in range(100)])

    async def read_late(exchange: Exchange, session: aiohttp.ClientSession, seen: list[bytes]) -> None:
        async with exchange.open(session, POST) as reply:
            await until_all_are_closed()
            async for event in reply.events():
                seen.append(event)  # noqa: PERF401 - an error comes last

    async def work(session: aiohttp.ClientSession) -> None:
        seen: list[bytes] = []
        async with talking(saying(raw)) as peer:
            with pytest.raises(ServerUnreachableError, match="in the middle of its answer"):
                await read_late(exchange_with(peer), session, seen)
        assert seen == [b"%d" % i for i in range(100)]

    use(work)


# --- the connection


async def whole(exchange: Exchange, session: aiohttp.ClientSession) -> None:
    await exchange.call(session, POST, 5)


async def get(exchange: Exchange, session: aiohttp.ClientSession) -> None:
    await exchange.call(session, GET, 5)


async def refused(exchange: Exchange, session: aiohttp.ClientSession) -> None:
    with pytest.raises(ServerStatusError):
        await exchange.call(session, POST, 5)


async def streamed(exchange: Exchange, session: aiohttp.ClientSession) -> None:
    async with exchange.open(session, POST) as reply:
        assert await take_all(reply) == [b"1", b"[DONE]"]


async def streamed_until_done(exchange: Exchange, session: aiohttp.ClientSession) -> None:
    async with exchange.open(session, POST) as reply:
        async for event in reply.events():
            if event == b"[DONE]":
                return


EVENTS = STREAM + chunks(b"data: 1\n\n", b"data: [DONE]\n\n") + LAST_CHUNK


@pytest.mark.parametrize(
    ("act", "raw"),
    [
        (whole, reply_of("200 OK", b"x" * 100_000)),
        (whole, CHUNKED + chunks(b"x", b"x") + LAST_CHUNK),
        (get, reply_of("200 OK", b"x")),
        (refused, reply_of("400 Bad", b"x" * 100_000)),
        (refused, reply_of("307 Elsewhere", b"x", "Location: http://other/")),
        (streamed, EVENTS),
        (streamed_until_done, EVENTS),
    ],
)
def test_a_reply_that_has_ended_leaves_its_connection_to_the_next(
    use: RunWithSession, act: Callable[[Exchange, aiohttp.ClientSession], asyncio.Future[None]], raw: bytes
) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(*[raw] * 5)) as peer:
            for _ in range(5):
                await act(exchange_with(peer), session)
        assert peer.accepted == 1

    use(work)


def test_a_stream_whose_end_comes_a_little_later_leaves_its_connection_too(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        done = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await take_request(reader)
            writer.write(EVENTS.removesuffix(LAST_CHUNK))
            await done.wait()
            writer.write(LAST_CHUNK)
            await saying(EVENTS)(reader, writer)

        async with talking(talk) as peer:
            async with exchange_with(peer).open(session, POST) as reply:
                async for event in reply.events():
                    if event == b"[DONE]":
                        asyncio.get_running_loop().call_soon(done.set)
                        break
            await streamed(exchange_with(peer), session)
        assert peer.accepted == 1

    use(work)


async def wait_for_the_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(2**16):
            pass


def test_a_stream_that_never_ends_is_hung_up_on_when_it_is_left(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        gone = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await take_request(reader)
            writer.write(EVENTS.removesuffix(LAST_CHUNK))
            await wait_for_the_end(reader)
            gone.set()

        async with talking(talk) as peer:
            await streamed_until_done(exchange_with(peer), session)
            await gone.wait()

    use(work)


@pytest.mark.parametrize("begun", [True, False])
def test_a_cancelled_generation_hangs_up(use: RunWithSession, begun: bool) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        arrived, gone = asyncio.Event(), asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await take_request(reader)
            if begun:
                writer.write(STREAM + chunks(b"data: 1\n\n"))
            else:
                arrived.set()
            await wait_for_the_end(reader)
            gone.set()

        async def generate() -> None:
            async with exchange_with(peer).open(session, POST) as reply:
                async for _ in reply.events():
                    arrived.set()

        async with talking(talk) as peer:
            task = asyncio.create_task(generate())
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gone.wait()

    use(work)


HUGE = HttpCall("POST", "/generate", bytes(2**25))


async def until_stalled(session: aiohttp.ClientSession) -> None:
    """Wait until the server's side takes no more of what is to be written."""
    pool: Any = session.connector
    while not any(writing.get_write_buffer_size() for writing in pool._transports.values()):  # noqa: ASYNC110
        await asyncio.sleep(0)  # the transports tell nobody


@pytest.mark.parametrize("answers", [b"", reply_of("413 Too Large", b"no"), reply_of("200 OK", b"yes")])
def test_a_body_the_server_does_not_take_is_given_up_with_its_connection(
    use: RunWithSession, answers: bytes
) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        arrived, stalled = asyncio.Event(), asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            arrived.set()
            await stalled.wait()
            writer.write(answers)
            await asyncio.Event().wait()

        async with talking(talk) as peer:
            task = asyncio.create_task(exchange_with(peer).call(session, HUGE, 5))
            await arrived.wait()
            await until_stalled(session)
            stalled.set()
            if not answers:
                task.cancel()
            await asyncio.wait([task])
            await until_all_are_closed()
            if b"413" in answers:
                assert isinstance(task.exception(), ServerStatusError)
            elif answers:
                assert task.result() == b"yes"

    use(work)


def test_a_connection_is_told_from_another(use: RunWithSession) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        reply = await pong(request)
        if len(peer.requests) == 3:
            reply.force_close()
        return reply

    peer = Peer()

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal peer
        seen = weakref.WeakSet[object]()

        async def is_known() -> bool:
            async with exchange_with(peer).open(session, POST) as reply:
                await reply.read()
                known = reply.connection in seen
                seen.add(reply.connection)
                return known

        async with serving(answer) as peer:
            assert [await is_known() for _ in range(5)] == [False, True, True, False, True]
            assert peer.accepted == 2
        await session.close()
        await until_all_are_closed()
        gc.collect()
        assert len(seen) == 0

    use(work)


def test_a_connection_that_is_not_known_is_like_no_other(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        connections = []
        async with serving(pong) as peer:
            for _ in range(2):
                async with exchange_with(peer).open(session, GET) as reply:
                    connections.append(reply.connection)
            assert peer.accepted == 1
        assert len(weakref.WeakSet(connections)) == 2

    use(work)


# --- how large a reply may be


@pytest.mark.parametrize(
    "reply",
    [
        lambda body: reply_of("200 OK", body),
        lambda body: CHUNKED + chunks(body[:50], body[50:]) + LAST_CHUNK,
        lambda body: b"HTTP/1.1 200 OK\r\n\r\n" + body,
        lambda body: reply_of("200 OK", zlib.compress(body), "Content-Encoding: deflate"),
        lambda body: STREAM + chunks(b"data: " + body, b"\n\n") + LAST_CHUNK,
    ],
)
def test_a_reply_may_be_as_large_as_the_bound_and_no_larger(
    use: RunWithSession, reply: Callable[[bytes], bytes]
) -> None:
    async def ask(session: aiohttp.ClientSession, size: int) -> bytes:
        async with talking(saying(reply(b"x" * size))) as peer:
            exchange = exchange_with(peer, most_bytes=1000)
            async with exchange.open(session, POST) as answer:
                if answer.streamed:
                    return b"".join(await take_all(answer))
                return await answer.read()

    async def work(session: aiohttp.ClientSession) -> None:
        assert await ask(session, 1000) == b"x" * 1000
        with pytest.raises(MalformedReplyError, match="more than 1000 bytes"):
            await ask(session, 1001)

    use(work)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n280000000\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: ",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n:",
        b"HTTP/1.1 500 Bad\r\n\r\n",
    ],
)
def test_a_reply_of_ten_gigabytes_is_given_up_early(use: RunWithSession, head: bytes) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        sent = 0
        gone = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await take_request(reader)
            writer.write(head)
            try:
                while sent < 10 * 2**30:
                    writer.write(b" " * 2**18)
                    await writer.drain()
                    sent += 2**18
            finally:
                gone.set()

        async with talking(talk) as peer:
            with pytest.raises(ServerStatusError if b"500" in head else MalformedReplyError):
                async with exchange_with(peer).open(session, POST) as reply:
                    await (take_all(reply) if reply.streamed else reply.read())
            await gone.wait()
        assert sent < 2**25  # what the system buffers, besides the bound

    use(work)


def test_a_reply_that_is_announced_as_too_large_is_not_waited_for(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async def announce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await take_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n")
            await reader.read()

        async with talking(announce) as peer:
            with pytest.raises(MalformedReplyError, match="more than 1048576 bytes"):
                await exchange_with(peer).call(session, POST, 5)

    use(work)


_BOMB = """
    import asyncio, importlib, os, resource, sys, zlib
    from aiohttp import web
    from areal_core._engine.wire.address import Address
    from areal_core._engine.backend import HttpCall
    from areal_core._engine.wire.exchange import Exchange
    from areal_core.errors import MalformedReplyError
    from areal_core.workflow_context import get_aiohttp_session

    def bomb(gigabytes):
        wbits = {"gzip": 31, "deflate": 15}[sys.argv[1]]
        packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
        block = bytes(2**20)
        first = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
        another = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
        return first + another * (1024 * gigabytes)

    async def main():
        body = bomb(4)
        assert len(body) < 2**23

        async def answer(request):
            return web.Response(body=body, headers={"Content-Encoding": sys.argv[1]})

        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = Address.parse(f"127.0.0.1:{runner.addresses[0][1]}")
        session = await get_aiohttp_session()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            await Exchange(address, None, 2**24).call(session, HttpCall("GET", "/"), 10)
        except MalformedReplyError as error:
            print(error.problem)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < 80)
        await runner.cleanup()

    factory = importlib.import_module(os.environ["AREAL_TEST_LOOP"]).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
"""


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_small_reply_that_unpacks_to_gigabytes_does_not_fill_the_memory(
    run_script: RunScript, encoding: str
) -> None:
    ended = run_script(_BOMB, encoding, flags=("-W", "error"))
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert ended.stdout == "it has more than 16777216 bytes\nTrue\n"


def test_a_stream_may_be_larger_than_its_events(use: RunWithSession) -> None:
    raw = STREAM + chunks(*[b"data: " + b"x" * 900 + b"\n\n"] * 1000) + LAST_CHUNK

    async def work(session: aiohttp.ClientSession) -> None:
        async with (
            talking(saying(raw)) as peer,
            exchange_with(peer, most_bytes=1000).open(session, POST) as reply,
        ):
            assert len(await take_all(reply)) == 1000

    use(work)


def test_many_generations_at_once_are_kept_apart(use: RunWithSession) -> None:
    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        await holding(request)
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        for i in range(5):
            await reply.write(b"data: %s %d\n\n" % (body, i))
        return reply

    holding = Holding()

    async def work(session: aiohttp.ClientSession) -> None:
        holding.go_on = asyncio.Event()
        holding.arrived = asyncio.Semaphore(0)

        async def generate(number: int) -> list[bytes]:
            call = HttpCall("POST", "/", b"%d" % number)
            async with exchange_with(peer).open(session, call) as reply:
                return await take_all(reply)

        async with serving(echo) as peer:
            tasks = [asyncio.create_task(generate(number)) for number in range(50)]
            await holding.wait_for(50)
            holding.go_on.set()
            replies = await asyncio.gather(*tasks)
        assert replies == [[b"%d %d" % (number, i) for i in range(5)] for number in range(50)]

    use(work)
