"""What httpx's callers see of a request that goes through the aiohttp session."""

from __future__ import annotations

import asyncio
import errno
import gc
import gzip
import re
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import httpx
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from areal_core._http.upload import Upload, body_of
from areal_core.workflow_context import (
    HttpClientManager,
    HttpConfig,
    configure_http,
    get_aiohttp_session,
    get_httpx_client,
)
from peers import FullListener, Holding, read_request, refusing_url, reset, serving, talking

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Use = Callable[[httpx.AsyncClient], Awaitable[None]]


class RunWithClient(Protocol):
    """The type of fixture ``use``."""

    def __call__(self, work: Use, *, collected: bool = False) -> None: ...


KILOBYTE = b"0123456789abcdef" * 64


@pytest.fixture(autouse=True)
def _default_config() -> Iterator[None]:
    yield
    configure_http(HttpConfig())


@pytest.fixture
def use(loop_factory: LoopFactory) -> RunWithClient:
    """Run a coroutine function with the httpx client of a new loop, which must not complain."""

    def run(work: Use, *, collected: bool = False) -> None:
        def complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            # asyncio's TLS servers on those who go again, and its servers on who goes before they begin.
            if not re.search("incoming connection|StreamReaderProtocol", context["message"]):
                complaints.append(context)

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(complain)
            async with asyncio.timeout(10):
                await work(await get_httpx_client())

        complaints: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=loop_factory, debug=True) as runner:
            runner.run(main())
        if collected:
            gc.collect()
        assert complaints == []

    return run


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    """Answer with what arrived."""
    body = await request.content.read()
    headers = [(name.decode(), value.decode()) for name, value in request.raw_headers]
    return web.json_response({"headers": headers, "bytes": len(body), "crc": zlib.crc32(body)})


# --- what goes out


def test_a_request_goes_out_as_httpx_made_it(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        seen: list[bytes] = []

        async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await read_request(reader) + await reader.readexactly(4))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        async with talking(note) as peer:
            url = peer.url + "/a%41%2Fb/?q=%20+x&q=2#fragment"
            twice = [("X-Twice", "1"), ("x-twice", "2"), ("X-TWICE", "3")]
            request = client.build_request("PUT", url, content=b"body", headers=twice)
            for name in ("Accept", "Accept-Encoding", "User-Agent"):
                del request.headers[name]
            await client.send(request)
        head, _, body = seen[0].partition(b"\r\n\r\n")
        assert body == b"body"
        first, *headers = head.decode().split("\r\n")
        assert first == "PUT /a%41%2Fb/?q=%20+x&q=2 HTTP/1.1"
        host = peer.url.removeprefix("http://")
        assert sorted(headers) == [
            "Connection: keep-alive",
            "Content-Length: 4",
            f"Host: {host}",
            "X-Twice: 1",
            "X-Twice: 2",
            "X-Twice: 3",
        ]

    use(work)


def test_a_host_header_of_the_callers_is_kept(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            seen = (await client.get(peer.url, headers={"Host": "model.example"})).json()
        assert [value for name, value in seen["headers"] if name.lower() == "host"] == ["model.example"]

    use(work)


def test_name_and_password_of_a_url_go_out_as_a_header(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            seen = (await client.get(peer.url.replace("//", "//me:secret@"))).json()
        assert ["Authorization", "Basic bWU6c2VjcmV0"] in seen["headers"]

    use(work)


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**16 + 1, 5 * 2**16, 3 * 2**20 + 7])
def test_a_body_arrives_whole_whatever_its_size(use: RunWithClient, size: int) -> None:
    content = (KILOBYTE * (size // 1024 + 1))[:size]

    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            seen = (await client.post(peer.url, content=content)).json()
        assert (seen["bytes"], seen["crc"]) == (size, zlib.crc32(content))
        headers = {name.lower(): value for name, value in seen["headers"]}
        assert headers["content-length"] == str(size)
        assert "transfer-encoding" not in headers

    use(work)


def test_a_body_is_cut_in_pieces_where_aiohttp_begins_to_wait_for_the_peer(
    use: RunWithClient,
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        def body(size: int) -> bytes | Upload | None:
            return body_of(client.build_request("POST", "http://127.0.0.1", content=bytes(size)), 1.0)

        assert body(0) is None
        assert body(2**16) == bytes(2**16)
        for size, pieces in ((2**16 + 1, [2**16, 1]), (2**17, [2**16, 2**16])):
            upload = body(size)
            assert isinstance(upload, Upload)
            assert [len(piece) async for piece in upload] == pieces

    use(work)


def test_a_body_that_comes_in_chunks_goes_out_in_chunks(use: RunWithClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for chunk in (KILOBYTE, b"", 100 * KILOBYTE, b"end"):
            yield chunk

    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            request = client.build_request("POST", peer.url, content=chunks())
            seen = (await client.send(request)).json()
        expected = 101 * KILOBYTE + b"end"
        assert (seen["bytes"], seen["crc"]) == (len(expected), zlib.crc32(expected))
        headers = {name.lower(): value for name, value in seen["headers"]}
        assert headers["transfer-encoding"] == "chunked"
        assert request.headers["transfer-encoding"] == "chunked"  # the caller's request is as it was

    use(work)


def test_files_and_forms_can_be_sent(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            seen = (await client.post(peer.url, files={"f": 200 * KILOBYTE}, data={"k": "v"})).json()
        assert seen["bytes"] > 200 * 1024
        headers = {name.lower(): value for name, value in seen["headers"]}
        assert headers["content-type"].startswith("multipart/form-data; boundary=")

    use(work)


def test_no_cookie_is_kept_or_shared(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def set_cookie(request: web.BaseRequest) -> web.StreamResponse:
            cookie = request.headers.get("Cookie")
            return web.json_response(cookie, headers={"Set-Cookie": "of=somebody; Path=/"})

        session = await get_aiohttp_session()
        async with serving(set_cookie) as peer:
            url = peer.url.replace("127.0.0.1", "localhost")  # aiohttp keeps no cookies of an address anyway
            first = await client.get(url)
            assert first.headers["set-cookie"] == "of=somebody; Path=/"
            assert (await client.get(url)).json() is None
            for _ in range(2):
                async with session.get(url) as reply:
                    assert await reply.json() is None
            # one that a caller sends with a request goes out with that request
            assert (await client.get(url, headers={"Cookie": "a=b"})).json() == "a=b"
            assert (await client.get(url)).json() is None
        assert not client.cookies

    use(work)


# --- what comes back


def test_a_reply_is_what_the_server_sent(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.0 418 Short and stout\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 3\r\n\r\ntea")

        async with talking(answer) as peer:
            reply = await client.get(peer.url)
        assert (reply.status_code, reply.reason_phrase, reply.http_version) == (
            418,
            "Short and stout",
            "HTTP/1.0",
        )
        assert reply.headers.get_list("x-a") == ["1", "2"]
        assert reply.content == b"tea"
        assert str(reply.request.url) == peer.url

    use(work)


@pytest.mark.parametrize("reason", [b"", b" ", b" Caf\xc3\xa9"])
def test_a_reason_may_be_anything(use: RunWithClient, reason: bytes) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200" + reason + b"\r\nContent-Length: 0\r\n\r\n")

        async with talking(answer) as peer:
            reply = await client.get(peer.url)
        assert reply.reason_phrase == reason.decode("ascii", "ignore").strip()
        assert reply.http_version == "HTTP/1.1"

    use(work)


def test_redirects_are_the_callers_business(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def redirect(request: web.BaseRequest) -> web.StreamResponse:
            if request.path == "/":
                return web.Response(status=302, headers={"Location": "/there"})
            return web.Response(text="there")

        async with serving(redirect) as peer:
            reply = await client.get(peer.url)
            assert (reply.status_code, reply.headers["location"]) == (302, "/there")
            assert len(peer.requests) == 1
            assert (await client.get(peer.url, follow_redirects=True)).text == "there"

    use(work)


def test_a_compressed_reply_is_decoded_once(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def compressed(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(body=gzip.compress(KILOBYTE), headers={"Content-Encoding": "gzip"})

        async with serving(compressed) as peer:
            reply = await client.get(peer.url)
            assert (reply.content, reply.headers["content-encoding"]) == (KILOBYTE, "gzip")
            async with client.stream("GET", peer.url) as reply:
                raw = b"".join([chunk async for chunk in reply.aiter_raw()])
                assert gzip.decompress(raw) == KILOBYTE

    use(work)


def test_a_reply_is_streamed_as_it_comes(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        taken = asyncio.Event()

        async def stream(request: web.BaseRequest) -> web.StreamResponse:
            reply = web.StreamResponse()
            await reply.prepare(request)
            await reply.write(b"one")
            await taken.wait()  # before the rest is sent
            await reply.write(b"two")
            return reply

        async with serving(stream) as peer, client.stream("GET", peer.url) as reply:
            chunks = reply.aiter_raw()
            assert await anext(chunks) == b"one"
            taken.set()
            assert b"".join([chunk async for chunk in chunks]) == b"two"

    use(work)


def test_a_chunk_that_is_none_ends_a_reply_in_the_middle(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        taken = asyncio.Event()

        async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            await taken.wait()
            writer.write(b"no number\r\n")
            await reader.read()

        async with talking(break_off) as peer, client.stream("GET", peer.url) as reply:
            chunks = reply.aiter_raw()
            assert await anext(chunks) == b"one"
            taken.set()
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(chunks)

    use(work)


@pytest.mark.parametrize("abort", [False, True])
def test_a_session_that_is_closed_ends_a_reply_in_the_middle(use: RunWithClient, abort: bool) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
            await reader.read()

        session = await get_aiohttp_session()
        async with talking(begin) as peer, session.get(peer.url) as reply:
            assert await reply.content.readany() == b"one"
            reading = asyncio.create_task(reply.content.readany())
            await asyncio.sleep(0)  # until it waits
            assert reply.connection is not None
            protocol = reply.connection.protocol
            assert protocol is not None
            if abort:
                protocol.abort()
            else:
                await session.close()
            assert protocol.transport is None
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await reading

    use(work)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("OPTIONS", 200)])
def test_a_reply_may_have_no_body(use: RunWithClient, method: str, status: int) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(status=status)

        async with serving(answer) as peer:
            reply = await client.request(method, peer.url)
            assert (reply.status_code, reply.content) == (status, b"")

    use(work)


# --- the connection afterwards


def open_and_idle() -> tuple[int, int]:
    manager = HttpClientManager.current()
    assert manager is not None
    stats = manager.stats()
    return stats.open, stats.idle


def test_a_reply_that_is_left_early_gives_its_connection_up(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        hung_up = asyncio.Event()

        async def send_half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1")
            assert await reader.read() == b""
            hung_up.set()

        async with talking(send_half) as peer:
            async with client.stream("GET", peer.url):
                assert open_and_idle() == (1, 0)
            await asyncio.wait_for(hung_up.wait(), 5)
        assert open_and_idle() == (0, 0)

    use(work)


def test_a_reply_that_came_in_whole_keeps_its_connection_though_nobody_read_it(
    use: RunWithClient,
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            for _ in range(3):
                async with client.stream("GET", peer.url):
                    pass
            assert peer.accepted == 1
            assert open_and_idle() == (1, 1)

    use(work)


@pytest.mark.parametrize("phase", ["head", "body"])
def test_a_cancelled_request_gives_its_connection_up(use: RunWithClient, phase: str) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        hung_up, arrived = asyncio.Event(), asyncio.Event()

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            if phase == "body":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1")
                await writer.drain()
            arrived.set()
            assert await reader.read() == b""
            hung_up.set()

        async def read() -> None:
            async with client.stream("GET", peer.url) as reply:
                async for _ in reply.aiter_raw():
                    first.set()

        first = asyncio.Event()
        async with talking(hold) as peer:
            reading = asyncio.create_task(read())
            await (first if phase == "body" else arrived).wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await asyncio.wait_for(hung_up.wait(), 5)
        assert open_and_idle() == (0, 0)

    use(work)


def test_closing_the_httpx_client_leaves_a_running_aiohttp_request_unharmed(
    use: RunWithClient,
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        holding, session = Holding(), await get_aiohttp_session()
        async with serving(holding) as peer:

            async def get() -> str:
                async with session.get(peer.url) as reply:
                    return await reply.text()

            running = asyncio.create_task(get())
            await holding.wait_for(1)
            await client.aclose()
            assert not session.closed
            holding.go_on.set()
            assert await running == "pong"
            assert await get() == "pong"
            assert (await (await get_httpx_client()).get(peer.url)).text == "pong"
        assert await get_aiohttp_session() is session

    use(work)


def test_the_client_takes_the_session_of_the_moment(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            await client.get(peer.url)
            await (await get_aiohttp_session()).close()
            assert (await client.get(peer.url)).status_code == 200
            assert peer.accepted == 2

    use(work)


# --- what goes wrong on the way


async def fails(
    expected: type[Exception], awaitable: Awaitable[object], cause: type[BaseException] | None
) -> Exception:
    """Check that *awaitable* raises *expected* itself, no subclass, and from *cause*."""
    with pytest.raises(expected) as caught:
        await awaitable
    assert type(caught.value) is expected
    assert type(caught.value.__cause__) is (type(None) if cause is None else cause)
    if isinstance(caught.value, httpx.RequestError):
        assert caught.value.request is not None
    return caught.value


def test_nobody_listens(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        url = refusing_url()
        error = await fails(httpx.ConnectError, client.get(url), aiohttp.ClientConnectorError)
        assert str(error).startswith(f"Cannot connect to host {url.removeprefix('http://')} ssl:default [")

    use(work)


def test_connecting_takes_too_long(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        with FullListener() as url:
            timeout = httpx.Timeout(None, connect=0.05)
            await fails(
                httpx.ConnectTimeout, client.get(url, timeout=timeout), aiohttp.ConnectionTimeoutError
            )

    use(work)


def test_connecting_takes_longer_than_configured(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        with FullListener() as url:
            await fails(httpx.ConnectTimeout, client.get(url), aiohttp.ConnectionTimeoutError)
            with pytest.raises(aiohttp.ConnectionTimeoutError):
                await (await get_aiohttp_session()).get(url)

    configure_http(HttpConfig(connect=0.05))
    use(work)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def silent_half_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n1")
    await reader.read()


@pytest.mark.parametrize("talk", [silent, silent_half_way])
def test_the_peer_is_silent_for_too_long(use: RunWithClient, talk: Any) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with talking(talk) as peer:
            timeout = httpx.Timeout(None, read=0.05)
            getting = client.post(peer.url, timeout=timeout)
            await fails(httpx.ReadTimeout, getting, aiohttp.SocketTimeoutError)
        assert open_and_idle() == (0, 0)

    use(work)


@pytest.mark.parametrize("talk", [silent, silent_half_way])
def test_the_peer_is_silent_for_longer_than_configured(use: RunWithClient, talk: Any) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with talking(talk) as peer:
            await fails(httpx.ReadTimeout, client.post(peer.url), aiohttp.SocketTimeoutError)

    configure_http(HttpConfig(sock_read=0.05))
    use(work)


def test_resolving_the_name_takes_longer_than_connecting_may(use: RunWithClient) -> None:
    class Resolver(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

        async def close(self) -> None:
            pass

    async def work(client: httpx.AsyncClient) -> None:
        session: Any = await get_aiohttp_session()
        session.connector._resolver = Resolver()
        timeout = httpx.Timeout(None, connect=0.05)
        getting = client.get("http://model.example/", timeout=timeout)
        await fails(httpx.ConnectTimeout, getting, aiohttp.ConnectionTimeoutError)
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await session.get("http://model.example/")

    configure_http(HttpConfig(connect=0.05))
    use(work)


def test_a_request_without_limits_has_none(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            reply = await client._transport.handle_async_request(httpx.Request("GET", peer.url))
            assert reply.status_code == 200
            await reply.aclose()

    use(work)


@pytest.mark.parametrize("limit", [0, -1])
def test_no_time_left_is_no_time(use: RunWithClient, limit: float) -> None:
    """To aiohttp, 0 is no limit."""

    async def work(client: httpx.AsyncClient) -> None:
        async with asyncio.timeout(0.9), talking(silent) as peer:
            getting = client.post(peer.url, timeout=httpx.Timeout(None, read=limit))
            await fails(httpx.ReadTimeout, getting, aiohttp.SocketTimeoutError)
        with FullListener() as url:
            async with asyncio.timeout(0.9):
                getting = client.get(url, timeout=httpx.Timeout(None, connect=limit))
                await fails(httpx.ConnectTimeout, getting, aiohttp.ConnectionTimeoutError)

    use(work)


@pytest.mark.parametrize("talk", [silent, silent_half_way])
def test_the_whole_takes_longer_than_configured(use: RunWithClient, talk: Any) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with talking(talk) as peer:
            error = await fails(httpx.TimeoutException, client.post(peer.url), TimeoutError)
            assert str(error) == "TimeoutError"

    configure_http(HttpConfig(total=0.1))
    use(work)


def test_waiting_for_the_pool_is_not_limited_as_nobody_waits_for_it(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            limits = httpx.Timeout(None, pool=1e-9)
            assert (await client.get(peer.url, timeout=limits)).status_code == 200

    use(work)


def test_a_limit_may_be_infinite(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            limits = httpx.Timeout(float("inf"))
            reply = await client.post(peer.url, content=100 * KILOBYTE, timeout=limits)
            assert reply.status_code == 200

    use(work)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield 64 * KILOBYTE


@pytest.mark.parametrize("content", [bytes(2**25), None])
def test_the_peer_does_not_take_the_request(use: RunWithClient, content: bytes | None) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.Event().wait()

        async with talking(never_read) as peer:
            posting = client.post(
                peer.url, content=content or endless(), timeout=httpx.Timeout(None, write=0.1)
            )
            error = await fails(httpx.WriteTimeout, posting, TimeoutError)
            assert str(error) == "the peer took nothing for 0.1 s"

    use(work)


def test_a_peer_that_takes_the_request_slowly_is_given_its_time(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            for _ in range(16):
                await asyncio.sleep(0.03)
                await reader.readexactly(2**21)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        async with talking(slow) as peer:
            limits = httpx.Timeout(None, write=0.25)
            assert (await client.post(peer.url, content=bytes(2**25), timeout=limits)).status_code == 200

    use(work)


def test_a_body_that_is_slow_to_come_is_given_its_time(use: RunWithClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0.08)
            yield KILOBYTE
        await asyncio.sleep(0.08)

    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            limits = httpx.Timeout(None, write=0.05)
            reply = await client.post(peer.url, content=chunks(), timeout=limits)
            assert reply.json()["bytes"] == 3072

    use(work)


def test_a_reply_may_come_before_the_request_was_taken(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        begun = asyncio.Event()

        async def answer_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1")
            await begun.wait()
            await reader.readexactly(2**25)
            writer.write(b"2")

        async with talking(answer_first) as peer:
            limits = httpx.Timeout(None, write=5)
            async with client.stream("POST", peer.url, content=bytes(2**25), timeout=limits) as reply:
                begun.set()
                assert await reply.aread() == b"12"

    use(work)


def test_a_body_that_fails_fails_the_request_with_its_own_error(use: RunWithClient) -> None:
    failure = ValueError("no more")

    async def chunks() -> AsyncIterator[bytes]:
        yield KILOBYTE
        raise failure

    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            with pytest.raises(ValueError, match="no more") as caught:
                await client.post(peer.url, content=chunks())
        assert caught.value is failure

    use(work)


@pytest.mark.parametrize(("method", "attempts"), [("POST", 1), ("GET", 2)])
def test_the_peer_reads_and_hangs_up(use: RunWithClient, method: str, attempts: int) -> None:
    """Aiohttp sends a GET once more by itself: to the server it is as if it had never come."""

    async def work(client: httpx.AsyncClient) -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)

        async with talking(hang_up) as peer:
            sending = client.request(method, peer.url, content=KILOBYTE)
            error = await fails(httpx.RemoteProtocolError, sending, aiohttp.ServerDisconnectedError)
            assert str(error) == "Server disconnected"
            assert peer.accepted == attempts

    use(work)


def test_the_peer_reads_what_comes_in_chunks_and_hangs_up(use: RunWithClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield KILOBYTE

    async def work(client: httpx.AsyncClient) -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n0\r\n\r\n")

        async with talking(hang_up) as peer:
            posting = client.post(peer.url, content=chunks())
            await fails(httpx.RemoteProtocolError, posting, aiohttp.ServerDisconnectedError)

    use(work)


def test_the_peer_resets_the_connection(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def crash(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            reset(writer)

        async with talking(crash) as peer:
            await fails(httpx.ReadError, client.post(peer.url), aiohttp.ClientOSError)

    use(work, collected=True)  # asyncio complains of an error that nobody looked at


@pytest.mark.parametrize(
    "head", [b"Content-Length: 100\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n64\r\n"]
)
@pytest.mark.parametrize("crashing", [True, False])
def test_the_reply_is_cut_off(use: RunWithClient, head: bytes, crashing: bool) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        received = asyncio.Event()

        async def answer_half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"half")
            await received.wait()
            if crashing:
                reset(writer)

        async with talking(answer_half) as peer, client.stream("GET", peer.url) as reply:
            chunks = reply.aiter_raw()
            assert await anext(chunks) == b"half"
            received.set()
            await fails(httpx.RemoteProtocolError, anext(chunks), aiohttp.ClientPayloadError)

    use(work)


def test_the_reply_is_not_http(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"220 smtp.example ESMTP\r\n\r\n")

        async with talking(babble) as peer:
            asking = client.post(peer.url, headers={"authorization": "Bearer secret"})
            error = await fails(httpx.RemoteProtocolError, asking, aiohttp.ClientResponseError)
            cause = error.__cause__
            assert isinstance(cause, aiohttp.ClientResponseError)
            assert dict(cause.request_info.headers) == {}
            assert "secret" not in repr(cause) + repr(cause.args)

    use(work)


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("ftp://example.org/", aiohttp.NonHttpUrlClientError),
        ("http:///path", aiohttp.InvalidUrlClientError),
        ("/path", aiohttp.InvalidUrlClientError),
        ("http://127.1/", aiohttp.InvalidUrlClientError),
    ],
)
def test_the_url_leads_nowhere(use: RunWithClient, url: str, cause: type[Exception]) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        await fails(httpx.UnsupportedProtocol, client.get(url), cause)

    use(work)


def test_a_header_cannot_be_sent(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async with serving(echo) as peer:
            getting = client.get(peer.url, headers={"X-Split": "a\r\nX-Injected: b"})
            await fails(httpx.LocalProtocolError, getting, ValueError)

    use(work)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (aiohttp.ServerTimeoutError(), httpx.ReadTimeout),
        (aiohttp.ClientConnectionResetError("Cannot write to closing transport"), httpx.WriteError),
        (aiohttp.ClientOSError(None, "Can not write request body"), httpx.WriteError),
        (aiohttp.ClientOSError(errno.EPIPE, "Broken pipe"), httpx.WriteError),
        (aiohttp.ClientOSError(errno.ETIMEDOUT, "Connection timed out"), httpx.ReadError),
        (aiohttp.ClientConnectionError("Connector is closed."), httpx.NetworkError),
        (aiohttp.ClientError("new in some version"), httpx.TransportError),
        (KeyError("ours"), KeyError),
    ],
)
def test_what_cannot_be_provoked_from_outside(
    use: RunWithClient, raised: Exception, expected: type[Exception]
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def fail(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
            raise raised

        session = await get_aiohttp_session()
        session._middlewares = (fail,)
        async with serving(echo) as peer:
            cause = None if expected is KeyError else type(raised)
            await fails(expected, client.post(peer.url), cause)

    use(work)


def test_the_session_is_closed_under_a_request(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        holding = Holding()
        async with serving(holding) as peer:
            posting = asyncio.create_task(client.post(peer.url))
            await holding.wait_for(1)
            await (await get_aiohttp_session()).close()
            await fails(httpx.RemoteProtocolError, posting, aiohttp.ServerDisconnectedError)
            holding.go_on.set()

    use(work)


# --- proxies and TLS


@pytest.mark.parametrize("trust_env", [True, False])
def test_proxy_variables_count_if_configured(
    use: RunWithClient, monkeypatch: pytest.MonkeyPatch, trust_env: bool
) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(text="direct")

        async def answer_for_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            target = (await read_request(reader)).split()[1]
            assert target == peer.url.encode() + b"/path"
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nproxy")

        async with serving(answer) as peer, talking(answer_for_all) as proxy:
            for name in ("http_proxy", "HTTP_PROXY"):
                monkeypatch.setenv(name, proxy.url)
            for name in ("no_proxy", "NO_PROXY"):
                monkeypatch.delenv(name, raising=False)
            expected = "proxy" if trust_env else "direct"
            assert (await client.get(peer.url + "/path")).text == expected
            async with (await get_aiohttp_session()).get(peer.url + "/path") as reply:
                assert await reply.text() == expected

    configure_http(HttpConfig(trust_env=trust_env))
    use(work)


def test_the_proxy_does_not_do_its_part(use: RunWithClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        async def forbid(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert (await read_request(reader)).startswith(b"CONNECT model.example:443")
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        async with talking(forbid) as proxy:
            monkeypatch.setenv("https_proxy", proxy.url)
            getting = client.get("https://model.example/")
            await fails(httpx.ProxyError, getting, aiohttp.ClientHttpProxyError)
        monkeypatch.setenv("https_proxy", refusing_url())
        getting = client.get("https://model.example/")
        await fails(httpx.ProxyError, getting, aiohttp.ClientProxyConnectionError)

    for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    configure_http(HttpConfig(trust_env=True))
    use(work)


CERTIFICATE = Path(__file__).parent / "certificate.pem"


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=CERTIFICATE)


def test_https_works_with_a_context_that_trusts_the_server(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        identity = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        identity.load_cert_chain(CERTIFICATE)
        async with serving(echo, ssl_context=identity) as peer:
            assert (await client.post(peer.url, content=200 * KILOBYTE)).json()["bytes"] == 200 * 1024
            async with (await get_aiohttp_session()).get(peer.url) as reply:
                assert reply.status == 200
            # the certificate is for 127.0.0.1 and model.example
            named = {"sni_hostname": "model.example"}
            assert (await client.get(peer.url, extensions=named)).status_code == 200
            strange = {"sni_hostname": "other.example"}
            await fails(
                httpx.ConnectError,
                client.get(peer.url, extensions=strange),
                aiohttp.ClientConnectorCertificateError,
            )

    configure_http(HttpConfig(ssl_context=trusting()))
    use(work)


def test_a_server_whose_certificate_nobody_vouches_for_is_not_talked_to(use: RunWithClient) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        identity = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        identity.load_cert_chain(CERTIFICATE)
        async with serving(echo, ssl_context=identity) as peer:
            await fails(httpx.ConnectError, client.get(peer.url), aiohttp.ClientConnectorCertificateError)
            assert peer.requests == []

    use(work)
