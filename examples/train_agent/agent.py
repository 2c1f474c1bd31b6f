"""The agent: plain OpenAI SDK, with a tool, in a loop of turns. It knows nothing of tokens or of training.

It is asked for a string of digits backwards, and may have its answer checked before it gives it:

    user        314=
    assistant   check(answer="413")
    tool        1=
    assistant   413

An answer that was not checked counts half. `play` is all of the agent. This file is also a program, which
plays as many episodes as it reads lines of JSON, all at once, and writes a line when one is over:

    {"id": 7, "digits": "314", "base_url": "http://...", "api_key": "..."}    {"id": 7, "reward": 1.0}
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionFunctionToolParam

CHECK: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "check",
        "description": "Say whether an answer is right: 1 if it is, 0 if not.",
        "parameters": {
            "type": "object",
            "properties": {"answer": {"type": "string"}},
            "required": ["answer"],
        },
    },
}
MOST_REPLIES = 3
_MOST_TOKENS = 5  # a call, three digits and the end
_UNCHECKED = 0.5


async def play(client: AsyncOpenAI, digits: str) -> float:
    """Ask for *digits* backwards; return what the answer is worth, 0 if after three replies there is none."""
    right = digits[::-1]
    messages: list[Any] = [{"role": "user", "content": f"{digits}="}]
    worth = _UNCHECKED
    for _ in range(MOST_REPLIES):
        completion = await client.chat.completions.create(
            model="policy", messages=messages, tools=[CHECK], max_completion_tokens=_MOST_TOKENS
        )
        reply = completion.choices[0].message
        if not reply.tool_calls:
            return worth * _share_right(reply.content or "", right)
        messages.append(reply)
        for call in reply.tool_calls:
            assert call.type == "function"
            verdict = int(json.loads(call.function.arguments)["answer"] == right)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": f"{verdict}="})
        worth = 1.0
    return 0.0


def _share_right(answer: str, right: str) -> float:
    """Return the share of places that are right, of the places of the longer of the two."""
    matches = sum(one == other for one, other in zip(answer, right, strict=False))
    return matches / max(len(answer), len(right))


async def main() -> None:
    """Play the episodes on stdin, until it ends."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with AsyncOpenAI(api_key="an episode has its own") as client, asyncio.TaskGroup() as episodes:
        async for line in lines:
            episodes.create_task(_play_and_say(client, json.loads(line)))


async def _play_and_say(client: AsyncOpenAI, episode: dict[str, Any]) -> None:
    # All clients share the connections of the first.
    own = client.with_options(base_url=episode["base_url"], api_key=episode["api_key"])
    try:
        said: dict[str, Any] = {"reward": await play(own, episode["digits"])}
    except Exception as error:  # one episode's failure is not the others'
        said = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps({"id": episode["id"], **said}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
