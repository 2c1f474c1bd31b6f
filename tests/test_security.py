"""What an attacker would try: who may connect, what is read, and where keys and odd characters end up."""

from __future__ import annotations

import ast
import asyncio
import importlib
import logging
import resource
import socket
import time
import traceback
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

import areal_core
from agent_tools import a_chatting_engine, ask, user
from areal_core import workflow_context
from areal_core._agents.gateway import Listening, gateway_of
from areal_core._agents.scope import Scope
from areal_core._log import get_logger
from areal_core.embedded import EmbeddedServer
from areal_core.errors import InferenceError, ServerUnreachableError
from areal_core.remote_inf_engine import RemoteInfEngine
from conftest import MakeExecutor, MakeRunner
from exchanging import all_shown, reply_of
from logged import LogLines
from peers import Peer, read_request, serving, talking
from reused_servers import ReusedServer
from scripted import Play, asking, engine_on, scripted

KEY = "s3cret-k3y-0f-mine"
HERE = Path(areal_core.__file__).parent

Act = Callable[[str, str], Awaitable[Any]]


@pytest.fixture
def engine(chatting_server: ReusedServer) -> Iterator[RemoteInfEngine]:
    with a_chatting_engine(chatting_server) as engine:
        yield engine


@pytest.fixture
def everything_logged() -> Iterator[list[str]]:
    """Collect what every logger of the process is told, debug lines and tracebacks included."""
    lines: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    root, handler = logging.getLogger(), Collecting()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.setLevel(level)
    root.removeHandler(handler)


async def in_session(engine: RemoteInfEngine, act: Act) -> Any:
    """Do what *act* does with the URL and the key of a session."""
    gateway = await gateway_of(Listening())
    async with gateway.session(Scope(engine)) as (base_url, api_key):
        return await act(base_url, api_key)


async def sent(base_url: str, *head: bytes, body: bytes = b"") -> bytes:
    """Send a request as these lines, "{path}" for the session's, and return all that comes back."""
    host, _, path = base_url.removeprefix("http://").partition("/")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    lines = [line.replace(b"{path}", b"/" + path.encode()) for line in head]
    writer.write(b"\r\n".join([*lines, b"Host: x", b"Connection: close", b"", body]))
    try:
        return await reader.read()
    finally:
        writer.close()


# -- what is read


def calls_in(source: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_that_comes_from_elsewhere_is_run() -> None:
    running = {
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "shelve.open",
        "marshal.loads",
    }
    unpickling = {"pickle.load", "pickle.loads", "pickle.Unpickler", "dill.loads", "cloudpickle.loads"}
    unpickled_in = set()
    for source in HERE.rglob("*.py"):
        for name, call in calls_in(source):
            options = {option.arg: ast.unparse(option.value) for option in call.keywords}
            assert name not in running, source
            assert options.get("shell", "False") == "False", source
            assert name not in ("yaml.load", "torch.load", "joblib.load"), source
            assert name not in ("np.load", "numpy.load") or options["allow_pickle"] == "False", source
            if name in unpickling:
                unpickled_in.add(str(source.relative_to(HERE)))
    # From a worker process that this one has started, through a pair of sockets that nobody else has; and
    # what the same process has pickled a moment ago. (What workers on Ray are sent is Ray's to bring.)
    ours = {"_simulation/calibration.py", "_simulation/loopback.py"}
    assert unpickled_in == {"_offload/child.py", "_offload/worker.py", *ours}


def test_an_import_path_runs_nothing_but_an_import(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor()
    for path in (
        "os:system('x')",
        "os.path:__import__('x')",
        "../evil:x",
        "a b:c",
        "os:",
        ":x",
        "x;y:z",
        "\0:a",
    ):
        with pytest.raises(ValueError, match="is no import path"):
            executor.submit(1, path)


def test_a_compressed_body_is_refused_and_never_unpacked(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    pack = zlib.compressobj(wbits=31)
    bomb = b"".join(pack.compress(bytes(2**20)) for _ in range(512)) + pack.flush()

    async def act(base_url: str, api_key: str) -> list[bytes]:
        return [
            await sent(
                base_url,
                b"POST {path}/chat/completions HTTP/1.1",
                f"Authorization: Bearer {key}".encode(),
                b"Content-Encoding: gzip",
                f"Content-Length: {len(bomb)}".encode(),
                body=bomb,
            )
            for key in (api_key, "another")
        ]

    before, at = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    refused, unknown = make_runner().run(in_session, engine, act)
    computed_s = time.process_time() - at
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert refused.startswith(b"HTTP/1.1 415 ")
    assert unknown.startswith(b"HTTP/1.1 401 ")
    assert grown_kb < 32 * 1024
    assert computed_s < 1.0  # to unpack it once takes as long


# -- who may connect


def listening_on(port: int) -> set[str]:
    """Return the addresses on which this machine listens with *port*."""
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        path = Path(f"/proc/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, local, _, state, *_ = line.split()
            host, _, at = local.partition(":")
            if state == "0A" and int(at, 16) == port:
                words = [bytes.fromhex(host[start : start + 8])[::-1] for start in range(0, len(host), 8)]
                found.add(socket.inet_ntop(family, b"".join(words)))
    return found


@pytest.mark.any_loop
def test_servers_listen_on_loopback_unless_told_otherwise(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    async def act(base_url: str, _: str) -> str:
        return base_url

    base_url = make_runner().run(in_session, engine, act)
    assert listening_on(int(base_url.split("/")[2].partition(":")[2])) == {"127.0.0.1"}
    with EmbeddedServer(ms_per_token=0) as server:
        assert listening_on(int(server.addr.rpartition(":")[2])) == {"127.0.0.1"}
    with EmbeddedServer("0.0.0.0", ms_per_token=0) as server:
        assert listening_on(int(server.addr.rpartition(":")[2])) == {"0.0.0.0"}


@pytest.mark.parametrize(
    "authorization",
    [
        b"",
        b"Authorization: Bearer ",
        b"Authorization: Basic {key}",
        b"Authorization: Bearer {key}x",
        b"Authorization: Bearer {first}",
        b"Authorization: Bearer \xff\xfe",
        "Authorization: Bearer ключ".encode(),
        b"Authorization: Bearer " + b"x" * 5_000,
        b"X-Api-Key: {key}",
    ],
    ids=["none", "empty", "Basic", "longer", "shorter", "no text", "no ASCII", "long", "elsewhere"],
)
def test_nothing_but_the_key_opens_a_session(
    make_runner: MakeRunner, engine: RemoteInfEngine, authorization: bytes, everything_logged: list[str]
) -> None:
    async def act(base_url: str, api_key: str) -> bytes:
        header = authorization.replace(b"{key}", api_key.encode()).replace(b"{first}", api_key[:-1].encode())
        return await sent(base_url, b"GET {path}/models HTTP/1.1", *([header] if header else []))

    reply = make_runner().run(in_session, engine, act)
    assert reply.startswith(b"HTTP/1.1 401 ")
    assert b"no session with this key" in reply
    assert not [line for line in everything_logged if "Traceback" in line]


# -- where keys end up


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization: Bearer {key}\x00",
        b"Authorization Bearer {key}",
        b"Authorization: Bearer {key}\r\nContent-Length: -1",
        b"Authorization: Bearer {key}\r\nTransfer-Encoding: {key}",
    ],
    ids=["no character", "no colon", "no length", "no encoding"],
)
def test_a_request_that_is_no_http_does_not_bring_its_key_into_the_log(
    make_runner: MakeRunner, engine: RemoteInfEngine, everything_logged: list[str], line: bytes
) -> None:
    async def act(base_url: str, api_key: str) -> tuple[bytes, str]:
        reply = await sent(base_url, b"GET {path}/models HTTP/1.1", line.replace(b"{key}", api_key.encode()))
        return reply, api_key

    reply, api_key = make_runner().run(in_session, engine, act)
    assert b" 400 " in reply
    said = "\n".join(everything_logged)
    assert api_key not in said
    assert "Traceback" not in said


def test_an_agents_key_is_not_taken_to_where_a_redirect_leads(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    async def main() -> None:
        async def nothing(_: Any) -> Any:
            raise AssertionError

        async with serving(nothing) as thief:

            async def lead_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await read_request(reader)
                writer.write(reply_of("307 Moved", b"", f"Location: {thief.url}/v1/chat/completions"))
                await writer.drain()

            async with talking(lead_away) as server:
                await be_led_away(server, engine)
            assert thief.accepted == 0

    make_runner().run(main)


async def be_led_away(server: Peer, engine: RemoteInfEngine) -> None:
    async with workflow_context.record(engine):
        for record in (True, False):
            client = await workflow_context.get_openai_client(server.url, api_key=KEY, record=record)
            with pytest.raises(openai.APIStatusError) as raised:
                await ask(client, [user("hello")])
            assert raised.value.status_code == 307
            assert KEY not in all_shown(raised.value)
    httpx_client = await workflow_context.get_httpx_client()
    reply = await httpx_client.get(server.url, headers={"Authorization": f"Bearer {KEY}"})
    assert reply.status_code == 307


@pytest.mark.parametrize(
    "answer",
    [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b""],
    ids=["no HTTP", "no length", "nothing"],
)
def test_an_error_of_the_http_client_does_not_show_the_header_with_the_key(
    make_runner: MakeRunner, answer: bytes
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    async def main() -> str:
        async with talking(talk) as server:
            client: AsyncOpenAI = await workflow_context.get_openai_client(server.url, api_key=KEY)
            with pytest.raises(openai.APIConnectionError) as raised:
                await ask(client, [user("hello")])
            return all_shown(raised.value)

    assert KEY not in make_runner().run(main)


def test_the_servers_key_is_in_nothing_that_is_said(
    play: Play, everything_logged: list[str], tmp_path: Path
) -> None:
    async def act() -> None:
        async with scripted() as server, engine_on(server.url, api_key=KEY, request_timeout=2.0) as engine:
            await engine.agenerate(asking())
            assert server.generations[0].headers["Authorization"] == f"Bearer {KEY}"
            shown = [repr(engine), repr(engine._config), str(engine.servers)]
            shown.append(str(await engine.call_all("/nothing/at/all", {"key": "none"})))
            for bad in ("no-slash", "/x\r\nX-Evil: 1"):
                try:
                    await engine.call_all(bad)
                except (ValueError, InferenceError) as error:
                    shown.append(all_shown(error))
            assert not any("X-Evil" in call.headers for call in server.calls)
        said = "\n".join([*everything_logged, *shown])
        assert KEY not in said

    play(act)


@pytest.mark.any_loop
@pytest.mark.parametrize("key", ["two\r\nX-Evil: 1", "tab\t", "nul\0", "schlüssel", " ", ""])
def test_a_key_that_would_be_more_than_a_header_is_refused_and_not_shown(key: str) -> None:
    wire = importlib.import_module("areal_core._engine.wire.api_key")
    with pytest.raises(ValueError, match=r"^an API key is empty, or has blanks") as raised:
        wire.ApiKey(key)
    assert not key.strip() or key not in "".join(traceback.format_exception(raised.value))


def test_a_server_on_this_machine_is_not_asked_through_the_proxy_of_the_environment(
    play: Play, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password s3cret\n")

    async def act() -> None:
        async with scripted() as server, scripted() as proxy:
            for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv("NETRC", str(netrc))
            async with engine_on(server.url) as engine:
                await engine.agenerate(asking())
            client = await workflow_context.get_httpx_client()
            await client.get(f"{server.url}/health")
            assert proxy.calls == []
            assert not any("Authorization" in call.headers for call in server.calls)

    play(act)


# -- odd characters


def test_what_is_logged_cannot_write_a_line_of_its_own(log_lines: LogLines) -> None:
    odd = "id\n2026-11-26 ERROR somebody else's\r\x1b[31m\u202egnp\u2028\ud800"
    get_logger().warning("something", key=odd, other=[odd], error=ValueError("a\nb"))
    ((_, message, _),) = log_lines
    assert message.isprintable()
    assert message.startswith("something key=id\\n2026-11-26 ERROR somebody else's\\r\\x1b[31m\\u202egnp")


def test_an_unreachable_server_is_named_on_one_line(play: Play) -> None:
    async def act() -> None:
        with pytest.raises(ServerUnreachableError) as raised:
            async with engine_on("127.0.0.1:1", setup_timeout=0.2):
                pass
        assert "\n" not in str(raised.value)

    play(act)
