"""What goes wrong between us and a server, and that no error shows the key."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import socket
import ssl
import zlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from areal_core._engine.backend import HttpCall
from areal_core._engine.wire import exchange as exchange_module
from areal_core._engine.wire.api_key import ApiKey
from areal_core._engine.wire.exchange import Exchange, StaleConnectionError
from areal_core.errors import (
    InferenceError,
    MalformedReplyError,
    ServerStatusError,
    ServerUnreachableError,
)
from areal_core.workflow_context import HttpConfig, configure_http
from exchanging import (
    CHUNKED,
    GET,
    KEY,
    LAST_CHUNK,
    POST,
    STREAM,
    RunWithSession,
    all_shown,
    chunks,
    exchange_with,
    reply_of,
    saying,
    take_request,
    until_all_are_closed,
)
from peers import FullListener, Peer, refusing_url, reset, serving, talking


async def error_of(
    peer: Peer | str,
    session: aiohttp.ClientSession,
    call: HttpCall = POST,
    timeout_s: float = 5,
    **options: Any,
) -> InferenceError:
    """Return the error that *call* ends in, having seen that it does not show the key."""
    with pytest.raises(InferenceError) as caught:
        await exchange_with(peer, **options).call(session, call, timeout_s)
    assert "s3cret" not in all_shown(caught.value)
    assert len(str(caught.value).encode()) < 2048
    return caught.value


async def error_of_a_generation(peer: Peer, session: aiohttp.ClientSession) -> InferenceError:
    """Do the same with a request that is not sent again."""
    with pytest.raises(InferenceError) as caught:
        await exchange_with(peer).open(session, POST).__aenter__()
    assert "s3cret" not in all_shown(caught.value)
    return caught.value


def name_of(url: str) -> str:
    return url.removeprefix("http://")


# --- the server is not reached


class NoNames(AbstractResolver):
    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def close(self) -> None:
        pass


def unreachable(error: InferenceError, words: str) -> None:
    assert type(error) is ServerUnreachableError
    assert words in str(error)
    assert str(error).endswith("(POST /generate)")
    assert not error.sent


def test_a_refused_connection_was_not_sent(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        url = refusing_url()
        error = await error_of(url, session)
        unreachable(error, f"{name_of(url)} cannot be reached: Connect")
        assert isinstance(error, ServerUnreachableError)
        assert (error.server, error.errno) == (name_of(url), errno.ECONNREFUSED)

    use(work)


def test_a_name_that_is_not_known_was_not_sent(use: RunWithSession) -> None:
    async def work(_: aiohttp.ClientSession) -> None:
        connector = aiohttp.TCPConnector(resolver=NoNames())
        async with aiohttp.ClientSession(connector=connector) as session:
            error = await error_of("http://model.example:80", session)
        unreachable(error, "model.example:80 cannot be reached: Name or service not known")

    use(work)


def test_a_connection_that_takes_too_long_was_not_sent(use: RunWithSession) -> None:
    configure_http(HttpConfig(connect=0.05))

    async def work(session: aiohttp.ClientSession) -> None:
        with FullListener() as url:
            for call in (POST, GET):
                error = await error_of(url, session, call)
                assert str(error).endswith(f"cannot be reached: no connection in time ({call.name})")
                assert isinstance(error, ServerUnreachableError)
                assert not error.sent
            unreachable(await error_of(url, session, timeout_s=0.01), "gave no whole answer within 0.01 s")

    use(work)


def test_what_is_no_tls_was_not_sent(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async with serving(pong) as peer:
            url = peer.url.replace("http:", "https:")
            error = await error_of(url, session)
        unreachable(error, f"{url} cannot be reached: ")
        assert peer.requests == []

    use(work)


def test_a_certificate_that_is_not_trusted_was_not_sent(use: RunWithSession) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).with_name("certificate.pem"))

    async def work(session: aiohttp.ClientSession) -> None:
        async with serving(pong, ssl_context=context) as peer:
            error = await error_of(peer.url, session)
        unreachable(error, "certificate verify failed")
        assert peer.requests == []

    use(work)


async def pong(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    return web.Response(text="pong")


# --- the server may have the request


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await take_request(reader)


async def reset_it(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await take_request(reader)
    reset(writer)


async def begin_a_reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await take_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (hang_up, "hung up before it answered"),
        (reset_it, "hung up before it answered"),
        (begin_a_reply, "hung up before it answered"),
        (saying(CHUNKED + chunks(b"{")), "hung up in the middle of its answer"),
        (saying(CHUNKED + b"5\r\n{"), "hung up in the middle of its answer"),
        (saying(reply_of("200 OK", b"{}")[:-1]), "hung up in the middle of its answer"),
        (
            saying(reply_of("200 OK", zlib.compress(b"{}"), "Content-Encoding: deflate")[:-2]),
            "hung up in the middle of its answer",
        ),
    ],
)
def test_a_server_that_hangs_up_may_have_the_request(use: RunWithSession, talk: Any, words: str) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(talk) as peer:
            error = await error_of(peer, session)
        assert type(error) is ServerUnreachableError
        assert str(error) == f"{name_of(peer.url)} {words} (POST /generate)"
        assert error.sent

    use(work)


async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await take_request(reader)
    await reader.read()


async def begin_and_be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await take_request(reader)
    writer.write(STREAM + chunks(b"data: 1\n\n"))
    await reader.read()


@pytest.mark.parametrize("talk", [be_silent, begin_and_be_silent])
@pytest.mark.parametrize("config", [HttpConfig(sock_read=0.05), HttpConfig(total=0.2)])
@pytest.mark.parametrize("call", [POST, GET])
def test_a_silent_server_may_have_the_request(
    use: RunWithSession, talk: Any, config: HttpConfig, call: HttpCall
) -> None:
    configure_http(config)

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(talk) as peer:
            error = await error_of(peer, session, call)
        assert type(error) is ServerUnreachableError
        assert str(error) == f"{name_of(peer.url)} was silent for too long ({call.name})"
        assert error.sent

    use(work)


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 500 Bad\r\n\r\n", b"HTTP/1.1 200 O"]
)
def test_a_call_to_a_server_that_answers_a_byte_at_a_time_ends_in_time(
    use: RunWithSession, head: bytes
) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        arrived = False

        async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal arrived
            await take_request(reader)
            arrived = True
            writer.write(head)
            while head:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.001)
            await reader.read()

        async with talking(dribble) as peer:
            error = await error_of(peer, session, timeout_s=0.1)
            await until_all_are_closed()
        assert type(error) is ServerUnreachableError
        assert str(error) == f"{name_of(peer.url)} gave no whole answer within 0.1 s (POST /generate)"
        assert error.sent or not arrived

    use(work)


def test_a_call_whose_body_is_not_taken_ends_in_time(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        arrived = False

        async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal arrived
            await reader.readuntil(b"\r\n\r\n")
            arrived = True
            await asyncio.Event().wait()

        async with talking(never_read) as peer:
            call = HttpCall("POST", "/generate", bytes(2**25))
            error = await error_of(peer, session, call, timeout_s=0.1)
            await until_all_are_closed()
        assert type(error) is ServerUnreachableError
        assert error.sent or not arrived

    use(work)


# --- a connection that the server was ending


async def keep_one_idle(peer: Peer, session: aiohttp.ClientSession) -> None:
    assert await exchange_with(peer).call(session, POST, 5) == b"x"


ONE = reply_of("200 OK", b"x")


@pytest.mark.parametrize("end", [hang_up, reset_it])
def test_a_request_that_left_as_the_server_ended_an_idle_connection_may_be_sent_at_once(
    use: RunWithSession, end: Any
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(ONE)(reader, writer)
        await end(reader, writer)

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(talk) as peer:
            await keep_one_idle(peer, session)
            error = await error_of_a_generation(peer, session)
            assert type(error) is StaleConnectionError
            assert error.sent
            assert error.server == name_of(peer.url)
            await keep_one_idle(peer, session)
        assert peer.accepted == 2

    use(work)


def test_a_request_that_could_not_leave_any_more_was_not_sent(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(ONE, ONE)) as peer:
            exchange = exchange_with(peer)
            async with exchange.open(session, POST) as reply:
                connection: Any = reply.connection
            connect = session.connector.connect  # type: ignore[union-attr]

            async def connect_and_lose(*args: Any, **options: Any) -> Any:
                got = await connect(*args, **options)
                if got.protocol is connection:
                    got.transport.abort()  # type: ignore[union-attr]
                return got

            session.connector.connect = connect_and_lose  # type: ignore[union-attr, method-assign]
            error = await error_of_a_generation(peer, session)
            assert isinstance(error, ServerUnreachableError)
            assert not error.sent
            assert await exchange_with(peer).call(session, POST, 5) == b"x"
        assert peer.accepted == 2

    use(work)


@pytest.mark.parametrize("case", ["new connection", "reply had begun", "long after"])
def test_a_server_that_broke_off_is_not_taken_for_one_that_ended_an_idle_connection(
    use: RunWithSession, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "long after":
        monkeypatch.setattr(exchange_module, "_RACE_S", 0.0)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if case != "new connection":
            await saying(ONE)(reader, writer)
        await (begin_a_reply if case == "reply had begun" else hang_up)(reader, writer)

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(talk) as peer:
            if case != "new connection":
                await keep_one_idle(peer, session)
            error = await error_of_a_generation(peer, session)
        assert type(error) is ServerUnreachableError
        assert error.sent

    use(work)


@pytest.mark.parametrize("idle", [1, 3, 4])
def test_a_call_is_sent_again_when_the_server_was_ending_the_connection_but_not_for_ever(
    use: RunWithSession, idle: int
) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        arrived, go_on = asyncio.Semaphore(0), asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await take_request(reader)
            arrived.release()
            await go_on.wait()
            writer.write(ONE)
            await take_request(reader)

        async with talking(talk) as peer:
            tasks = [asyncio.create_task(keep_one_idle(peer, session)) for _ in range(idle)]
            for _ in tasks:
                await arrived.acquire()
            go_on.set()
            await asyncio.gather(*tasks)
            if idle < 4:
                await keep_one_idle(peer, session)
            else:
                assert type(await error_of(peer, session)) is StaleConnectionError
        assert peer.accepted == (idle + 1 if idle < 4 else idle)

    use(work)


# --- the server does not speak HTTP


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"SSH-2.0-OpenSSH_9.6 " + KEY.encode() + b"\r\n\r\n", "Bad status line"),
        (b"HTTP/1.1 200 OK\r\nBad Header " + KEY.encode() + b": x\r\n\r\n", "Invalid header token"),
        (
            b"HTTP/1.1 200 OK\r\nX: " + KEY.encode() * 2000 + b"\r\n\r\n",
            "Got more than 8190 bytes when reading",
        ),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 2000 + b"\r\n", "Too many"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "Invalid character in Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", ""),
        (CHUNKED + chunks(b"{") + b"zz" + KEY.encode() + b"\r\n", "Invalid character in chunk size"),
        (reply_of("200 OK", b"{}", "Content-Encoding: gzip"), "Can not decode content-encoding"),
        (
            CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + chunks(b"{}"),
            "Can not decode",
        ),
        (b"\x00\x01\x02\r\n\r\n", ""),
    ],
)
def test_a_server_that_speaks_no_http_is_named_with_what_is_wrong(
    use: RunWithSession, raw: bytes, problem: str
) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(raw)) as peer:
            error = await error_of(peer, session)
        assert type(error) is MalformedReplyError
        assert (error.server, error.call) == (name_of(peer.url), "POST /generate")
        assert error.problem.startswith(problem)
        assert error.problem
        assert "SSH" not in error.problem
        assert "Bad Header" not in error.problem

    use(work)


def test_a_body_that_turns_bad_later_ends_with_an_error(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        taken = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await take_request(reader)
            writer.write(STREAM + chunks(b"data: 1\n\n"))
            await taken.wait()
            writer.write(b"zz\r\ndata: 2\n\n\r\n")
            await reader.read()

        async with talking(talk) as peer, exchange_with(peer).open(session, POST) as reply:
            events = aiter(reply.events())
            assert await anext(events) == b"1"
            taken.set()
            with pytest.raises(ServerUnreachableError, match="hung up in the middle") as caught:
                await anext(events)
        assert caught.value.sent
        assert "s3cret" not in all_shown(caught.value)

    use(work)


def test_an_event_that_is_too_large_is_malformed(use: RunWithSession) -> None:
    raw = STREAM + chunks(b"data: 1\n\n", b"data: " + b"x" * 2000 + b"\n\n") + LAST_CHUNK

    async def take(exchange: Exchange, session: aiohttp.ClientSession) -> None:
        async with exchange.open(session, POST) as reply:
            async for _ in reply.events():
                pass

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(raw)) as peer:
            with pytest.raises(MalformedReplyError) as caught:
                await take(exchange_with(peer, most_bytes=1000), session)
        assert caught.value.problem == "an event of the stream has more than 1000 bytes"
        assert "s3cret" not in all_shown(caught.value)

    use(work)


# --- the server refuses


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_refusal_says_who_what_and_in_which_words(use: RunWithSession, asynchronous: bool) -> None:
    body = b'{"error": {"message": "max_tokens is too large", "code": 400}}'
    raw = reply_of("400 Bad Request", body, "Retry-After: 3")

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(raw)) as peer:
            exchange = exchange_with(peer)
            with pytest.raises(ServerStatusError) as caught:
                await (
                    exchange.open(session, POST).__aenter__()
                    if asynchronous
                    else exchange.call(session, POST, 5)
                )
        error = caught.value
        assert (error.server, error.call, error.status) == (name_of(peer.url), "POST /generate", 400)
        assert (error.words, error.retry_after_s) == ("max_tokens is too large", 3.0)
        assert str(error) == f"{name_of(peer.url)} answered POST /generate with 400: max_tokens is too large"

    use(work)


@pytest.mark.parametrize(
    "status", ["101 Switching Protocols", "304 Not Modified", "400 Bad", "599 Odd", "999 Odder"]
)
def test_every_status_but_success_is_a_refusal(use: RunWithSession, status: str) -> None:
    headers = ["Upgrade: x", "Connection: upgrade"] if status.startswith("101") else []

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(reply_of(status, b"", *headers))) as peer:
            error = await error_of(peer, session)
        assert isinstance(error, ServerStatusError)
        assert error.status == int(status.split()[0])
        assert error.retry_after_s is None

    use(work)


@pytest.mark.parametrize("status", ["301 a", "302 b", "303 c", "307 d", "308 e"])
@pytest.mark.parametrize(
    ("location", "where"),
    [
        (f"http://other.example:81/path?key={KEY}#x", "a redirect to http://other.example:81,"),
        (f"https://me:pass@other.example/{KEY}", "a redirect to https://other.example,"),
        (f"https://me:{KEY}@other.example/", "a redirect to no URL,"),
        (f"http://{KEY.replace('/', '').replace('+', '')}.example/", "a redirect to http://"),
        ("/generate/", "a redirect to another path of the server,"),
        ("", "a redirect to nowhere,"),
        ("http://[::1", "a redirect to no URL,"),
        ("//other.example/x", "a redirect to "),
        ("mailto:me", "a redirect to "),
    ],
)
def test_a_redirect_is_not_followed_and_only_its_origin_is_told(
    use: RunWithSession, status: str, location: str, where: str
) -> None:
    raw = reply_of(status, b"", *([f"Location: {location}"] if location else []))

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(raw)) as peer:
            with pytest.raises(ServerStatusError) as caught:
                await exchange_with(peer).call(session, POST, 5)
        assert caught.value.words.startswith(where)
        assert "path?" not in str(caught.value)
        assert KEY not in str(caught.value)
        assert peer.accepted == 1

    use(work)


def test_a_redirect_takes_neither_request_nor_key_to_another_server(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async with serving(pong) as other:
            raw = reply_of("307 Elsewhere", b"", f"Location: {other.url}/generate")
            async with talking(saying(raw)) as peer:
                error = await error_of(peer, session)
        assert f"a redirect to {other.url}, which is not followed" in str(error)
        assert other.accepted == 0

    use(work)


@pytest.mark.parametrize(
    "body",
    [
        f"you said Authorization: Bearer {KEY}",
        f'{{"error": {{"message": "no such key: {KEY}"}}}}',
        '{"detail": "no such key: ' + KEY.replace("/", "\\/") + '"}',
        '{"detail": "no such key: ' + KEY.replace("/", "\\/") + '"',
        "no such key: " + KEY.replace("/", "%2F").replace("+", "%2B"),
        "no such key: " + KEY.upper(),
        " " * 65530 + KEY,
        "x" * 1195 + KEY,
    ],
)
def test_a_key_that_the_server_repeats_is_not_shown(use: RunWithSession, body: str) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(reply_of("401 No", body.encode()))) as peer:
            error = await error_of(peer, session)
        assert "sk-" not in str(error).lower()
        assert len(body) > 1000 or "[API key]" in str(error)

    use(work)


def test_words_that_do_not_end_are_not_waited_for(
    use: RunWithSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "_WORDS_S", 0.05)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take_request(reader)
        writer.write(b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 100\r\n\r\nso busy")
        await reader.read()

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(talk) as peer:
            error = await error_of(peer, session)
            await until_all_are_closed()
        assert isinstance(error, ServerStatusError)
        assert (error.status, error.words, error.retry_after_s) == (503, "so busy", 1.0)

    use(work)


# --- what cannot be asked


def test_a_session_that_was_closed_is_an_error_of_ours(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        await session.close()
        error = await error_of("http://host:80", session)
        assert type(error) is InferenceError
        assert str(error) == "host:80 could not be asked (POST /generate): Session is closed"

    use(work)


def test_a_session_that_is_closed_under_a_generation_ends_it(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(begin_and_be_silent) as peer, exchange_with(peer).open(session, POST) as reply:
            events = aiter(reply.events())
            assert await anext(events) == b"1"
            closing = asyncio.create_task(session.close())
            with pytest.raises(ServerUnreachableError):
                await anext(events)
            await closing

    use(work)


def test_a_session_that_is_closed_while_it_connects_is_no_stale_connection(use: RunWithSession) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async def connect(*args: Any, **options: Any) -> Any:
            raise aiohttp.ClientConnectionError("Connector is closed")  # as aiohttp does

        session.connector.connect = connect  # type: ignore[union-attr, method-assign]
        error = await error_of("http://host:80", session)
        assert type(error) is ServerUnreachableError
        assert not error.sent

    use(work)


@pytest.mark.parametrize("key", ["", " ", "a\nb", "a\r\nX: y", "schlüssel", " a", "a\n", "\x7f"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key: str) -> None:
    with pytest.raises(ValueError, match=r"^an API key is empty, or has") as caught:
        ApiKey(key)
    assert len(key) < 3 or repr(key)[1:-1] not in str(caught.value)


def test_a_key_is_text() -> None:
    with pytest.raises(TypeError, match="an API key is a bytes, not a str"):
        ApiKey(KEY.encode())  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ['sk"s3cret', "sk\\s3cret", "sk-s3cret\\", "sk/s3cret", 'sk/s"3cret'])
def test_of_a_key_that_is_repeated_in_json_nothing_is_left(key: str) -> None:
    in_json = json.dumps(key)
    for written in (in_json, in_json.replace("/", r"\/")):
        assert ApiKey(key).scrub(f"your key {written} is bad") == 'your key "[API key]" is bad'


def test_who_holds_a_key_does_not_show_it() -> None:
    exchange = exchange_with("host:80")
    assert repr(exchange) == "<Exchange with host:80>"
    assert "s3cret" not in f"{exchange!r}{exchange}{vars(exchange)!r}{ApiKey(KEY)}"
    assert re.fullmatch("<ApiKey>", repr(ApiKey(KEY)))


def test_a_key_and_a_netrc_entry_for_the_same_server_are_an_error_that_says_so(
    use: RunWithSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password s3cret-too\n")
    monkeypatch.setenv("NETRC", str(netrc))
    configure_http(HttpConfig(trust_env=True))

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(ONE)) as peer:
            error = await error_of(peer, session)
        assert type(error) is InferenceError
        assert "Cannot combine AUTHORIZATION header" in str(error)

    use(work)
