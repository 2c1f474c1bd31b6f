"""Agents in an episode: OpenAI's own client, without a socket between it and the engine."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI

from agent_tools import (
    NOTE,
    SHORT,
    TOKENIZER,
    Act,
    SpacesCall,
    a_chat,
    a_chatting_engine,
    ask,
    ask_streamed,
    check_calls,
    check_trajectory,
    converse,
    in_an_episode,
    text_of,
    until_idle,
    user,
)
from areal_core import workflow_context
from areal_core._agents.completer import Completer
from areal_core._agents.recording import Recording
from areal_core._agents.request import read_order
from areal_core.agents import ChatFormat
from areal_core.embedded import ChatTokenizer, logprob_of, token_of
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import (
    GenerationHyperparameters,
    InferenceEngine,
    ModelRequest,
    ModelResponse,
    RolloutWorkflow,
)
from children import RunScript
from conftest import MakeExecutor, MakeRunner
from engine_tools import an_engine
from executor_tools import Engine
from reused_servers import ReusedServer
from small_tokenizer import SmallTokenizer, sampled


@pytest.fixture
def engine(chatting_server: ReusedServer) -> Iterator[RemoteInfEngine]:
    with a_chatting_engine(chatting_server) as engine:
        yield engine


class Acting(RolloutWorkflow):
    """Plays *act* with the episode's client, and trains on what was recorded."""

    def __init__(self, act: Any) -> None:
        self._act = act

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> dict[str, Any]:
        client = await workflow_context.get_openai_client()
        await self._act(client, data)
        return workflow_context.recorded().to_trajectory(1.0)


def test_a_conversation_is_recorded_as_the_tokens_the_server_sampled(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    messages, recording = make_runner().run(in_an_episode(engine, lambda client: converse(client, 3)))
    check_calls(recording.calls, chatting_server.log())
    trajectory = recording.to_trajectory(1.0)
    assert len(trajectory["input_ids"]) == 1
    check_trajectory(trajectory, chatting_server.log())
    for call, message in zip(recording.calls, messages[1::2], strict=True):
        assert (
            message.content == call.content == TOKENIZER.decode(call.output_tokens, skip_special_tokens=True)
        )
    for before, after in pairwise(recording.calls):
        told = before.prompt_tokens + before.output_tokens
        assert after.prompt_tokens[: len(told)] == told
        assert before.ended <= after.began < after.ended


def test_each_token_has_its_own_log_probability_and_version(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    _, recording = make_runner().run(in_an_episode(engine, lambda client: converse(client, 2)))
    for call in recording.calls:
        prefix = list(call.prompt_tokens)
        for token, logprob, version in zip(
            call.output_tokens, call.output_logprobs, call.output_versions, strict=True
        ):
            assert (token, logprob, version) == (token_of(0, prefix), logprob_of(0, prefix), 0)
            prefix.append(token)
        assert call.versions_exact


def test_a_call_that_is_interrupted_goes_on_where_it_was(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    chatting_server.faults(["abort=5,next=1"])
    _, recording = make_runner().run(in_an_episode(engine, long_call))
    (call,) = recording.calls
    assert call.segments == 2
    prefix = list(call.prompt_tokens)
    for token in call.output_tokens:
        assert token == token_of(0, prefix, may_end=False)
        prefix.append(token)


async def long_call(client: AsyncOpenAI) -> Any:
    return await ask(client, [user("at length")], extra_body={"ignore_eos": True})


def test_a_streamed_reply_says_what_a_whole_one_does(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        whole = await ask(client, [user("twice")])
        chunks = await ask_streamed(client, [user("twice")], stream_options={"include_usage": True})
        return whole, chunks

    (whole, chunks), recording = make_runner().run(in_an_episode(engine, act))
    assert text_of(chunks) == whole.choices[0].message.content
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    first, second = recording.calls
    assert first.output_tokens == second.output_tokens
    assert {chunk.id for chunk in chunks} == {second.id}


def test_log_probabilities_are_told_to_who_asks(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        options: dict[str, Any] = {"logprobs": True, "extra_body": {"return_token_ids": True}}
        return await ask(client, [user("how likely?")], **options)

    completion, recording = make_runner().run(in_an_episode(engine, act))
    (call,) = recording.calls
    entries = completion.choices[0].logprobs.content
    assert [entry.logprob for entry in entries] == call.output_logprobs
    assert "".join(entry.token for entry in entries) == TOKENIZER.decode(
        call.output_tokens, skip_special_tokens=False
    )
    assert completion.prompt_token_ids == call.prompt_tokens
    assert completion.choices[0].token_ids == call.output_tokens


def test_a_tool_call_and_its_answer_stay_in_one_row(
    make_runner: MakeRunner, chatting_server: ReusedServer
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        messages: list[Any] = [user("note this")]
        first = (await ask(client, messages, tools=[NOTE], max_tokens=64)).choices[0]
        (call,) = first.message.tool_calls
        messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": "noted"}]
        await ask(client, messages, tools=[NOTE], max_tokens=64)
        return first

    with a_chatting_engine(chatting_server, chat=a_chat(SpacesCall())) as engine:
        first, recording = make_runner().run(in_an_episode(engine, act))
    assert first.finish_reason in ("tool_calls", "length")
    assert first.message.tool_calls[0].function.name == "note"
    assert recording.calls[0].tool_calls[0].id == first.message.tool_calls[0].id
    trajectory = recording.to_trajectory(1.0)
    assert len(trajectory["input_ids"]) == 1
    check_trajectory(trajectory, chatting_server.log())


def test_streamed_tool_calls_come_whole_at_the_end(
    make_runner: MakeRunner, chatting_server: ReusedServer
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        options: dict[str, Any] = {"tools": [NOTE], "max_tokens": 64}
        return (
            await ask(client, [user("note this")], **options),
            await ask_streamed(client, [user("note this")], **options),
        )

    with a_chatting_engine(chatting_server, chat=a_chat(SpacesCall())) as engine:
        (whole, chunks), _ = make_runner().run(in_an_episode(engine, act))
    (call,) = whole.choices[0].message.tool_calls
    (told,) = [one for chunk in chunks for one in chunk.choices[0].delta.tool_calls or ()]
    assert (told.function.name, told.function.arguments) == (call.function.name, call.function.arguments)
    assert text_of(chunks) == (whole.choices[0].message.content or "")


async def edited(client: AsyncOpenAI) -> None:
    messages = await converse(client, 2)
    messages[1] = {"role": "assistant", "content": "I never said that"}
    await ask(client, [*messages, user("go on")])


async def dropped(client: AsyncOpenAI) -> None:
    messages = await converse(client, 2)
    await ask(client, [*messages[2:], user("go on")])


async def with_another_template(client: AsyncOpenAI) -> None:
    messages = await converse(client, 2)
    await ask(client, [*messages, user("go on")], extra_body={"chat_template_kwargs": {"shout": True}})


async def in_parallel(client: AsyncOpenAI) -> None:
    await asyncio.gather(*(ask(client, [user("both")], max_tokens=20) for _ in range(2)))


async def branching(client: AsyncOpenAI) -> None:
    messages = await converse(client, 1)
    for way in ("left", "right"):
        await ask(client, [*messages, user(way)])


async def with_a_sub_agent(client: AsyncOpenAI) -> None:
    messages = await converse(client, 1)
    await asyncio.create_task(converse(client, 1, "a question of its own"))
    await ask(client, [*messages, user("and now?")])


@pytest.mark.parametrize(
    ("act", "rows"),
    [
        (edited, 2),
        (dropped, 2),
        (with_another_template, 1),
        (in_parallel, 2),
        (branching, 2),
        (with_a_sub_agent, 2),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_what_does_not_go_on_where_it_was_gets_rows_of_its_own(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine, act: Act, rows: int
) -> None:
    _, recording = make_runner().run(in_an_episode(engine, act))
    trajectory = recording.to_trajectory(1.0)
    assert len(trajectory["input_ids"]) == rows
    check_calls(recording.calls, chatting_server.log())
    check_trajectory(trajectory, chatting_server.log())


def test_episodes_at_once_do_not_mix(
    make_executor: MakeExecutor, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    async def act(client: AsyncOpenAI, data: Any) -> None:
        await converse(client, 2, begin=data)

    executor = make_executor(engine, consumer_batch_size=16, max_head_offpolicyness=1)
    names = [f"episode {number}" for number in range(16)]
    trajectories = executor.rollout_batch(names, Acting(act))
    for name, trajectory in zip(names, trajectories, strict=True):
        assert trajectory is not None
        assert TOKENIZER.encode(f"{name}\x04", add_special_tokens=False) == (
            trajectory["input_ids"][0][len("<|user|>\n") :][: len(name) + 1].tolist()
        )
        assert len(trajectory["input_ids"]) == 1
    generated = chatting_server.log()
    assert sum(int(one["loss_mask"].sum()) for one in trajectories if one) == sum(
        event["tokens"] for event in generated if event["event"] == "end"
    )


def test_groups_of_agents_are_joined_with_their_members_places(
    make_executor: MakeExecutor, engine: RemoteInfEngine
) -> None:
    async def act(client: AsyncOpenAI, data: Any) -> None:
        await in_parallel(client)

    executor = make_executor(engine, consumer_batch_size=4, max_head_offpolicyness=1)
    (trajectory,) = executor.prepare_batch(Batches(), Acting(act), group_size=3)
    assert trajectory["sample_idx"].tolist() == [0, 0, 1, 1, 2, 2]


class Batches:
    """A dataloader of batches of one."""

    batch_size = 1

    def __iter__(self) -> Iterator[list[str]]:
        yield ["a", "b"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 2}, "Invalid enum value 2"),
        ({"presence_penalty": 0.5}, "presence_penalty=0.5 cannot be honoured"),
        ({"logit_bias": {"5": 1}}, "logit_bias=.* cannot be honoured"),
        ({"response_format": {"type": "json_object"}}, "response_format=.* cannot be honoured"),
        ({"tools": [NOTE], "tool_choice": "required"}, "tool_choice=.*advisory=True"),
        ({"extra_body": {"min_p": 0.1}}, "min_p=0.1 cannot be honoured"),
        ({"extra_body": {"repetition_penalty": 1.1}}, "repetition_penalty=1.1 cannot"),
        ({"extra_body": {"guided_json": {"a": 1}}}, "guided_json=.* cannot be honoured"),
        ({"extra_body": {"continue_final_message": True}}, "continue_final_message"),
        ({"extra_body": {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}}, "chat_template_kwargs="),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"extra_body": {"min_tokens": 50}, "max_tokens": 5}, "min_new_tokens=50 is more than"),
    ],
    ids=lambda value: next(iter(value.get("extra_body") or value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_refused_and_not_ignored(
    make_runner: MakeRunner, engine: RemoteInfEngine, options: dict[str, Any], words: str
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        with pytest.raises(openai.BadRequestError, match=words):
            await ask(client, [user("please")], **options)

    _, recording = make_runner().run(in_an_episode(engine, act))
    assert recording.calls == ()


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "length >= 1"),
        ([{"content": "no role"}], "has no role"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "only text"),
    ],
    ids=["none", "no role", "a picture"],
)
def test_messages_that_cannot_be_written_are_refused(
    make_runner: MakeRunner, engine: RemoteInfEngine, messages: Any, words: str
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        with pytest.raises(openai.BadRequestError, match=words):
            await ask(client, messages)

    make_runner().run(in_an_episode(engine, act))


def test_what_an_agent_leaves_open_is_as_the_chat_format_says(
    make_runner: MakeRunner, chatting_server: ReusedServer
) -> None:
    chat = a_chat(gconfig=GenerationHyperparameters(max_new_tokens=7))
    with a_chatting_engine(chatting_server, chat=chat) as engine:
        _, recording = make_runner().run(in_an_episode(engine, lambda client: ask(client, [user("hello")])))
    assert len(recording.calls[0].output_tokens) <= 7


def test_a_cancelled_call_ends_on_the_server_and_is_not_recorded(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        options: dict[str, Any] = {"max_tokens": 100_000, "extra_body": {"ignore_eos": True}}
        call = asyncio.create_task(ask(client, [user("for ever")], **options))
        await asyncio.to_thread(chatting_server.stats, in_flight=1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        await until_idle(chatting_server)

    _, recording = make_runner().run(in_an_episode(engine, act))
    assert recording.calls == ()


def test_a_stream_that_is_left_early_ends_on_the_server(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        options: dict[str, Any] = {"max_tokens": 100_000, "extra_body": {"ignore_eos": True}}
        async with await ask(client, [user("for ever")], stream=True, **options) as stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
        await until_idle(chatting_server)

    _, recording = make_runner().run(in_an_episode(engine, act))
    assert recording.calls == ()


def test_what_the_servers_refuse_is_what_the_agent_hears(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        with pytest.raises(openai.BadRequestError, match="answered POST /generate with 400"):
            await ask(client, [user("x" * 140_000)])
        with pytest.raises(openai.BadRequestError, match="answered POST /generate with 400"):
            await ask_streamed(client, [user("x" * 140_000)])

    make_runner().run(in_an_episode(engine, act))


def test_a_call_is_made_once_whatever_becomes_of_it(
    make_runner: MakeRunner, chatting_server: ReusedServer
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        with pytest.raises(openai.InternalServerError, match="500"):
            await ask(client, [user("please")])

    chatting_server.faults(["status=500"])
    with a_chatting_engine(chatting_server, request_retries=0) as engine:
        make_runner().run(in_an_episode(engine, act))
    assert chatting_server.stats().faults == {"status_500": 1}


def test_closing_the_client_closes_nothing(make_runner: MakeRunner, engine: RemoteInfEngine) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        async with client:
            pass
        await client.close()
        assert await workflow_context.get_openai_client() is client
        return await ask(client, [user("still there?")])

    completion, _ = make_runner().run(in_an_episode(engine, act))
    assert completion.choices[0].message.content


def test_each_loop_has_a_client_of_its_own(make_runner: MakeRunner) -> None:
    async def get() -> AsyncOpenAI:
        return await workflow_context.get_openai_client()

    first, second = make_runner().run(get), make_runner().run(get)
    assert first is not second
    assert first.max_retries == 0


def test_outside_of_an_episode_a_call_says_what_it_lacks(make_runner: MakeRunner) -> None:
    async def main() -> None:
        client = await workflow_context.get_openai_client()
        with pytest.raises(openai.BadRequestError, match="no episode runs here"):
            await ask(client, [user("hello?")])
        with pytest.raises(RuntimeError, match="no episode runs here"):
            workflow_context.recorded()

    make_runner().run(main)


def test_a_block_ends_with_its_calls_and_gives_the_one_around_it_back(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    async def main() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        class Hanging:
            chat = engine.chat

            def get_version(self) -> int:
                return 0

            async def agenerate(self, request: Any) -> Any:
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

        async with workflow_context.record(engine) as around:
            async with workflow_context.record(Hanging()) as inside:
                assert workflow_context.recorded() is inside
                client = await workflow_context.get_openai_client()
                call = asyncio.create_task(ask(client, [user("hello")]))
                await begun.wait()
            assert ended.is_set()
            assert workflow_context.recorded() is around
            with pytest.raises(openai.APIStatusError, match="its episode is over"):
                await call
        with pytest.raises(RuntimeError, match="no episode runs here"):
            workflow_context.recorded()

    make_runner().run(main)


@pytest.mark.any_loop
def test_without_the_sdk_its_client_says_which_extra_to_install(run_script: RunScript) -> None:
    child = run_script(
        """
        import asyncio, sys
        from areal_core import workflow_context

        sys.modules["openai"] = None
        try:
            asyncio.run(workflow_context.get_openai_client())
        except ModuleNotFoundError as error:
            print(error)
        """
    )
    assert child.stderr == ""
    assert child.stdout.endswith("; install the extra: pip install 'areal-core[openai]'\n")
    assert "openai" in child.stdout.partition(";")[0]


def test_an_engine_without_a_chat_format_is_named_at_once(
    make_runner: MakeRunner, chatting_server: ReusedServer
) -> None:
    async def main(engine: Any) -> None:
        async with workflow_context.record(engine):
            with pytest.raises(RuntimeError, match=r"chat=ChatFormat\(tokenizer"):
                await workflow_context.get_openai_client()

    runner = make_runner()
    runner.run(main, Engine())
    with an_engine(chatting_server) as engine:
        runner.run(main, engine)


def test_what_is_no_chat_format_is_no_engines(chatting_server: ReusedServer) -> None:
    with pytest.raises(TypeError, match="chat='hermes' is not a ChatFormat"):
        RemoteInfEngine(engine_config(), chat="hermes")  # type: ignore[arg-type]


def engine_config() -> Any:
    from areal_core.config import InferenceEngineConfig

    return InferenceEngineConfig()


@pytest.mark.parametrize("options", [{"api_key": "x"}, {"base_url": ""}], ids=["api_key", "no url"])
def test_what_is_for_another_server_needs_its_url(make_runner: MakeRunner, options: Any) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="base_url"):
            await workflow_context.get_openai_client(**options)

    make_runner().run(main)


def test_other_paths_are_told_so_and_models_are_listed(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        with pytest.raises(openai.NotFoundError, match="only chat completions"):
            await client.embeddings.create(model="policy", input="hello")
        return [model.id async for model in client.models.list()]

    models, _ = make_runner().run(in_an_episode(engine, act))
    assert models == ["policy"]


def test_what_the_model_cannot_be_held_to_may_be_advice(
    make_runner: MakeRunner, chatting_server: ReusedServer
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        options: dict[str, Any] = {"tool_choice": "required", "response_format": {"type": "json_object"}}
        return await ask(client, [user("please")], tools=[NOTE], **options)

    chat = ChatFormat(TOKENIZER, "none", SHORT, advisory=True)
    with a_chatting_engine(chatting_server, chat=chat) as engine:
        completion, _ = make_runner().run(in_an_episode(engine, act))
    assert completion.choices


def test_a_temperature_that_is_asked_for_counts_where_the_format_is_greedy(make_runner: MakeRunner) -> None:
    order = read_order(b'{"messages": [{"role": "user", "content": "x"}], "temperature": 0.7}')
    wanted = order.gconfig(ChatFormat(TOKENIZER, gconfig=GenerationHyperparameters(greedy=True)))
    assert (wanted.greedy, wanted.temperature) == (False, 0.7)


class Repeating(Engine):
    """An engine that always says *reply*."""

    def __init__(self, chat: ChatFormat, reply: list[int]) -> None:
        super().__init__()
        self.chat = chat
        self._reply = reply

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        count = len(self._reply)
        return ModelResponse(
            input_tokens=list(request.input_ids),
            output_tokens=list(self._reply),
            output_logprobs=[-0.5] * count,
            output_versions=[0] * count,
            versions_exact=True,
            stop_reason="stop",
            latency=0.0,
            ttft=None,
        )


def test_of_a_long_conversation_each_prompt_is_kept_once_and_its_text_not_at_all(
    make_runner: MakeRunner,
) -> None:
    async def main() -> tuple[int, int]:
        engine = Repeating(ChatFormat(SmallTokenizer()), sampled("ok"))
        recording = Recording()
        completer = Completer(engine, recording)
        messages = list[dict[str, Any]]()
        tracemalloc.start()
        for turn in range(30):
            messages.append(user(f"{turn:04}" * 500))  # as a tool may answer
            reply = json.loads(await completer.whole(read_order(json.dumps({"messages": messages}).encode())))
            messages.append(reply["choices"][0]["message"])
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(recording.to_trajectory(1.0)["input_ids"]) == 1  # all the same it goes on as it was
        return used, sum(sys.getsizeof(call.prompt_tokens) for call in recording.calls)

    used, prompts = make_runner().run(main)
    assert prompts < used < 1.6 * prompts


class WithArrays(Repeating):
    """One that says what it read in arrays, as an engine of somebody's own may."""

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        reply = await super().agenerate(request)
        return replace(reply, input_tokens=np.array(reply.input_tokens))  # type: ignore[arg-type]


def test_an_engine_that_returns_its_prompt_as_an_array_is_understood(make_runner: MakeRunner) -> None:
    async def main() -> Recording:
        recording = Recording()
        completer = Completer(WithArrays(ChatFormat(SmallTokenizer()), sampled("ok")), recording)
        messages = [user("hello")]
        for _ in range(2):
            reply = json.loads(await completer.whole(read_order(json.dumps({"messages": messages}).encode())))
            messages += [reply["choices"][0]["message"], user("more")]
        return recording

    recording = make_runner().run(main)
    assert all(type(call.prompt_tokens) is list for call in recording.calls)
    assert len(recording.to_trajectory(1.0)["input_ids"]) == 1


class HalfAPair:
    """A parser for which the model always writes half of a surrogate pair."""

    opening = ""

    def parse(self, text: str) -> tuple[str | None, list[tuple[str, str]]]:
        return "\ud800", [("note", '{"a": "\ud800"}')]


@pytest.mark.parametrize("begin", [ask, ask_streamed])
def test_a_call_is_recorded_once_whatever_the_model_wrote(
    make_runner: MakeRunner, chatting_server: ReusedServer, begin: Any
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        return await begin(client, [user("write half of a character")], tools=[NOTE])

    with a_chatting_engine(chatting_server, chat=a_chat(HalfAPair())) as engine:
        _, recording = make_runner().run(in_an_episode(engine, act))
    (call,) = recording.calls
    assert call.content == "?"
    assert call.tool_calls[0].arguments == '{"a": "?"}'


def test_a_limit_of_time_is_kept_without_a_socket_too(
    make_runner: MakeRunner, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        options: dict[str, Any] = {"max_tokens": 100_000, "extra_body": {"ignore_eos": True}}
        with pytest.raises(openai.APITimeoutError):
            await ask(client.with_options(timeout=0.1), [user("for ever")], **options)
        await until_idle(chatting_server)

    _, recording = make_runner().run(in_an_episode(engine, act))
    assert recording.calls == ()


@pytest.mark.parametrize("begin", [ask, ask_streamed])
@pytest.mark.parametrize("limit", [None, 60.0])
def test_an_engines_own_timeout_is_told_as_it_is(
    make_runner: MakeRunner, begin: Any, limit: float | None
) -> None:
    error = TimeoutError("the engine's own time is up")

    class Late(Engine):
        chat = a_chat()

        async def agenerate(self, request: ModelRequest) -> ModelResponse:
            raise error

    async def act(client: AsyncOpenAI) -> Any:
        with pytest.raises((TimeoutError, openai.APIConnectionError)) as told:
            await begin(client.with_options(timeout=limit, max_retries=0), [user("hello")])
        assert error in (told.value, told.value.__cause__)

    make_runner().run(in_an_episode(Late(), act))


def test_what_an_episode_leaves_running_ends_with_it(
    make_executor: MakeExecutor, chatting_server: ReusedServer, engine: RemoteInfEngine
) -> None:
    left = []

    async def act(client: AsyncOpenAI, data: Any) -> None:
        options: dict[str, Any] = {"max_tokens": 100_000, "extra_body": {"ignore_eos": True}}
        await ask(client, [user("hello")])
        left.append(await ask(client, [user("stream")], stream=True, **options))
        left.append(asyncio.create_task(ask(client, [user("whole")], **options)))
        await asyncio.to_thread(chatting_server.stats, in_flight=2)

    executor = make_executor(engine)
    (trajectory,) = executor.rollout_batch(["hello"], Acting(act))
    assert trajectory is not None
    executor.runner.run(until_idle, chatting_server)

    async def hear() -> str:
        with pytest.raises(openai.APIStatusError) as refused:
            await left[1]
        await left[0].close()
        return str(refused.value)

    assert "its episode is over" in executor.runner.run(hear)


def test_the_client_of_the_episode_is_for_its_engine_alone(
    make_runner: MakeRunner, engine: RemoteInfEngine
) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        with pytest.raises(openai.BadRequestError, match="give get_openai_client"):
            await ask(client.with_options(base_url="http://judge/v1"), [user("how good?")])

    _, recording = make_runner().run(in_an_episode(engine, act))
    assert recording.calls == ()


def test_the_model_may_judge_itself_unrecorded(make_runner: MakeRunner, engine: RemoteInfEngine) -> None:
    async def act(client: AsyncOpenAI) -> Any:
        judge = await workflow_context.get_openai_client(record=False)
        await ask(client, [user("hello")])
        return await ask(judge, [user("how good was that?")])

    completion, recording = make_runner().run(in_an_episode(engine, act))
    assert completion.choices
    assert completion.id not in {call.id for call in recording.calls}
    assert len(recording.calls) == 1


@pytest.mark.parametrize("group_size", [1, 2])
def test_a_filter_may_ask_the_model_and_is_not_trained(
    make_executor: MakeExecutor, chatting_server: ReusedServer, engine: RemoteInfEngine, group_size: int
) -> None:
    async def act(client: AsyncOpenAI, data: Any) -> None:
        await ask(client, [user("hello")])

    async def accept(trajectory: dict[str, Any]) -> bool:
        client = await workflow_context.get_openai_client()
        return bool((await ask(client, [user("is it good?")])).choices)

    executor = make_executor(engine)
    task_id = executor.submit("hello", Acting(act), should_accept_fn=accept, group_size=group_size)
    trajectory = executor.wait_for_task(task_id, 20)
    assert trajectory is not None
    assert len(trajectory["input_ids"]) == group_size


def test_a_long_prompt_is_made_into_tokens_beside_the_loop(
    make_runner: MakeRunner, chatting_server: ReusedServer
) -> None:
    where = []

    class Looking(ChatTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            where.append(threading.current_thread().name)
            return super().encode(text, add_special_tokens=add_special_tokens)

    async def act(client: AsyncOpenAI) -> Any:
        await ask(client, [user("short")])
        await ask(client, [user("long " * 20_000)])

    with a_chatting_engine(chatting_server, chat=ChatFormat(Looking("test"), "none", SHORT)) as engine:
        make_runner().run(in_an_episode(engine, act))
    assert where[-2] == "areal-core-runner"
    assert where[-1] != "areal-core-runner"


def test_clients_end_with_their_loop(make_runner: MakeRunner, engine: RemoteInfEngine) -> None:
    async def get() -> list[AsyncOpenAI]:
        get = workflow_context.get_openai_client
        urls = None, "http://a/v1"
        return [await get(url, record=record) for url in urls for record in (True, False)]

    runner = make_runner()
    clients = runner.run(get)
    assert not any(client.is_closed() for client in clients)
    runner.destroy()
    assert all(client.is_closed() for client in clients)
