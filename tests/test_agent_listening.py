"""Agents in an episode that ask a server of their own choice: what it answers is recorded as it came."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from agent_tools import (
    ask,
    ask_streamed,
    check_calls,
    check_trajectory,
    converse,
    text_of,
    user,
)
from areal_core import workflow_context
from areal_core._agents.listening import Listener
from areal_core._engine.backend import ReplyError
from areal_core.errors import MalformedReplyError
from conftest import MakeRunner
from executor_tools import Engine
from reused_servers import ReusedServer

SHORT: dict[str, Any] = {"max_tokens": 16}


async def recorded_on(url: str, act: Callable[[AsyncOpenAI], Awaitable[Any]], **options: Any) -> Any:
    """Play *act* with a client of the server at *url*; return what it returns, and the recording."""
    async with workflow_context.record(Engine(version=3)) as recording:
        return await act(await workflow_context.get_openai_client(f"{url}/v1", **options)), recording


def test_a_conversation_is_recorded_as_the_tokens_the_server_sampled(
    make_runner: MakeRunner, chatting_server: ReusedServer
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        return await converse(client, 3, **SHORT)

    messages, recording = make_runner().run(recorded_on, chatting_server.url, act)
    check_calls(recording.calls, chatting_server.log())
    check_trajectory(recording.to_trajectory(1.0), chatting_server.log())
    assert [call.content for call in recording.calls] == [message.content for message in messages[1::2]]
    assert {version for call in recording.calls for version in call.output_versions} == {3}
    assert all(call.versions_exact for call in recording.calls)


def test_a_stream_is_passed_on_and_recorded(make_runner: MakeRunner, chatting_server: ReusedServer) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        whole = await ask(client, [user("twice")], **SHORT)
        return whole, await ask_streamed(client, [user("twice")], **SHORT)

    (whole, chunks), recording = make_runner().run(recorded_on, chatting_server.url, act)
    first, second = recording.calls
    assert text_of(chunks) == whole.choices[0].message.content == second.content
    assert first.output_tokens == second.output_tokens
    assert first.output_logprobs == second.output_logprobs
    assert (second.id, second.finish_reason) == (chunks[0].id, whole.choices[0].finish_reason)


def test_a_stream_that_is_left_early_is_not_recorded(
    make_runner: MakeRunner, chatting_server: ReusedServer
) -> None:
    async def act(client: AsyncOpenAI) -> None:
        async with await ask(client, [user("for ever")], stream=True, max_tokens=5_000) as stream:
            async for _ in stream:
                break

    _, recording = make_runner().run(recorded_on, chatting_server.url, act)
    assert recording.calls == ()


def test_an_edited_history_gets_a_row_of_its_own(
    make_runner: MakeRunner, chatting_server: ReusedServer
) -> None:
    async def act(client: AsyncOpenAI) -> None:
        messages = await converse(client, 2, **SHORT)
        messages[1] = {"role": "assistant", "content": "I never said that"}
        await ask(client, [*messages, user("go on")], **SHORT)

    _, recording = make_runner().run(recorded_on, chatting_server.url, act)
    trajectory = recording.to_trajectory(1.0)
    assert len(trajectory["input_ids"]) == 2
    check_trajectory(trajectory, chatting_server.log())


def test_a_version_that_changes_meanwhile_makes_the_versions_a_bound(
    make_runner: MakeRunner, chatting_server: ReusedServer
) -> None:
    engine = Engine(version=3)

    async def main() -> Any:
        async with workflow_context.record(engine) as recording:
            client = await workflow_context.get_openai_client(f"{chatting_server.url}/v1")
            endless: dict[str, Any] = {"max_tokens": 100_000, "extra_body": {"ignore_eos": True}}
            async with await ask(client, [user("hello")], stream=True, **endless) as stream:
                async for _ in stream:
                    if engine.version == 3:
                        engine.version = 4
                        await asyncio.to_thread(chatting_server.post, "/abort_request", {"abort_all": True})
        return recording.calls

    (call,) = make_runner().run(main)
    assert set(call.output_versions) == {3}
    assert not call.versions_exact


def test_outside_of_episodes_nothing_is_asked_for_and_nothing_recorded(make_runner: MakeRunner) -> None:
    async def main() -> None:
        async with a_server(PLAIN) as (url, bodies):
            client = await workflow_context.get_openai_client(f"{url}/v1")
            completion = await ask(client, [user("hello")])
            assert completion.choices[0].message.content == "hi"
            assert bodies == [{"messages": [user("hello")], "model": "policy"}]

    make_runner().run(main)


def test_a_judge_is_left_alone(make_runner: MakeRunner) -> None:
    async def main() -> None:
        async with a_server(PLAIN) as (url, bodies):
            _, recording = await recorded_on(url, lambda client: ask(client, [user("hello")]), record=False)
            assert recording.calls == ()
            assert bodies == [{"messages": [user("hello")], "model": "policy"}]

    make_runner().run(main)


def test_in_an_episode_the_tokens_are_asked_for(make_runner: MakeRunner) -> None:
    async def main() -> None:
        async with a_server(WITH_IDS) as (url, bodies):
            _, recording = await recorded_on(url, lambda client: ask(client, [user("hello")]))
            assert bodies[0] | {"logprobs": True, "return_token_ids": True} == bodies[0]
            (call,) = recording.calls
            assert (call.prompt_tokens, call.output_tokens) == ([1, 2], [3, 4])

    make_runner().run(main)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_server_that_tells_no_tokens_is_an_error_at_the_first_call(
    make_runner: MakeRunner, streamed: bool
) -> None:
    async def main() -> None:
        choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
        reply = [{**PLAIN, "choices": [choice]}] if streamed else PLAIN
        async with a_server(reply) as (url, _):
            async with workflow_context.record(Engine()) as recording:
                client = await workflow_context.get_openai_client(f"{url}/v1")
                begin = ask_streamed if streamed else ask
                with pytest.raises(
                    (openai.InternalServerError, MalformedReplyError), match="prompt_token_ids"
                ):
                    await begin(client, [user("hello")])
            assert recording.calls == ()

    make_runner().run(main)


def test_a_stream_without_its_last_word_is_recorded_all_the_same(make_runner: MakeRunner) -> None:
    async def main() -> None:
        choice = {**WITH_IDS["choices"][0], "message": None, "delta": {"content": "hi"}}
        async with a_server([{**WITH_IDS, "choices": [choice]}], ends=False) as (url, _):
            async with workflow_context.record(Engine()) as recording:
                client = await workflow_context.get_openai_client(f"{url}/v1")
                await ask_streamed(client, [user("hello")])
            assert [call.output_tokens for call in recording.calls] == [[3, 4]]

    make_runner().run(main)


def test_what_a_server_refuses_is_told_as_it_is(
    make_runner: MakeRunner, chatting_server: ReusedServer
) -> None:
    async def act(client: AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="n=3"):
            await ask(client, [user("hello")], n=3)

    make_runner().run(recorded_on, chatting_server.url, act)


def test_closing_the_client_leaves_the_pool(make_runner: MakeRunner, chatting_server: ReusedServer) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        session = await workflow_context.get_aiohttp_session()
        async with client:
            await ask(client, [user("hello")], **SHORT)
        assert not session.closed
        return await ask(client, [user("hello")], **SHORT)

    _, recording = make_runner().run(recorded_on, chatting_server.url, act)
    assert len(recording.calls) == 2


def test_clients_are_one_for_each_purpose(make_runner: MakeRunner) -> None:
    async def main() -> None:
        get = workflow_context.get_openai_client
        urls = ["http://a/v1", "http://b/v1"]
        clients = [await get(), *[await get(url, record=record) for url in urls for record in (True, False)]]
        assert len({id(client) for client in clients}) == 5
        assert await get(urls[0]) is clients[1]
        assert await get(urls[0], api_key="x") is not await get(urls[0], api_key="x")
        assert all(client.max_retries == 0 for client in clients)
        assert clients[1].api_key != "from the environment"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "from the environment")
        make_runner().run(main)


# -- what is read


def whole(**changes: Any) -> dict[str, Any]:
    """Return a completion with tokens, with *changes* in its choice."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "hi"},
        "finish_reason": "stop",
        "token_ids": [3, 4],
        "logprobs": {"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -0.5}]},
        **changes,
    }
    return {"id": "chatcmpl-1", "choices": [choice], "prompt_token_ids": [1, 2]}


PLAIN = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
}
WITH_IDS = {**PLAIN, **whole()}


def heard(*documents: Any) -> Any:
    """Return what is heard of a reply of these."""
    listener = Listener(5, began=1.0)
    for document in documents:
        listener.take(json.dumps(document).encode())
    return list(listener.calls(2.0, is_exact=True))


@pytest.mark.parametrize(
    "reply",
    [
        whole(),
        whole(token_ids=None, response_token_ids=[3, 4]),
        {**whole(prompt_token_ids=[1, 2]), "prompt_token_ids": None},
    ],
    ids=["token_ids", "response_token_ids", "those of the prompt in the choice"],
)
def test_token_ids_are_found_wherever_servers_put_them(reply: Any) -> None:
    (call,) = heard(reply)
    assert (call.prompt_tokens, call.output_tokens, call.output_logprobs) == ([1, 2], [3, 4], [-1.0, -0.5])
    assert (call.output_versions, call.finish_reason, call.content) == ([5, 5], "stop", "hi")
    assert (call.began, call.ended) == (1.0, 2.0)


def test_a_call_without_an_id_of_its_own_gets_one() -> None:
    listener = Listener(5, began=1.0)
    listener.take(json.dumps(whole()).encode())
    (named,) = listener.calls(2.0, is_exact=True)
    (again,) = listener.calls(2.0, is_exact=True, taken={named.id})
    assert named.id == "chatcmpl-1"
    assert again.id != named.id
    (nameless,) = heard({**whole(), "id": ""})
    assert nameless.id


def test_several_choices_are_several_calls() -> None:
    reply = whole()
    reply["choices"].append({**reply["choices"][0], "index": 1, "token_ids": [5, 6]})
    assert [(call.id, call.output_tokens) for call in heard(reply)] == [
        ("chatcmpl-1", [3, 4]),
        ("chatcmpl-1-1", [5, 6]),
    ]


def test_the_pieces_of_tool_calls_are_put_together() -> None:
    def piece(index: int, **function: str) -> Any:
        delta = {"tool_calls": [{"index": index, "function": function}]}
        return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta}]}

    named: Any = piece(0, name="note", arguments='{"te')
    named["choices"][0]["delta"]["tool_calls"][0]["id"] = "call_1"
    end = whole(message=None, finish_reason="tool_calls")
    (call,) = heard(named, piece(0, arguments='xt": 1}'), piece(1, name="other", arguments="{}"), end)
    assert [(one.id, one.name, one.arguments) for one in call.tool_calls] == [
        ("call_1", "note", '{"text": 1}'),
        ("", "other", "{}"),
    ]
    assert call.content is None


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (whole(token_ids=None), "token_ids are missing"),
        ({**whole(), "prompt_token_ids": None}, "prompt_token_ids or"),
        (whole(logprobs=None), "2 tokens have 0 log-probabilities"),
        (whole(token_ids=[3]), "1 tokens have 2 log-probabilities"),
        (whole(finish_reason=None), "without a finish_reason"),
        (whole(token_ids=["x"]), "Expected `int`"),
        (whole(logprobs={"content": [{"logprob": -9999.0}] * 2}), "logprob"),
        ({"error": {"message": "too long", "code": 400}}, "too long"),
        ([], "Expected `object`"),
    ],
    ids=[
        "no ids",
        "no ids of the prompt",
        "no log-probabilities",
        "one too many",
        "no end",
        "a text",
        "one that is missing",
        "an error",
        "a list",
    ],
)
def test_what_cannot_be_trained_on_is_an_error(reply: Any, words: str) -> None:
    with pytest.raises(ReplyError, match=words):
        heard(reply)


@asynccontextmanager
async def a_server(reply: Any, ends: bool = True) -> AsyncIterator[tuple[str, list[Any]]]:
    """Serve *reply* to every chat, a list as a stream, which *ends*; give the URL, and what comes."""
    bodies: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        if not isinstance(reply, list):
            return web.json_response(reply)
        events = "".join(f"data: {json.dumps(one)}\n\n" for one in reply)
        end = "data: [DONE]\n\n" if ends else ""
        return web.Response(text=events + end, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", bodies
    finally:
        await runner.cleanup()
        await asyncio.sleep(0)
