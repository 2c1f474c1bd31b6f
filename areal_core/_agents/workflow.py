"""An agent as a workflow: it is given an endpoint of its own, and what it returns makes a trajectory."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from areal_core._agents import scope
from areal_core._checks import check_integer, check_number, check_text
from areal_core._http.first_import import import_off_loop
from areal_core.types import InferenceEngine, RolloutWorkflow

if TYPE_CHECKING:
    import httpx

_LAST_PORT = 65535
_ANYWHERE = "0.0.0.0", "::"
_ARGUMENTS = ("base_url", "api_key", "http_client")


class Agent(Protocol):
    """Plays an episode by chat completions, wherever it makes them from."""

    def run(
        self, data: Any, *, base_url: str, api_key: str, http_client: httpx.AsyncClient
    ) -> Awaitable[float | Mapping[str, float] | None]:
        """Play one episode on *data* and return its reward; None rejects it.

        A mapping has the rewards of some of its calls, by the id of the completion; True is 1. *base_url* and
        *api_key* are for an OpenAI client, here or in any other program; they work until this returns.
        *http_client* is for this episode, and sends through the connections of the loop that this runs on;
        closing it does nothing. It runs on the loop that answers its calls: a client that blocks, such as
        ``openai.OpenAI``, waits here for ever, and belongs into a thread.
        """


class AgentWorkflow(RolloutWorkflow):
    """Plays an episode with *agent*, whose calls are recorded by a gateway.

    *discount* is as in `Recording.to_trajectory`. The gateway listens on *host*, loopback only unless that
    says otherwise, and *port*, 0 is a free one; *url* is what agents are told where they reach it by another
    name, such as ``"http://host.docker.internal:8000"``; None: host and port. All workflows of one loop that
    say the same share one. Raises TypeError for what is no agent.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        discount: float = 1.0,
        host: str = "127.0.0.1",
        port: int = 0,
        url: str | None = None,
    ) -> None:
        if not is_agent(agent):
            raise TypeError(
                f"agent={short(agent)} has no run(data, *, base_url, api_key, http_client); give one that has"
            )
        self._agent = agent
        self._discount = check_number("discount", discount, least=0.0, most=1.0)
        self._host = check_text("host", host)
        self._port = check_integer("port", port, least=0)
        self._url = None if url is None else check_text("url", url)
        if self._port > _LAST_PORT:
            raise ValueError(f"port={port} is above {_LAST_PORT}; give another, or 0 for a free one")
        if host in _ANYWHERE and url is None:
            raise ValueError(
                f"host={host!r} listens everywhere, and is no address to call; give a url with one"
            )

    def __repr__(self) -> str:
        return f"AgentWorkflow({short(self._agent)})"

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> dict[str, Any] | None:
        """Return the trajectory of one episode, a row for each conversation; None: the agent rejects it."""
        for module in ("gateway", "clients", "completer"):  # aiohttp's server, and NumPy
            await import_off_loop(f"areal_core._agents.{module}")
        here = scope.Scope(engine)  # which the gateway's session ends
        token = scope.current.set(here)
        try:
            reward = await self._play(data, here)
        finally:
            scope.current.reset(token)
        return None if reward is None else here.recording.to_trajectory(reward, discount=self._discount)

    async def _play(self, data: Any, here: scope.Scope) -> float | Mapping[str, float] | None:
        from areal_core._agents.clients import agent_clients
        from areal_core._agents.gateway import Listening, gateway_of

        http_client = agent_clients().plain()
        gateway = await gateway_of(Listening(self._host, self._port))
        async with gateway.session(here, self._url) as (base_url, api_key):
            playing = self._agent.run(data, base_url=base_url, api_key=api_key, http_client=http_client)
            if not inspect.isawaitable(playing):
                raise TypeError(
                    f"{type(self._agent).__qualname__}.run returned {short(playing)}, which cannot be "
                    "awaited; make it an async def"
                )
            return await playing


def is_agent(thing: Any) -> TypeGuard[Agent]:
    """Return whether *thing* is an object whose ``run`` can be called as an agent's."""
    run = getattr(thing, "run", None)
    if not callable(run) or inspect.isclass(thing):
        return False
    try:
        inspect.signature(run).bind(None, **dict.fromkeys(_ARGUMENTS))
    except (TypeError, ValueError):
        return False
    return True
