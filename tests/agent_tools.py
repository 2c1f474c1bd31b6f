"""Agents on real servers: playing episodes, and judging what was recorded by the servers' own logs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from openai import AsyncOpenAI

from areal_core import workflow_context
from areal_core._agents.call import Call
from areal_core._agents.recording import Recording
from areal_core.agents import ChatFormat
from areal_core.config import InferenceEngineConfig
from areal_core.embedded import ChatTokenizer, EmbeddedServer
from areal_core.remote_inf_engine import RemoteInfEngine
from areal_core.types import GenerationHyperparameters

Trajectory: TypeAlias = dict[str, Any]
Act: TypeAlias = Callable[[AsyncOpenAI], Awaitable[Any]]

TOKENIZER = ChatTokenizer("test")
SHORT = GenerationHyperparameters(max_new_tokens=16)


class SpacesCall:
    """A parser for a model that makes up letters: what follows the first space calls the tool ``note``."""

    opening = " "

    def parse(self, text: str) -> tuple[str | None, list[tuple[str, str]]]:
        before, space, after = text.partition(" ")
        return (before or None, [("note", f'{{"text": "{after}"}}')]) if space else (text, [])


NOTE = {"type": "function", "function": {"name": "note", "parameters": {"type": "object"}}}


def a_chat(tool_calls: Any = "none", gconfig: GenerationHyperparameters = SHORT) -> ChatFormat:
    """Return the format of the chats of a server in the mode "test"."""
    return ChatFormat(TOKENIZER, tool_calls, gconfig)


@contextmanager
def a_chatting_engine(
    *servers: EmbeddedServer, chat: ChatFormat | None = None, **config: Any
) -> Iterator[RemoteInfEngine]:
    """Give an initialized engine on *servers* that knows their chats."""
    options = {"request_timeout": 30.0, "setup_timeout": 20.0, "control_timeout": 20.0, **config}
    with RemoteInfEngine(InferenceEngineConfig(**options), chat=chat or a_chat()) as engine:
        engine.initialize([server.addr for server in servers])
        yield engine


def user(text: str) -> dict[str, Any]:
    """Return a message of the user's."""
    return {"role": "user", "content": text}


async def ask(client: AsyncOpenAI, messages: Sequence[Any], **options: Any) -> Any:
    """Return the completion of *messages*."""
    return await client.chat.completions.create(model="policy", messages=messages, **options)


async def ask_streamed(client: AsyncOpenAI, messages: Sequence[Any], **options: Any) -> list[Any]:
    """Return the chunks of the completion of *messages*."""
    stream = await ask(client, messages, stream=True, **options)
    return [chunk async for chunk in stream]


def text_of(chunks: Sequence[Any]) -> str:
    """Return the content that streamed *chunks* have together."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def converse(client: AsyncOpenAI, turns: int, begin: str = "hello", **options: Any) -> list[Any]:
    """Play a conversation of so many *turns*; return its messages, the last reply included."""
    messages: list[Any] = [user(begin)]
    for turn in range(turns):
        if turn:
            messages.append(user(f"and then, {turn}?"))
        completion = await ask(client, messages, **options)
        messages.append(completion.choices[0].message)
    return messages


def in_an_episode(engine: Any, act: Act) -> Callable[[], Awaitable[tuple[Any, Recording]]]:
    """Return a coroutine function that plays *act* as if in an episode, and returns what is recorded."""

    async def play() -> tuple[Any, Recording]:
        async with workflow_context.record(engine) as recording:
            client = await workflow_context.get_openai_client()
            return await act(client), recording

    return play


def sampled(log: Sequence[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    """Return prompt and tokens of each generation in a server's *log*, in the order in which they ended."""
    prompts: dict[str, list[int]] = {}
    found = []
    for event in log:
        if event["event"] == "start":
            prompts[event["id"]] = event["input_ids"]
        elif event["event"] == "end":
            found.append((prompts.pop(event["id"]), event["output_ids"]))
    return found


def check_calls(calls: Sequence[Call], log: Sequence[dict[str, Any]]) -> None:
    """See that what the *calls* have is what the server's *log* says it read and sampled, each once."""
    recorded = sorted((call.prompt_tokens, call.output_tokens) for call in calls)
    assert recorded == sorted(sampled(log))


def check_trajectory(trajectory: Trajectory, log: Sequence[dict[str, Any]]) -> None:
    """See that each token of *trajectory* that is trained was sampled after exactly the tokens before it."""
    after: dict[tuple[int, ...], list[int]] = {}
    for prompt, tokens in sampled(log):
        for place, token in enumerate(tokens):
            after.setdefault((*prompt, *tokens[:place]), []).append(token)
    trained = 0
    for row, mask in zip(trajectory["input_ids"].tolist(), trajectory["loss_mask"].tolist(), strict=True):
        for place, is_trained in enumerate(mask):
            if is_trained:
                after[tuple(row[:place])].remove(row[place])
                trained += 1
    assert trained == sum(len(tokens) for _, tokens in sampled(log))


async def until_idle(server: EmbeddedServer) -> None:
    """Ask *server* until nothing runs there."""
    async with asyncio.timeout(20):
        while (await asyncio.to_thread(server.stats)).in_flight:
            pass
