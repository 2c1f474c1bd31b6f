"""OpenAI's client, with what it imports when it is first called: on the loop, if it were not here already."""

from __future__ import annotations

from openai import AsyncOpenAI
from openai.resources.chat import AsyncChat, AsyncCompletions

__all__ = ["AsyncChat", "AsyncCompletions", "AsyncOpenAI"]
