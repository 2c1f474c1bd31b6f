"""Agents elsewhere: an endpoint and a key for each episode, over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from agent_tools import (
    a_chatting_engine,
    ask,
    ask_streamed,
    check_trajectory,
    converse,
    text_of,
    until_idle,
    user,
)
from areal_core import workflow_context
from areal_core._agents.gateway import Gateway, Listening, _ServersLog, gateway_of
from areal_core._agents.request import MOST_BODY_BYTES
from areal_core._agents.scope import Scope
from areal_core.agents import AgentWorkflow
from areal_core.errors import InferenceError
from areal_core.remote_inf_engine import RemoteInfEngine
from children import StartScript
from conftest import MakeExecutor, MakeRunner
from executor_tools import Engine
from logged import LogLines
from reused_servers import ReusedServer

FOR_EVER: dict[str, Any] = {"max_tokens": 100_000, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def engine(chatting_server: ReusedServer) -> Iterator[RemoteInfEngine]:
    with a_chatting_engine(chatting_server) as engine:
        yield engine


class Agent:
    """An agent that is an async function of an OpenAI client and the data."""

    def __init__(self, play: Callable[[AsyncOpenAI, Any], Awaitable[Any]]) -> None:
        self._play = play

    async def run(self, data: Any, *, base_url: str, api_key: str, http_client: httpx.AsyncClient) -> Any:
        async with a_client(base_url, api_key, http_client) as client:
            return await self._play(client, data)


def a_client(base_url: str, api_key: str, http_client: Any = None) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client, max_retries=0)


async def play_on(
    engine: RemoteInfEngine,
    act: Callable[[str, str], Awaitable[Any]],
    listening: Listening = Listening(),  # noqa: B008 - it is immutable
) -> tuple[Any, Any]:
    """Play *act* with base URL and key of a session; return what it does, and what is recorded."""
    gateway = await gateway_of(listening)
    scope = Scope(engine)
    async with gateway.session(scope) as (base_url, api_key):
        return await act(base_url, api_key), scope.recording


def test_an_agents_episode_is_a_trajectory_of_what_the_server_sampled(
    make_executor: MakeExecutor, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    async def play(client: AsyncOpenAI, data: Any) -> float:
        await converse(client, 3, begin=data)
        return 0.5

    executor = make_executor(engine)
    (trajectory,) = executor.rollout_batch(["hello"], Agent(play))
    assert trajectory is not None
    assert trajectory["rewards"].tolist() == [0.5]
    check_trajectory(trajectory, chatting_server.log())


def test_rewards_may_be_given_to_calls_with_a_discount(
    make_executor: MakeExecutor, engine: RemoteInfEngine
) -> None:
    ids = []

    async def play(client: AsyncOpenAI, data: Any) -> dict[str, float]:
        ids.extend([(await ask(client, [user(question)])).id for question in ("one", "two")])
        return {ids[0]: 1.0, ids[1]: 4.0}

    executor = make_executor(engine)
    (trajectory,) = executor.rollout_batch(["hello"], AgentWorkflow(Agent(play), discount=0.5))
    assert trajectory is not None
    assert trajectory["rewards"].tolist() == [3.0, 4.0]


def test_none_rejects(make_executor: MakeExecutor, engine: RemoteInfEngine) -> None:
    async def play(client: AsyncOpenAI, data: Any) -> None:
        await ask(client, [user("hello")])

    executor = make_executor(engine)
    executor.submit("hello", Agent(play))
    (outcome,) = executor.wait_outcomes(1, 20)
    assert outcome.status == "rejected"


@pytest.mark.parametrize(
    ("reward", "words"),
    [("good", "reward='good' is not a number"), ({"chatcmpl-1": 1.0}, "chatcmpl-1")],
    ids=["a text", "an unknown call"],
)
def test_what_is_no_reward_fails_the_episode_with_the_reason(
    make_executor: MakeExecutor, engine: RemoteInfEngine, reward: Any, words: str
) -> None:
    async def play(client: AsyncOpenAI, data: Any) -> Any:
        await ask(client, [user("hello")])
        return reward

    executor = make_executor(engine)
    executor.submit("hello", Agent(play))
    (outcome,) = executor.wait_outcomes(1, 20)
    assert outcome.status == "failed"
    assert words in str(outcome.error)


def test_an_agent_that_made_no_call_fails_with_the_reason(
    make_executor: MakeExecutor, engine: RemoteInfEngine
) -> None:
    async def play(client: AsyncOpenAI, data: Any) -> float:
        return 1.0

    executor = make_executor(engine)
    executor.submit("hello", Agent(play))
    (outcome,) = executor.wait_outcomes(1, 20)
    assert "return None to reject" in str(outcome.error)


def test_an_agent_may_be_given_as_a_class_or_by_name(
    make_executor: MakeExecutor, engine: RemoteInfEngine
) -> None:
    executor = make_executor(engine)
    for agent in (Greeting, "test_agent_gateway:Greeting", Greeting()):
        (trajectory,) = executor.rollout_batch(["hello"], agent)
        assert trajectory is not None
        assert trajectory["rewards"].tolist() == [1.0]


class Greeting:
    """An agent of one call."""

    async def run(self, data: Any, *, base_url: str, api_key: str, http_client: httpx.AsyncClient) -> float:
        await ask(a_client(base_url, api_key, http_client), [user(data)])
        return 1.0


class Odd:
    """No agent: its run takes other arguments."""

    def run(self) -> None: ...


@pytest.mark.parametrize("agent", [Odd(), Odd, object()], ids=["other arguments", "a class", "no run"])
def test_what_is_no_agent_is_refused_at_submit(
    make_executor: MakeExecutor, engine: RemoteInfEngine, agent: Any
) -> None:
    with pytest.raises(TypeError, match="arun_episode"):
        make_executor(engine).submit("hello", agent)


def test_what_is_no_agent_makes_no_workflow() -> None:
    with pytest.raises(TypeError, match=r"has no run\(data"):
        AgentWorkflow(Odd())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="discount=2"):
        AgentWorkflow(Greeting(), discount=2.0)
    for port in (-1, 70_000):
        with pytest.raises(ValueError, match=f"port={port}"):
            AgentWorkflow(Greeting(), port=port)
    with pytest.raises(ValueError, match="host='::' listens everywhere"):
        AgentWorkflow(Greeting(), host="::")


def test_an_agent_that_is_no_coroutine_function_fails_with_the_reason(
    make_executor: MakeExecutor, engine: RemoteInfEngine
) -> None:
    class Blocking:
        def run(self, data: Any, *, base_url: str, api_key: str, http_client: Any) -> float:
            return 1.0

    executor = make_executor(engine)
    executor.submit("hello", Blocking())  # type: ignore[arg-type]
    (outcome,) = executor.wait_outcomes(1, 20)
    assert "make it an async def" in str(outcome.error)


def test_each_episode_has_an_http_client_of_its_own_on_the_loops_pool(
    make_executor: MakeExecutor, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    seen: list[httpx.AsyncClient] = []

    class Careless:
        async def run(self, data: Any, *, base_url: str, api_key: str, http_client: Any) -> None:
            seen.append(http_client)
            manager = workflow_context.HttpClientManager.current()
            before = 0 if manager is None else manager.stats().requests
            assert "Authorization" not in http_client.headers
            http_client.headers["Authorization"] = f"Bearer {api_key}"
            async with http_client as client:
                reply = await client.get(f"{base_url}/models")
            assert reply.json()["data"][0]["id"] == "policy"
            assert (await http_client.get(f"{base_url}/models/policy")).json()["id"] == "policy"
            manager = workflow_context.HttpClientManager.current()
            assert manager is not None
            assert manager.stats().requests == before + 2

    executor = make_executor(engine)
    assert executor.rollout_batch(["one"], Careless()) == [None]
    executor.submit("two", Careless())
    (outcome,) = executor.wait_outcomes(1, 20)
    assert (outcome.status, outcome.error) == ("rejected", None)
    assert len(set(seen)) == 2


def test_what_an_agent_sets_at_its_http_client_first_of_all_counts(
    make_executor: MakeExecutor, engine: RemoteInfEngine
) -> None:
    class Setting:
        async def run(self, data: Any, *, base_url: str, api_key: str, http_client: Any) -> None:
            http_client.timeout = 17.0  # before anything is asked of it
            http_client.headers = {"Authorization": f"Bearer {api_key}"}
            assert (await http_client.get(f"{base_url}/models")).status_code == 200
            assert http_client.timeout == httpx.Timeout(17.0)
            assert http_client.headers["Authorization"] == f"Bearer {api_key}"
            with pytest.raises(AttributeError, match="no 'nothing_of_that_name'"):
                _ = http_client.nothing_of_that_name

    executor = make_executor(engine)
    executor.submit("hello", Setting())
    (outcome,) = executor.wait_outcomes(1, 20)
    assert (outcome.status, outcome.error) == ("rejected", None)


def test_two_agents_in_one_episode_are_trained_apart(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    async def play(client: AsyncOpenAI, data: Any) -> float:
        await ask(client, [user(data)])
        return 1.0

    async def main() -> list[Any]:
        async with workflow_context.record(engine) as recording:
            workflows = [AgentWorkflow(Agent(play)) for _ in range(2)]
            made = [await workflow.arun_episode(engine, "hello") for workflow in workflows]
            assert recording.calls == ()
        return made

    for trajectory in make_runner().run(main):
        assert len(trajectory["input_ids"]) == 1


def test_the_engine_it_is_given_is_the_one_it_asks(make_runner: MakeRunner, engine: RemoteInfEngine) -> None:
    async def play(client: AsyncOpenAI, data: Any) -> float:
        await ask(client, [user(data)])
        return 1.0

    async def main() -> None:
        async with workflow_context.record(engine):
            with pytest.raises(RuntimeError, match="chat=ChatFormat"):
                await AgentWorkflow(Agent(play)).arun_episode(Engine(), "hello")

    make_runner().run(main)


def test_calls_through_the_gateway_are_the_episodes(
    make_executor: MakeExecutor, engine: RemoteInfEngine
) -> None:
    seen = []

    class Looking:
        """An engine that notes for which task it is asked."""

        chat = engine.chat

        def get_version(self) -> int:
            return engine.get_version()

        async def agenerate(self, request: Any) -> Any:
            seen.append(workflow_context.get().task_id)
            return await engine.agenerate(request)

    executor = make_executor(Looking())
    task_id = executor.submit("hello", Greeting())
    assert executor.wait_for_task(task_id, 20) is not None
    assert seen == [task_id]


def test_a_session_leaves_nothing_of_its_context_to_the_next_one_on_its_connection(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    variable = ContextVar("variable", default="nothing")
    seen = []

    class Looking(Engine):
        chat = engine.chat

        async def agenerate(self, request: Any) -> Any:
            seen.append(variable.get())
            return await engine.agenerate(request)

    async def session(client: httpx.AsyncClient, value: str | None) -> None:
        if value is not None:
            variable.set(value)

        async def act(base_url: str, api_key: str) -> None:
            for _ in range(2):
                await ask(a_client(base_url, api_key, client), [user("hello")])

        await play_on(Looking(), act)  # type: ignore[arg-type]

    async def main() -> None:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as client:
            for value in ("one", None, "another"):
                await asyncio.create_task(session(client, value))

    make_runner().run(main)
    assert seen == ["one", "one", "nothing", "nothing", "another", "another"]


def test_the_sdks_client_for_the_gateway_records_nothing_twice(
    make_executor: MakeExecutor, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    class Using:
        async def run(self, data: Any, *, base_url: str, api_key: str, http_client: Any) -> float:
            client = await workflow_context.get_openai_client(base_url, api_key=api_key)
            await ask(client, [user(data)])
            await ask_streamed(client, [user(data)])
            return 1.0

    executor = make_executor(engine)
    (trajectory,) = executor.rollout_batch(["hello"], Using())
    assert trajectory is not None
    check_trajectory(trajectory, chatting_server.log())


# -- the door


def test_a_stream_says_what_a_whole_reply_does(make_runner: MakeRunner, engine: RemoteInfEngine) -> None:
    async def act(base_url: str, api_key: str) -> Any:
        async with a_client(base_url, api_key) as client:
            whole = await ask(client, [user("twice")])
            chunks = await ask_streamed(client, [user("twice")], stream_options={"include_usage": True})
        assert text_of(chunks) == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage
        return len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content])

    pieces, recording = make_runner().run(play_on, engine, act)
    assert pieces > 1
    assert recording.calls[0].output_tokens == recording.calls[1].output_tokens


def test_a_key_opens_only_its_own_session_and_only_while_it_lasts(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    async def refused(base_url: str, api_key: str) -> None:
        async with a_client(base_url, api_key) as client:
            with pytest.raises(openai.AuthenticationError, match="no session with this key"):
                await ask(client, [user("let me in")])
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()

    async def main() -> None:
        gateway = await gateway_of(Listening())
        async with gateway.session(Scope(engine)) as (base_url, api_key):
            async with gateway.session(Scope(engine)) as (other_url, other_key):
                for url, key in (
                    (base_url, other_key),
                    (other_url, api_key),
                    (base_url, "x"),
                ):
                    await refused(url, key)
            await refused(other_url, other_key)
            async with a_client(base_url, api_key) as client:
                assert [model.id async for model in client.models.list()] == ["policy"]
        await refused(base_url, api_key)
        assert not gateway._sessions

    make_runner().run(main)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/chat/completions", b"{", 400),
        ("POST", "/chat/completions", b'{"messages": []}', 400),
        ("POST", "/chat/completions", b'{"messages": [{"role": "user", "content": "hello"}], "n": 3}', 400),
        ("GET", "/chat/completions", b"", 405),
        ("POST", "/embeddings", b"{}", 404),
        ("POST", "/chat/completions", b"x" * (MOST_BODY_BYTES + 1), 413),
    ],
    ids=["no JSON", "no messages", "three choices", "GET", "embeddings", "too much"],
)
def test_what_is_no_call_is_refused(
    make_runner: MakeRunner, engine: RemoteInfEngine, method: str, path: str, body: bytes, status: int
) -> None:
    async def act(base_url: str, api_key: str) -> int:
        session = await workflow_context.get_aiohttp_session()
        headers = {"Authorization": f"Bearer {api_key}"}
        async with session.request(
            method, f"{base_url}{path}", data=io.BytesIO(body), headers=headers
        ) as reply:
            assert (await reply.json())["error"]["message"]
            return reply.status

    told, recording = make_runner().run(play_on, engine, act)
    assert told == status
    assert recording.calls == ()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_client_that_waits_to_be_told_to_send_its_body_is_told_once_its_key_is_known(
    make_runner: MakeRunner, engine: RemoteInfEngine, version: str
) -> None:
    body = json.dumps({"messages": [user("hello")]}).encode()

    async def act(base_url: str, api_key: str) -> None:
        for key, told in ((api_key, b"200"), ("another", b"401")):
            url = httpx.URL(f"{base_url}/chat/completions")
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(
                f"POST {url.path} HTTP/{version}\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
                f"Expect: 100-Continue\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            )
            if key == api_key and version == "1.1":  # an older client knows no such answer
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            if key == api_key:
                writer.write(body)
            assert (await reader.readline()).split()[1] == told
            writer.close()
            await writer.wait_closed()

    async def main() -> Any:
        async with asyncio.timeout(20):
            return await play_on(engine, act)

    _, recording = make_runner().run(main)
    assert len(recording.calls) == 1


def test_a_client_that_asks_whether_to_send_too_large_a_body_is_told_not_to(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    async def act(base_url: str, api_key: str) -> bytes:
        url = httpx.URL(f"{base_url}/chat/completions")
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            f"POST {url.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api_key}\r\n"
            f"Expect: 100-continue\r\nContent-Length: {MOST_BODY_BYTES + 1}\r\n\r\n".encode()
        )
        told = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return told

    told, recording = make_runner().run(play_on, engine, act)
    assert told.split()[1] == b"413"
    assert recording.calls == ()


class Failing(Engine):
    """An engine that fails with *error*, after it has said *before*."""

    def __init__(self, chat: Any, error: Exception, *before: int) -> None:
        super().__init__()
        self.chat = chat
        self._error = error
        self._before = before

    async def agenerate(self, request: Any) -> Any:
        if request.on_tokens is not None and self._before:
            request.on_tokens(self._before)
            await asyncio.sleep(0)
        raise self._error


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "error",
    [ValueError("the engine's words"), TimeoutError("no time"), ConnectionResetError("gone")],
    ids=repr,
)
def test_what_fails_unforeseen_is_told_to_the_agent_and_to_the_log(
    make_runner: MakeRunner, engine: RemoteInfEngine, log_lines: LogLines, error: Exception, stream: bool
) -> None:
    async def act(base_url: str, api_key: str) -> None:
        async with a_client(base_url, api_key) as client:
            with pytest.raises(openai.InternalServerError, match=f"the gateway failed: .*{error}") as told:
                await ask(client, [user("hello")], stream=stream)
            assert told.value.response.headers["Content-Type"].startswith("application/json")

    make_runner().run(play_on, Failing(engine.chat, error), act)
    (line,) = log_lines
    assert (line.level, line.error) == ("error", error)
    assert line.message.startswith("gateway_failed error=")
    assert str(error) in line.message


def test_what_is_no_http_is_a_debug_line_without_its_words_and_what_fails_here_is_an_error(
    make_runner: MakeRunner, engine: RemoteInfEngine, log_lines: LogLines
) -> None:
    async def act(base_url: str, api_key: str) -> bytes:
        url = httpx.URL(base_url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(f"GET {url.path}/models HTTP/1.1\r\nAuthorization Bearer {api_key}\r\n\r\n".encode())
        status = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return status

    status, _ = make_runner().run(play_on, engine, act)
    assert b" 400 " in status
    (line,) = log_lines
    assert (line.level, line.error) == ("debug", None)
    assert re.fullmatch(r"gateway_refused_connection error=\w+", line.message)

    servers_log, fault = _ServersLog(), LookupError("a fault of ours")
    servers_log.exception("Error handling request", exc_info=fault)
    servers_log.exception("Error handling request", exc_info=ConnectionResetError())  # an agent hung up
    assert [(line.level, line.error) for line in log_lines[1:]] == [("error", fault)]


def test_an_error_in_words_that_no_utf_8_can_have_is_told_too(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    async def act(base_url: str, api_key: str) -> None:
        async with a_client(base_url, api_key) as client:
            with pytest.raises(openai.InternalServerError, match=r"it said half \? of a pair"):
                await ask(client, [user("hello")])

    make_runner().run(play_on, Failing(engine.chat, InferenceError("it said half \ud83d of a pair")), act)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("the engine's words"),
        TimeoutError("no time"),
        ConnectionResetError("gone"),
        BrokenPipeError(),
    ],
    ids=repr,
)
def test_what_fails_in_the_middle_of_a_stream_ends_it_and_is_logged_once(
    make_runner: MakeRunner, engine: RemoteInfEngine, log_lines: LogLines, error: Exception
) -> None:
    async def act(base_url: str, api_key: str) -> None:
        async with a_client(base_url, api_key) as client:
            with pytest.raises((openai.APIError, httpx.RemoteProtocolError)):
                await ask_streamed(client, [user("hello")])

    make_runner().run(play_on, Failing(engine.chat, error, 65, 66), act)
    assert [(line.level, line.error) for line in log_lines] == [("error", error)]


def test_it_listens_on_loopback_unless_told_otherwise(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    async def where(listening: Listening, url: str | None = None) -> tuple[Any, str]:
        gateway = await gateway_of(listening)
        async with gateway.session(Scope(engine), url) as (base_url, _):
            return addresses(gateway), base_url

    runner = make_runner()
    bound, base_url = runner.run(where, Listening())
    assert [host for host, _ in bound] == ["127.0.0.1"]
    assert base_url.startswith(f"http://127.0.0.1:{bound[0][1]}/sessions/")
    bound, base_url = runner.run(where, Listening("0.0.0.0"), "http://trainer:1234/")
    assert [host for host, _ in bound] == ["0.0.0.0"]
    assert base_url.startswith("http://trainer:1234/sessions/")


def addresses(gateway: Gateway) -> Any:
    assert gateway._runner is not None
    return gateway._runner.addresses


def test_all_episodes_of_a_loop_share_a_gateway_that_ends_with_it(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    async def several() -> Gateway:
        gateways = await asyncio.gather(*(gateway_of(Listening()) for _ in range(5)))
        assert len(set(gateways)) == 1
        return gateways[0]

    runner = make_runner()
    gateway = runner.run(several)
    (_, port), *_ = addresses(gateway)
    runner.destroy()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/")


def test_a_gateway_that_is_closed_ends_its_sessions_and_the_next_episode_has_another(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    async def main() -> None:
        gateway = await gateway_of(Listening())
        async with (
            gateway.session(Scope(engine)) as (base_url, api_key),
            a_client(base_url, api_key) as client,
        ):
            call = asyncio.create_task(ask(client, [user("hello")], **FOR_EVER))
            await asyncio.to_thread(chatting_server.stats, in_flight=1)
            await close_gateways(asyncio.get_running_loop())
            await until_idle(chatting_server)
            with pytest.raises(openai.APIError):
                await call
        assert await gateway_of(Listening()) is not gateway

    make_runner().run(main)


async def close_gateways(loop: Any) -> None:
    """Do what the loop's cleanup does with the gateways."""
    for task in list(loop._areal_core_gateways.values()):
        gateway = await task
        loop._areal_core_gateways.clear()
        await gateway.close()


def test_a_port_that_is_taken_fails_the_episode_and_the_next_one_tries_again(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    async def main() -> None:
        first = await gateway_of(Listening())
        (_, port), *_ = addresses(first)
        for _ in range(2):
            with pytest.raises(OSError, match="address already in use"):
                await gateway_of(Listening(port=port))
        await first.close()
        again = await gateway_of(Listening(port=port))
        async with again.session(Scope(engine)) as (base_url, api_key), a_client(base_url, api_key) as client:
            assert (await ask(client, [user("hello")])).choices

    make_runner().run(main)


# -- the end of a session


def test_what_an_agent_leaves_running_ends_with_its_session(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    async def act(base_url: str, api_key: str) -> Any:
        client = a_client(base_url, api_key)
        whole = asyncio.create_task(ask(client, [user("whole")], **FOR_EVER))
        stream = asyncio.create_task(ask_streamed(client, [user("stream")], **FOR_EVER))
        await asyncio.to_thread(chatting_server.stats, in_flight=2)
        return client, whole, stream

    async def main() -> None:
        (client, whole, stream), recording = await play_on(engine, act)
        await until_idle(chatting_server)
        for left in (whole, stream):
            with pytest.raises(openai.APIError, match="the session has ended"):
                await left
        await client.close()
        assert recording.calls == ()

    make_runner().run(main)


@pytest.mark.parametrize("how", ["cancelled", "timed_out"])
def test_an_episode_that_is_ended_ends_its_generations(
    make_executor: MakeExecutor, chatting_server: ReusedServer, engine: RemoteInfEngine, how: str
) -> None:
    async def play(client: AsyncOpenAI, data: Any) -> float:
        await asyncio.gather(*(ask(client, [user(f"call {number}")], **FOR_EVER) for number in range(3)))
        return 1.0

    timeout = 1.0 if how == "timed_out" else None
    executor = make_executor(engine, episode_timeout=timeout)
    task_id = executor.submit("hello", Agent(play))
    chatting_server.stats(in_flight=3)
    if how == "cancelled":
        assert executor.cancel(task_id)
    (outcome,) = executor.wait_outcomes(1, 20)
    assert outcome.status == how
    executor.runner.run(until_idle, chatting_server)


def test_an_agent_that_hangs_up_ends_its_call(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine, log_lines: LogLines
) -> None:
    async def act(base_url: str, api_key: str) -> None:
        for begin in (ask, ask_streamed):
            async with a_client(base_url, api_key) as client:
                call = asyncio.create_task(begin(client, [user("for ever")], **FOR_EVER))
                await asyncio.to_thread(chatting_server.stats, in_flight=1)
                call.cancel()
                await asyncio.wait((call,))
            await until_idle(chatting_server)

    _, recording = make_runner().run(play_on, engine, act)
    assert recording.calls == ()
    assert not [line for line in log_lines if "gateway" in line.message]


AGENTS = """
import asyncio, json, sys
from openai import AsyncOpenAI

async def play(client, number):
    messages = [{"role": "user", "content": f"agent {number}"}]
    while True:
        completion = await client.chat.completions.create(model="policy", messages=messages, max_tokens=40)
        messages += [completion.choices[0].message, {"role": "user", "content": "more"}]
        if number % 3 == 0:
            stream = await client.chat.completions.create(
                model="policy", messages=messages, max_tokens=40, stream=True
            )
            async for chunk in stream:
                pass

async def main():
    endpoints = json.loads(sys.stdin.readline())
    clients = [AsyncOpenAI(base_url=url, api_key=key, max_retries=0) for url, key in endpoints]
    await asyncio.gather(*(play(client, number) for number, client in enumerate(clients)))

asyncio.run(main())
"""


def test_agents_that_are_killed_leave_no_session_generation_or_descriptor(
    make_executor: MakeExecutor,
    start_script: StartScript,
    chatting_server: ReusedServer,
    engine: RemoteInfEngine,
) -> None:
    endpoints: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    over = asyncio.Event()

    class Elsewhere:
        async def run(self, data: Any, *, base_url: str, api_key: str, http_client: Any) -> None:
            endpoints.put_nowait((base_url, api_key))
            await over.wait()

    async def some(count: int) -> list[tuple[str, str]]:
        return [await endpoints.get() for _ in range(count)]

    async def sessions_when_quiet() -> int:
        gateway = await gateway_of(Listening())
        await until_idle(chatting_server)
        assert gateway._runner is not None
        assert gateway._runner.server is not None
        server = gateway._runner.server
        async with asyncio.timeout(20):
            while server.connections or descriptors(but_to=port) > before:
                await asyncio.to_thread(chatting_server.stats)
        return len(gateway._sessions)

    executor = make_executor(engine, consumer_batch_size=24)
    for _ in range(24):
        executor.submit("hello", Elsewhere())
    given = executor.runner.run(some, 24)
    port = int(chatting_server.addr.rpartition(":")[2])
    before = descriptors(but_to=port)
    for times in range(2):
        child = start_script(AGENTS, flags=())
        assert child.stdin is not None
        child.stdin.write(json.dumps(given) + "\n")
        child.stdin.flush()
        chatting_server.stats(generations=60 * (times + 1))
        child.kill()
        child.communicate()
        assert executor.runner.run(sessions_when_quiet) == 24
    executor.runner.run(set_event, over)
    assert {one.status for one in executor.wait_outcomes(24, 20)} == {"rejected"}
    assert executor.runner.run(sessions_when_quiet) == 0


async def set_event(event: asyncio.Event) -> None:
    event.set()


def descriptors(but_to: int) -> int:
    """Count this process's descriptors, but for connections to a port: the pool keeps those."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    pooled = {f"socket:[{one[9]}]" for one in sockets if int(one[2].partition(":")[2], 16) == but_to}
    return len([fd for fd in Path("/proc/self/fd").iterdir() if _target(fd) not in pooled])


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except FileNotFoundError:  # the one that lists them
        return ""


def test_no_key_is_told_to_anybody(
    make_executor: MakeExecutor, engine: RemoteInfEngine, log_lines: LogLines
) -> None:
    keys = []

    class Failing:
        async def run(self, data: Any, *, base_url: str, api_key: str, http_client: Any) -> float:
            keys.append(api_key)
            async with a_client(base_url, api_key, http_client) as client:
                await ask(client, [user("hello")], n=2)
            return 1.0

    executor = make_executor(engine)
    executor.submit("hello", Failing())
    (outcome,) = executor.wait_outcomes(1, 20)
    assert outcome.error is not None
    said = f"{outcome.error!r} {outcome!r} {log_lines}"
    assert keys[0] not in said
    assert not re.search(r"sk-[\w-]{20}", said)


def test_an_agent_of_a_framework_runs_as_it_is(
    make_executor: MakeExecutor, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    from pydantic_ai import Agent as FrameworkAgent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class Assistant:
        async def run(self, data: Any, *, base_url: str, api_key: str, http_client: Any) -> float:
            async with a_client(base_url, api_key) as client:
                model = OpenAIChatModel("policy", provider=OpenAIProvider(openai_client=client))
                agent = FrameworkAgent(model, system_prompt="Be brief.")

                @agent.tool_plain
                def note(text: str = "") -> str:
                    """Note something."""
                    return "noted"

                first = await agent.run(data)
                second = await agent.run("and then?", message_history=first.all_messages())
                assert second.output
            return 1.0

    executor = make_executor(engine)
    (trajectory,) = executor.rollout_batch(["hello"], Assistant())
    assert trajectory is not None
    assert len(trajectory["input_ids"]) == 1
    check_trajectory(trajectory, chatting_server.log())
