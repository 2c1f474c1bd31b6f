"""What an exchange makes of a reply that is left early, of a lost request, and of errors of aiohttp's."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import aiohttp
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.helpers import TimerContext
from aiohttp.http_exceptions import BadHttpMessage

from areal_core._engine.backend import HttpCall, ReplyError
from areal_core._engine.wire import complaint
from areal_core._engine.wire import exchange as exchange_module
from areal_core._engine.wire.exchange import Reply, StaleConnectionError, _Request, _unread
from areal_core.errors import (
    InferenceError,
    MalformedReplyError,
    ServerStatusError,
    ServerUnreachableError,
)
from exchanging import (
    POST,
    STREAM,
    RunWithSession,
    chunks,
    exchange_with,
    reply_of,
    saying,
    take_request,
    until_all_are_closed,
)
from peers import Talk, talking

ONE = reply_of("200 OK", b"x")


def failure_of(error: Exception) -> InferenceError:
    """Return what is made of *error*, of a request that has not left."""
    return _Request(exchange_with("host:80"), POST).failure(error)


def silent_after(raw: bytes) -> Talk:
    """Return a server's side of a connection: *raw*, and then nothing, not even an end."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take_request(reader)
        writer.write(raw)
        await reader.read()

    return talk


async def until_came(reply: Reply, size: int) -> None:
    """Wait until so many bytes of *reply* are here, which nobody reads."""
    while reply._content.total_bytes < size:  # noqa: ASYNC110 - aiohttp tells only who reads
        await asyncio.sleep(0)


# --- the body of a reply


def test_a_reply_is_taken_in_pieces_of_a_quarter_of_a_megabyte(use: RunWithSession) -> None:
    size = 2**18 + 2**17

    async def work(session: aiohttp.ClientSession) -> None:
        async with (
            talking(saying(reply_of("200 OK", bytes(size)))) as peer,
            exchange_with(peer).open(session, POST) as reply,
        ):
            await until_came(reply, size)
            assert [len(await reply._chunk()) for _ in range(3)] == [2**18, 2**17, 0]

    use(work)


@pytest.mark.parametrize("size", [2**16 - 1, 2**16])
def test_the_end_of_a_stream_is_waited_for_until_64_kilobytes_have_come(
    use: RunWithSession, size: int
) -> None:
    async def work(session: aiohttp.ClientSession) -> None:
        async with (
            talking(silent_after(STREAM + chunks(bytes(size)))) as peer,
            exchange_with(peer).open(session, POST) as reply,
        ):
            await until_came(reply, size)
            ending = asyncio.create_task(reply.end())
            await asyncio.sleep(0)  # it runs until it waits
            assert ending.done() == (size == 2**16)
            reply._request.hang_up()  # or the rest of the test would wait for the end too
            await ending

    use(work)


def test_the_end_of_a_stream_is_not_waited_for_long(
    use: RunWithSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "_END_S", 0.01)

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(silent_after(STREAM)) as peer:
            async with exchange_with(peer).open(session, POST):
                pass
            await until_all_are_closed()

    use(work)


def test_what_came_before_a_silence_is_given_before_its_error(use: RunWithSession) -> None:
    event = b"data: 1\n\n"

    async def work(session: aiohttp.ClientSession) -> None:
        async with (
            talking(silent_after(STREAM + chunks(event))) as peer,
            exchange_with(peer).open(session, POST) as reply,
        ):
            await until_came(reply, len(event))
            reply._content.set_exception(aiohttp.SocketTimeoutError())  # as aiohttp does after sock_read
            events = aiter(reply.events())
            assert await anext(events) == b"1"
            with pytest.raises(ServerUnreachableError, match="was silent for too long"):
                await anext(events)

    use(work)


def test_what_came_before_the_time_was_over_is_not_given_after_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        timer = TimerContext(loop)
        content = aiohttp.StreamReader(BaseProtocol(loop), 2**16, timer=timer, loop=loop)
        content.feed_data(b"data: 1\n\n")
        timer.timeout()
        with pytest.raises(TimeoutError) as caught:
            await content.read(1)
        assert _unread(content, caught.value) == b""
        assert content.exception() is caught.value

    asyncio.run(main())


# --- a reply that is no success


def test_a_reply_that_its_reader_refuses_is_told_with_who_and_what() -> None:
    exchange = exchange_with("host:80")
    refused = exchange.refused(POST, ReplyError("no room", 503))
    assert isinstance(refused, ServerStatusError)
    assert (refused.server, refused.call, refused.status) == ("host:80", "POST /generate", 503)
    assert refused.words == "no room"
    malformed = exchange.refused(POST, ReplyError("no text"))
    assert isinstance(malformed, MalformedReplyError)
    assert (malformed.server, malformed.call, malformed.problem) == ("host:80", "POST /generate", "no text")


@pytest.mark.parametrize("status", [300, 399])
def test_every_status_of_300_to_399_is_a_redirect(use: RunWithSession, status: int) -> None:
    raw = reply_of(f"{status} Elsewhere", b"look there", "Location: http://other:81/x")

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(saying(raw)) as peer:
            with pytest.raises(ServerStatusError) as caught:
                await exchange_with(peer).call(session, POST, 5)
        assert caught.value.words == "a redirect to http://other:81, which is not followed"

    use(work)


def test_words_as_long_as_the_bound_are_read_on_to_see_that_they_end(
    use: RunWithSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complaint, "MOST_BYTES", 4)
    monkeypatch.setattr(exchange_module, "_CHUNK_BYTES", 4)

    async def words(session: aiohttp.ClientSession, body: bytes) -> str:
        async with talking(saying(reply_of("503 Busy", body))) as peer:
            with pytest.raises(ServerStatusError) as caught:
                await exchange_with(peer).call(session, POST, 5)
        return caught.value.words

    async def work(session: aiohttp.ClientSession) -> None:
        assert await words(session, b"busy") == "busy"
        assert await words(session, b"busy!") == "more than 4 bytes, which were not read"

    use(work)


# --- a request that is lost


def test_a_call_without_a_body_is_sent_again_too(use: RunWithSession) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(ONE)(reader, writer)
        await take_request(reader)

    async def work(session: aiohttp.ClientSession) -> None:
        async with talking(talk) as peer:
            for _ in range(2):
                assert await exchange_with(peer).call(session, HttpCall("POST", "/pause"), 5) == b"x"
        assert peer.accepted == 2

    use(work)


def test_a_call_that_could_not_be_sent_again_is_told_by_its_last_attempt(use: RunWithSession) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(ONE)(reader, writer)
        await take_request(reader)

    async def work(session: aiohttp.ClientSession) -> None:
        attempts = 0
        connect = session.connector.connect  # type: ignore[union-attr]

        async def connect_twice(*args: Any, **options: Any) -> Any:
            nonlocal attempts
            attempts += 1
            if attempts > 2:
                raise aiohttp.ClientConnectionError("Connector is closed")  # as aiohttp does
            return await connect(*args, **options)

        session.connector.connect = connect_twice  # type: ignore[union-attr, method-assign]
        async with talking(talk) as peer:
            assert await exchange_with(peer).call(session, POST, 5) == b"x"
            with pytest.raises(ServerUnreachableError) as caught:
                await exchange_with(peer).call(session, POST, 5)
        assert type(caught.value) is ServerUnreachableError
        assert not caught.value.sent
        assert attempts == 3

    use(work)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"])
def test_a_body_that_is_not_taken_is_given_up_without_a_reply(use: RunWithSession, answer: bytes) -> None:
    call = HttpCall("POST", "/generate", bytes(2**24))

    async def work(session: aiohttp.ClientSession) -> None:
        arrived = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            arrived.set()
            await asyncio.Event().wait()

        async with talking(talk) as peer:
            task = asyncio.create_task(exchange_with(peer).call(session, call, 5))
            await arrived.wait()
            if not answer:
                task.cancel()
            with pytest.raises(MalformedReplyError if answer else asyncio.CancelledError):
                await task
            await until_all_are_closed()

    use(work)


@pytest.mark.parametrize(("ago_s", "stale"), [(0.5, True), (1.5, False)])
def test_a_server_that_was_silent_for_a_second_was_not_ending_an_idle_connection(
    ago_s: float, stale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> InferenceError:
        request = _Request(exchange_with("host:80"), POST)
        assert request._body is not None
        request._body.reused = True
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 100.0)
        request._body.left_at = 100.0 - ago_s
        return request.failure(aiohttp.ServerDisconnectedError())

    error = asyncio.run(main())
    did = "was ending the connection that was used" if stale else "hung up before it answered"
    assert type(error) is (StaleConnectionError if stale else ServerUnreachableError)
    assert str(error) == f"host:80 {did} (POST /generate)"


# --- errors of aiohttp's

KEY = ConnectionKey("host", 80, False, True, None, None, None)
NO_DATA = getattr(socket, "EAI_NODATA", socket.EAI_NONAME)  # systems differ in these


@pytest.mark.parametrize(
    ("number", "unresolved"),
    [(socket.EAI_NONAME, False), (NO_DATA, False), (socket.EAI_AGAIN, True), (socket.EAI_FAIL, True)],
)
def test_only_where_nobody_could_say_is_a_name_unresolved(number: int, unresolved: bool) -> None:
    error = failure_of(aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(number, "no such luck")))
    assert isinstance(error, ServerUnreachableError)
    assert str(error) == "host:80 cannot be reached: no such luck (POST /generate)"
    assert (error.unresolved, error.errno, error.sent) == (unresolved, None, False)


@pytest.mark.parametrize(
    ("words", "unresolved"),
    [
        ((1, "no data"), False),
        ((4, "not found"), False),
        ((8, "misformatted"), False),
        ((11, "refused"), True),
        ((12, "timeout"), True),
        ((), True),
        (None, True),
    ],
)
def test_where_aiodns_is_asked_its_own_numbers_say_whether_there_is_a_name(
    words: tuple[object, ...] | None, unresolved: bool
) -> None:
    answer = OSError(None, "no such luck")  # so aiohttp's AsyncResolver, which leaves the number in the cause
    if words is not None:
        answer.__cause__ = Exception(*words)
    error = failure_of(aiohttp.ClientConnectorDNSError(KEY, answer))
    assert isinstance(error, ServerUnreachableError)
    assert error.unresolved is unresolved


@pytest.mark.parametrize(
    ("cause", "number", "why"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), errno.ECONNREFUSED, "refused"),
        (OSError(errno.EMFILE, "too many"), errno.EMFILE, "too many"),
        (
            OSError("Multiple exceptions: one, another"),
            errno.EHOSTUNREACH,
            "Multiple exceptions: one, another",
        ),
    ],
)
def test_a_connection_that_was_not_made_is_told_by_number_and_reason(
    cause: OSError, number: int, why: str
) -> None:
    error = failure_of(aiohttp.ClientConnectorError(KEY, cause))
    assert isinstance(error, ServerUnreachableError)
    assert str(error) == f"host:80 cannot be reached: {why} (POST /generate)"
    assert (error.errno, error.sent) == (number, False)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("Bad header:\n\n  b'x'\n    ^", "Bad header"),
        ("Bad header: b'x'", "Bad header"),
        ('Bad header: b"it\'s"', "Bad header"),
        ("x" * 1000, "x" * 300),
    ],
)
def test_of_what_is_no_http_the_beginning_is_told_without_what_the_server_sent(
    message: str, problem: str
) -> None:
    error = failure_of(BadHttpMessage(message))
    assert isinstance(error, MalformedReplyError)
    assert (error.server, error.call, error.problem) == ("host:80", "POST /generate", problem)


def test_an_error_without_words_is_told_by_its_type() -> None:
    assert str(failure_of(ValueError())) == "host:80 could not be asked (POST /generate): ValueError"
