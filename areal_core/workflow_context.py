"""What a workflow finds around itself: its context, and the HTTP clients of its event loop.

    async def arun_episode(self, engine, data):
        context = workflow_context.get()                        # is_eval, task_id, sample_idx
        session = await workflow_context.get_aiohttp_session()
        async with session.post(url, json=data) as reply:
            ...

The clients are made on first use, one of each per event loop, shared by everybody on it, and closed when
the loop is closed. Do not close them, nor keep them for another loop. What an episode asks through the OpenAI
client is recorded: `recorded`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from areal_core import _context
from areal_core._agents import scope
from areal_core._checks import check_text
from areal_core._context import WorkflowContext
from areal_core._http import clients
from areal_core._http.clients import HttpClientManager, configure_http
from areal_core._http.config import HttpConfig
from areal_core._http.descriptors import ensure_descriptors
from areal_core._http.first_import import import_off_loop

if TYPE_CHECKING:
    import aiohttp
    import httpx
    from openai import AsyncOpenAI

    from areal_core._agents.recording import Recording
    from areal_core.types import InferenceEngine

__all__ = [
    "HttpClientManager",
    "HttpConfig",
    "WorkflowContext",
    "configure_http",
    "ensure_descriptors",
    "get",
    "get_aiohttp_session",
    "get_control_session",
    "get_httpx_client",
    "get_openai_client",
    "record",
    "recorded",
    "set",
    "stat_scope",
]


def set(context: WorkflowContext) -> None:  # noqa: A001 - read as workflow_context.set
    """Make *context* that of the current task, and of the tasks it starts from now on."""
    if not isinstance(context, WorkflowContext):
        raise TypeError(f"context={context!r} is not a WorkflowContext; pass WorkflowContext(...)")
    _context.current.set(context)


def get() -> WorkflowContext:
    """Return the current task's context; ``WorkflowContext()`` where none was set."""
    return _context.current.get()


def stat_scope() -> str:
    """Return the name under which statistics of the current task belong: training and evaluation apart."""
    return "eval-rollout" if get().is_eval else "rollout"


async def get_aiohttp_session() -> aiohttp.ClientSession:
    """Return the running loop's aiohttp session.

    It has no limit of connections and no total timeout, reuses connections, and keeps no cookies; see
    `HttpConfig`. Raises RuntimeError once the loop has run its cleanup, and on a loop of the parent process.
    """
    await import_off_loop("areal_core._http.pool")
    return clients.aiohttp_session()


async def get_control_session() -> aiohttp.ClientSession:
    """Return the running loop's session for control calls: aborts, probes, pauses.

    Its connections are its own, so that a call never queues behind generations. Raises like
    `get_aiohttp_session`.
    """
    await import_off_loop("areal_core._http.pool")
    return clients.control_session()


async def get_httpx_client() -> httpx.AsyncClient:
    """Return the running loop's httpx client, whose requests go through the aiohttp session.

    It follows no redirects. A read timeout is that of the config unless the request has its own. Raises
    like `get_aiohttp_session`.
    """
    await import_off_loop("areal_core._http.pool")
    await import_off_loop("areal_core._http.transport")
    return clients.httpx_client()


async def get_openai_client(
    base_url: str | None = None, *, api_key: str | None = None, record: bool = True
) -> AsyncOpenAI:
    """Return a client of OpenAI's SDK for the running loop, whose chat completions are recorded.

    It asks the engine of the episode it is used in: without a socket, with the engine's routing, retries,
    interruption and versions. With a *base_url* it asks the server there, through the loop's pool, with
    *api_key*; inside an episode what that answers is recorded too, for which it has to say its token ids
    (``return_token_ids``). With *record* False nothing is recorded, nor asked for: for a judge, be it the
    model itself. A stream that is left before its end is not recorded.

    Its own retries are off. Closing it does nothing; it is closed with the loop. Needs the extra ``openai``.
    Raises ModuleNotFoundError without that, RuntimeError without a *base_url* where the engine has no chat
    format, ValueError for an *api_key* without a *base_url*, and like `get_aiohttp_session`.
    """
    if base_url is not None:
        check_text("base_url", base_url)
    elif api_key is not None:
        raise ValueError("api_key is for another server; give its base_url, or no api_key")
    try:
        await import_off_loop("areal_core._agents.sdk")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; install the extra: pip install 'areal-core[openai]'") from None
    await import_off_loop("areal_core._http.pool")
    await import_off_loop("areal_core._agents.clients")
    await import_off_loop("areal_core._agents.completer")
    here = scope.current.get()
    if base_url is None and here is not None:
        here.check_chat()
    from areal_core._agents.clients import agent_clients

    return agent_clients().sdk(base_url, api_key, record)


def recorded() -> Recording:
    """Return the chat completions of the current episode so far.

    Raises RuntimeError outside of episodes, and of `record`.
    """
    here = scope.current.get()
    if here is None:
        raise RuntimeError("no episode runs here; call it in arun_episode, or in a block of record(engine)")
    return here.recording


@asynccontextmanager
async def record(engine: InferenceEngine) -> AsyncIterator[Recording]:
    """Record the chat completions of the block, as in an episode with *engine*; what it starts included.

    In an episode it takes them out of that: for an opponent, or another part that is trained apart. Calls
    that are under way at its end are ended.
    """
    here = scope.Scope(engine)
    token = scope.current.set(here)
    try:
        yield here.recording
    finally:
        scope.current.reset(token)
        await here.end()
