"""Bring a server into rotation: healthy, with the current weights, paused if all are."""

from __future__ import annotations

from areal_core._engine.aborts import abort_leftovers
from areal_core._engine.loading import load, pause_or_resume
from areal_core._engine.opening import Opening
from areal_core._engine.policy import Policy, Weights
from areal_core._engine.proof import ask_weights, is_passing
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core.config import InferenceEngineConfig
from areal_core.errors import InferenceError, ServerStatusError, ServerUnreachableError
from areal_core.workflow_context import get_control_session

PROBE_TIMEOUT_S = 5.0


class StaysOutError(InferenceError):
    """A server is well, and has weights that nobody here can tell or replace."""


class AwaitsWeightsError(StaysOutError):
    """A server is well, and is about to be given the weights by another engine."""


class NotNowError(InferenceError):
    """The weights are being updated: what a server should have is not known yet."""


class Recovery:
    """How servers come into rotation: at first, after they were added, and when they return.

    *at_first* is for those that are there when it all begins: if the version was set by hand, they are
    believed to have it unless they say otherwise.
    """

    def __init__(
        self,
        config: InferenceEngineConfig,
        router: Router,
        opening: Opening,
        policy: Policy,
        at_first: bool = False,
    ) -> None:
        self._config = config
        self._router = router
        self._opening = opening
        self._policy = policy
        self._at_first = at_first

    async def bring_in(self, server: Server) -> None:
        """Put *server* into rotation. Raises InferenceError when it is not ready for it."""
        try:
            await probe(server, PROBE_TIMEOUT_S)
            await self._choose_variant(server)
            await abort_leftovers(server)
            while server.why_out is not None and not server.removed:
                await self._put_in(server)
        except ServerUnreachableError as error:
            if not error.is_shortage:
                server.awaits_weights = False  # no update is to wait for one that is not there
            raise

    async def why_lost(self, server: Server) -> str | None:
        """Return why a server in rotation, which is well, is not to be used; None: it is."""
        return None

    async def _put_in(self, server: Server) -> None:
        """Give a healthy server what it has to have and put it into rotation, unless that has changed."""
        opening = self._opening
        moment, closings, is_paused = self._policy.moment(), opening.closings, opening.is_paused
        async with server.loading:
            if self._is_changing or self._policy.moment() != moment:
                raise NotNowError("it waits until it is known which weights the others have")
            await self._give_weights(server)
        # One that was not restarted, or whose trainer was, may be either.
        await pause_or_resume(server, not is_paused, self._config.control_timeout)

        def still_right() -> bool:
            same_gate = opening.closings == closings and opening.is_paused == is_paused
            return same_gate and self._policy.moment() == moment and not self._is_changing

        self._router.put_in(server, still_right)

    @property
    def _is_changing(self) -> bool:
        called_at = self._opening.called_at
        return self._policy.is_changing or (called_at is not None and self._policy.held_since(called_at))

    async def _give_weights(self, server: Server) -> None:
        weights, expected = self._policy.weights, self._policy.version
        if self._policy.set_by_hand or (weights is None and server.weights_unknown):
            version = await ask_weights(server)
            is_believed = self._at_first and version is None and not server.weights_unknown
            if version == expected:
                server.weights_unknown = False
            elif not is_believed:
                server.awaits_weights = True
                raise StaysOutError(
                    f"nobody here has the weights of version {expected} for {server.name}; "
                    "it stays out until the next update"
                )
            server.weights = expected
        elif weights is not None:
            if server.weights_unknown or await ask_weights(server) != weights.version:
                await self._load(server, weights)
            server.weights = weights.version

    async def _load(self, server: Server, weights: Weights) -> None:
        # What still runs there would get tokens of these weights under the label of the old ones.
        await pause_or_resume(server, False, self._config.control_timeout)
        try:
            await load(server, weights, self._config.control_timeout)
        except ServerUnreachableError:
            raise
        except InferenceError as error:
            raise StaysOutError(f"it does not take the weights {weights.path}: {error}") from error

    async def _choose_variant(self, server: Server) -> None:
        call = server.dialect.probe()
        if call is None:
            return
        try:
            await server.exchange.call(await get_control_session(), call, self._config.control_timeout)
            status = 200
        except ServerStatusError as error:
            if is_passing(error):
                raise
            status = error.status
        server.backend = server.dialect.variant(status)


async def probe(server: Server, timeout_s: float) -> None:
    """Return if *server* says within *timeout_s* seconds that it is well. Raises InferenceError."""
    await server.exchange.call(await get_control_session(), server.backend.health(), timeout_s)
