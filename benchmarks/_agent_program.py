"""Agents in a program of their own, with OpenAI's SDK as it is: the command the agents' benchmark starts.

A line of JSON on stdin is a session to play: ``id``, ``round``, ``topic``, ``stream``, ``base_url`` and
``api_key``. When it is over, a line on stdout has its ``id``, and as ``digest`` what stands for all that the
model said. Those of one round share connections, which no other round has. It ends with stdin, and when a
session fails. The first argument is how many calls a session makes; with ``aiohttp`` for another, the SDK
sends through aiohttp.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from typing import Any

from openai import AsyncOpenAI, DefaultAioHttpClient

MOST_TOKENS = 128

_SYSTEM = (
    "You are a careful assistant with a good memory. You answer in one paragraph, you say what you do not "
    "know, and you never make up a source. When a question has several parts you take them one by one, in "
    "the order in which they were asked, and you end with the one thing to do next."
)


async def play(client: AsyncOpenAI, topic: str, calls: int, stream: bool) -> str:
    """Make so many *calls*, each with all that was said before; return what stands for the replies."""
    ask = _streamed if stream else _whole
    messages: list[Any] = [{"role": "system", "content": _SYSTEM}]
    said = hashlib.blake2b(digest_size=8)
    for number in range(calls):
        messages.append({"role": "user", "content": f"Question {number} on topic {topic}: what follows?"})
        reply = await ask(client, messages)
        messages.append({"role": "assistant", "content": reply})
        said.update(reply.encode() + b"\0")
    return said.hexdigest()


async def _whole(client: AsyncOpenAI, messages: list[Any]) -> str:
    completion = await client.chat.completions.create(
        model="policy", messages=messages, max_tokens=MOST_TOKENS
    )
    return completion.choices[0].message.content or ""


async def _streamed(client: AsyncOpenAI, messages: list[Any]) -> str:
    chunks = await client.chat.completions.create(
        model="policy", messages=messages, max_tokens=MOST_TOKENS, stream=True
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


class Clients:
    """The client whose connections a round shares. A new round has a new one: to begin with none is fair."""

    def __init__(self, transport: str | None) -> None:
        self._transport = transport
        self._round: object = None
        self._client: AsyncOpenAI | None = None

    async def of(self, number: object) -> AsyncOpenAI:
        """Return that of the round *number*; the one before is over."""
        if self._client is None or number != self._round:
            await self.close()
            http_client: Any = DefaultAioHttpClient() if self._transport == "aiohttp" else None
            self._round, self._client = number, AsyncOpenAI(api_key="none", http_client=http_client)
        return self._client

    async def close(self) -> None:
        """Close it."""
        if self._client is not None:
            await self._client.close()


async def _session(client: AsyncOpenAI, order: dict[str, Any], calls: int) -> None:
    own = client.with_options(base_url=order["base_url"], api_key=order["api_key"])
    digest = await play(own, order["topic"], calls, order["stream"])
    sys.stdout.write(json.dumps({"id": order["id"], "digest": digest}) + "\n")
    sys.stdout.flush()


async def _main(calls: str, transport: str | None = None) -> None:
    orders = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(orders)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    clients = Clients(transport)
    async with asyncio.TaskGroup() as sessions:
        while line := await orders.readline():
            order = json.loads(line)
            sessions.create_task(_session(await clients.of(order["round"]), order, int(calls)))
    await clients.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
