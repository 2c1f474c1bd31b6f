"""An agent as a workflow: it is given an endpoint of its own, and what it returns makes a trajectory."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping
from reprlib import repr as short
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from areal_core._agents import scope
from areal_core._agents.scope import Scope
from areal_core._checks import check_integer, check_number, check_text
from areal_core._http.first_import import import_off_loop
from areal_core.types import InferenceEngine, RolloutWorkflow

if TYPE_CHECKING:
    import httpx

_ARGUMENTS = ("base_url", "api_key", "http_client")


class Agent(Protocol):
    """Plays an episode by chat completions, wherever it makes them from."""

    def run(
        self, data: Any, *, base_url: str, api_key: str, http_client: httpx.AsyncClient
    ) -> Awaitable[float | Mapping[str, float] | None]:
        """Play one episode on *data* and return its reward; None rejects it.

        A mapping has the rewards of some of its calls, by the id of the completion. *base_url* and *api_key*
        are for an OpenAI client, here or in any other program; they work until this returns. *http_client*
        sends through the connections of the loop this runs on; closing it does nothing.
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

    def __repr__(self) -> str:
        return f"AgentWorkflow({short(self._agent)})"

    async def arun_episode(self, engine: InferenceEngine, data: Any) -> dict[str, Any] | None:
        """Return the trajectory of one episode, a row for each conversation; None: the agent rejects it."""
        for module in ("gateway", "clients", "completer"):  # aiohttp's server, and NumPy
            await import_off_loop(f"areal_core._agents.{module}")
        from areal_core._agents.clients import agent_clients
        from areal_core._agents.gateway import Listening, gateway_of

        here = scope.current.get() or Scope(engine)
        gateway = await gateway_of(Listening(self._host, self._port, self._url))
        http_client = (await agent_clients()).plain
        async with gateway.session(here) as (base_url, api_key):
            reward = await self._agent.run(data, base_url=base_url, api_key=api_key, http_client=http_client)
        if reward is None:
            return None
        return here.recording.to_trajectory(reward, discount=self._discount)


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
