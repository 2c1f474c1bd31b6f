"""The faults an embedded server has on order, as its clients meet them."""

from __future__ import annotations

import gzip
import http.client
import json
import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import pytest

from areal_core.embedded import EmbeddedServer
from areal_core.embedded._fault_script import Malformed
from calls import call, generate
from children import StartScript
from streams import stream
from test_embedded_process import COMMAND, ended, listening

BODY = {"input_ids": [21], "return_logprob": True}


@pytest.fixture
def connect(server: EmbeddedServer) -> Iterator[Callable[[], http.client.HTTPConnection]]:
    """Make connections that are closed after the test."""
    with ExitStack() as stack:
        host, port = server.addr.split(":")
        yield lambda: stack.enter_context(closing(http.client.HTTPConnection(host, int(port), timeout=10)))


Connect = Callable[[], http.client.HTTPConnection]


def ask(connection: http.client.HTTPConnection, **body: Any) -> http.client.HTTPResponse:
    connection.request("POST", "/generate", json.dumps(BODY | body))
    return connection.getresponse()


def status(server: EmbeddedServer, path: str = "/generate") -> int:
    return call(server, "POST" if path == "/generate" else "GET", path, BODY)[0]


def count(server: EmbeddedServer, name: str) -> int:
    return server.stats().faults.get(name, 0)


def test_a_refusal_strikes_as_often_as_it_was_told_and_is_counted(
    server: EmbeddedServer, connect: Connect
) -> None:
    server.faults(["status=503,every=3"])
    before = server.stats()
    assert before.faults["status_503"] == 0
    assert [status(server) for _ in range(7)] == [200, 200, 503, 200, 200, 503, 200]
    after = server.stats(status_503=2)
    assert (after.faults["status_503"], after.generations - before.generations) == (2, 5)
    server.faults(["status=429,retry_after=2,next=1"])
    reply = ask(connect())
    assert (reply.status, reply.headers["Retry-After"]) == (429, "2")
    assert json.loads(reply.read())["error"]["message"] == "the script of faults says so"
    assert status(server) == 200
    server.faults(["status=503"])
    assert ask(connect()).headers["Retry-After"] is None
    assert server.stats().faults == {**after.faults, "status_429": 1, "status_503": 3}


def test_a_path_chooses_the_calls_and_those_of_the_server_itself_are_spared(server: EmbeddedServer) -> None:
    server.faults(["status=500,path=/health"])
    assert (status(server), status(server, "/health")) == (200, 500)
    server.faults(["status=500,path=*"])
    assert (status(server), status(server, "/health"), status(server, "/nowhere")) == (500, 500, 500)
    assert server.stats().faults["status_500"] > 0


def test_latencies_add_up_and_the_first_other_fault_is_the_last_a_request_meets(
    server: EmbeddedServer,
) -> None:
    server.faults(["latency=50", {"latency": 50}, "status=501", "status=502", "latency=1e6"])
    before = server.stats().faults
    begun = time.monotonic()
    assert status(server) == 501
    assert time.monotonic() - begun >= 0.095  # uvloop's timers ring up to a millisecond early
    after = server.stats().faults
    assert (after["latency"] - before["latency"], after["status_501"], after["status_502"]) == (2, 1, 0)


def test_faults_are_replaced_at_once_and_a_bad_list_changes_nothing(server: EmbeddedServer) -> None:
    server.faults(["status=500"])
    with pytest.raises(ValueError, match=r"^faults\[1\].status=200 is not an integer in 400..599$"):
        server.faults(["silent", {"status": 200}])
    assert call(server, "POST", "/faults", {})[1] == {"error": {"message": "faults={} is not a list"}}
    assert status(server) == 500
    server.faults([])
    assert status(server) == 200


def test_an_aborted_generation_has_the_first_of_its_tokens_or_none(server: EmbeddedServer) -> None:
    whole = generate(server, **BODY)["output_ids"]
    for tokens in (3, 0):
        server.faults([{"abort": tokens}])
        reply = generate(server, **BODY)
        assert reply["output_ids"] == whole[:tokens]
        assert reply["meta_info"]["finish_reason"]["type"] == "abort"
    server.faults(["abort=1000"])
    assert generate(server, **BODY)["output_ids"] == whole


@pytest.mark.parametrize("size", [1, 100, 10**6])
def test_a_server_hangs_up_in_the_middle_of_the_body(
    server: EmbeddedServer, connect: Connect, size: int
) -> None:
    whole = len(ask(connect()).read())
    server.faults([{"disconnect": size, "next": 1}])
    with pytest.raises(http.client.IncompleteRead) as cut:
        ask(connect()).read()
    assert abs(len(cut.value.partial) - min(size, whole - 1)) <= 3  # e2e_latency has more digits or fewer
    assert len(cut.value.partial) + (cut.value.expected or 0) == pytest.approx(whole, abs=3)


def test_a_server_hangs_up_before_the_first_byte(server: EmbeddedServer, connect: Connect) -> None:
    server.faults(["disconnect,next=1"])
    with pytest.raises(http.client.RemoteDisconnected):
        ask(connect())
    server.faults(["disconnect,reset,next=1"])
    with pytest.raises(ConnectionResetError, match="reset by peer"):
        ask(connect())
    server.faults(["disconnect=10,reset,next=1"])
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        ask(connect()).read()
    assert status(server) == 200


def test_an_idle_connection_is_closed_and_one_in_use_is_not(server: EmbeddedServer, connect: Connect) -> None:
    server.faults(["idle=0.1"])
    struck = count(server, "idle")
    idle, used = connect(), connect()
    # Its second request is there before its first is answered: it is never idle, however slow we are.
    first, body = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: ", json.dumps(BODY)
    second = f"GET /stats?idle={struck + 1} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    used.connect()
    used.sock.sendall(f"{first}{len(body)}\r\n\r\n{body}{second}".encode())
    replies = used.sock.makefile("rb")
    assert replies.readline() == b"HTTP/1.1 200 OK\r\n"
    ask(idle).read()
    assert idle.sock.recv(1) == b""
    # The second is answered when the other connection is closed.
    *_, stats = replies.read().split(b"\r\n\r\n")
    assert json.loads(stats)["faults"]["idle"] == struck + 1


def test_a_kept_connection_is_closed_just_as_the_next_request_arrives(
    server: EmbeddedServer, connect: Connect
) -> None:
    server.faults(["race"])
    kept = connect()
    assert ask(kept).read()
    with pytest.raises(http.client.RemoteDisconnected):
        ask(kept)
    assert ask(connect()).read()
    assert count(server, "race") == 1


def spoilt(connection: http.client.HTTPConnection) -> tuple[str | None, bytes]:
    reply = ask(connection)
    assert reply.status == 200
    return reply.headers["Content-Type"], reply.read()


@pytest.mark.parametrize("how", Malformed)
def test_a_reply_is_spoilt_in_one_way_and_whole_in_the_eyes_of_http(
    server: EmbeddedServer, connect: Connect, how: Malformed
) -> None:
    _, right = spoilt(connect())
    server.faults([f"malformed={how}"])
    kind, body = spoilt(connect())
    assert kind == ("text/html" if how is Malformed.CONTENT_TYPE else "application/json")
    LOOKS[how](json.loads(right), body)
    assert count(server, f"malformed_{how}") == 1


def test_each_piece_of_a_stream_is_spoilt(server: EmbeddedServer, connect: Connect) -> None:
    body = {"token_ids": [21], "request_id": "r", "stream": True, "sampling_params": {"logprobs": 0}}

    def pieces(path: str, body: Any) -> list[bytes]:
        connection = connect()
        connection.request("POST", path, json.dumps(body))
        reply = connection.getresponse()
        kinds.append(reply.headers["Content-Type"])
        *events, end, nothing = reply.read().split(b"\n\n")
        assert (end, nothing) == (b"data: [DONE]", b"")
        return [event.removeprefix(b"data: ") for event in events]

    kinds: list[str | None] = []
    path = "/inference/v1/generate"
    (right,) = pieces(path, body)
    choice = json.loads(right)["choices"][0]
    server.faults(["malformed=truncated,next=1", "malformed=uneven,next=1", "malformed=content_type"])
    assert pieces(path, body) == [right[: len(right) // 2]]
    (uneven,) = pieces(path, body)
    assert json.loads(uneven)["choices"][0]["token_ids"] == choice["token_ids"]
    assert json.loads(uneven)["choices"][0]["logprobs"]["content"] == choice["logprobs"]["content"][:-1]
    (typed,) = pieces(path, body)
    assert json.loads(typed)["choices"] == [choice]
    assert kinds == ["text/event-stream"] * 3 + ["text/html"]
    server.faults(["malformed=missing_ids"])
    (missing,) = pieces("/v1/completions", {"prompt": [21], "stream": True, "return_token_ids": True})
    assert json.loads(missing)["choices"][0].keys() == {
        "index",
        "text",
        "finish_reason",
        "stop_reason",
        "prompt_token_ids",
    }


def test_a_stream_that_breaks_off_ends_its_generation() -> None:
    with EmbeddedServer(ms_per_token=5, sigma=0, fault=["disconnect=1000"]) as server:
        host, port = server.addr.split(":")
        body = {"stream": True, "sampling_params": {"ignore_eos": True, "max_new_tokens": 10_000}}
        with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
            reply = ask(connection, **body)
            with pytest.raises(http.client.IncompleteRead) as cut:
                reply.read()
        assert len(cut.value.partial) == 1000
        stats = server.stats(cancelled=1)
        assert (stats.in_flight, stats.faults) == (0, {"disconnect": 1})


def test_an_abort_ends_a_stream_in_every_dialect(server: EmbeddedServer) -> None:
    server.faults(["abort=2"])
    (whole,) = stream(server, "/generate", BODY)
    assert (len(whole["output_ids"]), whole["meta_info"]["finish_reason"]["type"]) == (2, "abort")
    for path, body in (
        ("/v1/completions", {"prompt": [21], "return_token_ids": True}),
        ("/inference/v1/generate", {"token_ids": [21]}),
    ):
        (piece,) = stream(server, path, body)
        assert (piece["choices"][0]["token_ids"], piece["choices"][0]["finish_reason"]) == (
            [107, 112],
            "abort",
        )
    assert count(server, "abort") >= 3


def meta(body: bytes) -> Any:
    return json.loads(body)["meta_info"]


def is_no_utf8(right: Any, body: bytes) -> None:
    """See that no text can be read, and every field be found."""
    with pytest.raises(UnicodeDecodeError):
        body.decode()
    spoilt = json.loads(body.decode(errors="replace"))
    assert (spoilt.keys(), spoilt["text"]) == (right.keys(), "\ufffd" + right["text"])
    assert [text[0] for text in texts_in(spoilt)] == ["\ufffd"] * len(texts_in(right))


def texts_in(value: Any) -> list[str]:
    """Return the texts in a reply; the names of its fields are none."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inside for text in texts_in(one)]


def check(condition: bool) -> None:
    assert condition


def is_no_json(body: bytes, beginning: bytes = b"") -> None:
    assert body.startswith(beginning)
    with pytest.raises((ValueError, RecursionError)):
        json.loads(body)


LOOKS: dict[Malformed, Callable[[Any, bytes], None]] = {
    Malformed.NOT_JSON: lambda _, body: check(body.startswith(b"<html>")),
    Malformed.TRUNCATED: lambda _, body: is_no_json(body, b'{"text"'),
    Malformed.EMPTY: lambda _, body: check(body == b""),
    Malformed.DEEP: lambda _, body: check(body == b"[" * 100_000 + b"]" * 100_000),
    Malformed.NOT_UTF8: is_no_utf8,
    Malformed.CONTENT_TYPE: lambda right, body: check(json.loads(body).keys() == right.keys()),
    Malformed.WRONG_TYPES: lambda right, body: check(
        json.loads(body)["output_ids"] == [str(token) for token in right["output_ids"]]
    ),
    Malformed.MISSING_IDS: lambda right, body: check(
        right.keys() - json.loads(body).keys() == {"output_ids"}
        and right["meta_info"].keys() - meta(body).keys() == {"output_token_logprobs"}
    ),
    Malformed.UNEVEN: lambda right, body: check(
        meta(body)["output_token_logprobs"] == right["meta_info"]["output_token_logprobs"][:-1]
    ),
    Malformed.NAN: lambda _, body: check(
        all(math.isnan(logprob) for logprob, _, _ in meta(body)["output_token_logprobs"])
    ),
}


def test_an_oversized_reply_has_its_size_and_unpacks_to_it(server: EmbeddedServer, connect: Connect) -> None:
    server.faults(["oversized=3e6"])
    body = ask(connect()).read()
    assert (len(body), json.loads(body).keys()) == (3_000_000, {"text"})
    server.faults(["oversized=3e6,gzip"])
    reply = ask(connect())
    packed = reply.read()
    assert (reply.headers["Content-Encoding"], gzip.decompress(packed)) == ("gzip", body)
    assert len(packed) < 10_000
    server.faults(["oversized=3e6"])
    stream = ask(connect(), stream=True)
    assert stream.headers["Content-Type"] == "text/event-stream"
    assert stream.read(20) == b'data: {"text": "xxxx'


def test_a_server_answers_others_while_it_sends_a_bomb(server: EmbeddedServer, connect: Connect) -> None:
    server.faults(["oversized=1e12,gzip"])
    reply = ask(connect())
    for _ in range(10):
        assert status(server, "/health") == 200  # within the time that the test has for a call
        assert reply.read1(1)


def test_a_redirect_leads_to_the_same_path_of_another_origin(
    server: EmbeddedServer, connect: Connect
) -> None:
    for url, expected in (
        ("http://127.0.0.1:1", "http://127.0.0.1:1/generate"),
        ("https://a.example/b", "https://a.example/b"),
    ):
        server.faults([{"redirect": url}])
        reply = ask(connect())
        assert (reply.status, reply.headers["Location"], reply.read()) == (307, expected, b"")


def test_a_silent_server_takes_the_request_and_never_answers() -> None:
    with EmbeddedServer(ms_per_token=0, fault=["silent,next=1"]) as server:
        host, port = server.addr.split(":")
        with closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
            connection.request("POST", "/generate", json.dumps(BODY))
            server.stats(silent=1)
            assert [status(server) for _ in range(5)] == [200] * 5  # others are answered meanwhile
            assert server.stats().generations == 5
            server.stop()
            with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
                connection.getresponse()  # not a byte came, as long as the server lived


def test_a_dripping_server_sends_a_byte_at_a_time_for_ever(server: EmbeddedServer, connect: Connect) -> None:
    server.faults(["drip=10"])
    begun = time.monotonic()
    reply = ask(connect())
    assert reply.headers["Content-Type"] == "application/json"
    assert [reply.read1(100) for _ in range(5)] == [b" "] * 5
    assert time.monotonic() - begun >= 0.035  # uvloop's timers ring up to a millisecond early


def test_a_server_starts_with_its_faults_and_has_them_again_after_a_restart() -> None:
    with EmbeddedServer(ms_per_token=0, fault=["status=503,next=1", "status=500,every=2"]) as server:
        assert [status(server) for _ in range(3)] == [503, 200, 500]
        server.faults([])
        assert [status(server) for _ in range(2)] == [200, 200]
        server.kill()
        server.start()
        assert [status(server) for _ in range(3)] == [503, 200, 500]
        assert server.stats().faults == {"status_503": 1, "status_500": 1}


def test_a_server_with_every_fault_complains_of_none(start_script: StartScript) -> None:
    """Also when its clients leave, or it is told to stop, in the middle of one."""
    faults = [
        "latency=1,path=*",
        "idle=0,path=*",
        "disconnect,next=1",
        "disconnect=5,reset,next=1",
        "race,next=1",
    ]
    faults += ["oversized=1e10,next=1", "oversized=1e10,gzip,next=1", "drip=1,next=1", "silent,next=1"]
    faults += [f"malformed={how},next=1" for how in Malformed]
    faults += ["status=503,next=1", "redirect=http://127.0.0.1:1,next=1", "abort,next=1", "drip=1"]
    child = start_script(COMMAND, "--ms-per-token=0", *[f"--fault={fault}" for fault in faults])
    host, port = listening(child)

    @contextmanager
    def visit(line: str, body: str = "") -> Iterator[socket.socket]:
        """Send a request; go away after the block."""
        with socket.create_connection((host, port), timeout=10) as visitor:
            request = f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            visitor.sendall(request.encode())
            yield visitor

    with closing(http.client.HTTPConnection(host, port, timeout=10)) as connection:

        def counts_at(least: str) -> dict[str, int]:
            connection.request("GET", f"/stats?{least}")
            counts: dict[str, int] = json.loads(connection.getresponse().read())["faults"]
            return counts

        for fault in faults:
            if fault.startswith(("latency", "idle", "race")):
                continue  # the first two strike beside others, the last not on a new connection
            with visit("POST /generate", json.dumps(BODY)) as visitor, suppress(ConnectionResetError):
                if fault.startswith("silent"):
                    counts_at("silent=1")
                else:
                    visitor.recv(1000)
        with visit("GET /health") as visitor:
            while visitor.recv(1000):
                pass  # until the server hangs up
        counts = counts_at("drip=2&idle=1")
        assert [name for name, struck in counts.items() if not struck] == ["race"]
        with pytest.raises(http.client.RemoteDisconnected):
            ask(connection)  # the second on its connection
        assert ask(connection).status == 200  # drips on while the server stops
        child.terminate()
        assert ended(child) == (0, "", "")
