"""Give weights to all servers, or to none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from areal_core._engine.calls import Answers, Calls
from areal_core._engine.cut import Cut
from areal_core._engine.events import Events, told
from areal_core._engine.loading import cannot_update, load, pause_or_resume
from areal_core._engine.policy import Policy, Weights
from areal_core._engine.recovery import PROBE_TIMEOUT_S
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core.config import InferenceEngineConfig
from areal_core.errors import ServerUnreachableError, WeightUpdateError

_CALL = "update_weights_from_disk"


class Updating:
    """Weight updates of one engine. They change no version: who asks for one does when it is over."""

    def __init__(
        self, config: InferenceEngineConfig, router: Router, policy: Policy, calls: Calls, events: Events
    ) -> None:
        self._config = config
        self._router = router
        self._policy = policy
        self._calls = calls
        self._events = events

    def refuse_if_one_cannot(self, weights: Weights) -> None:
        """Raise WeightUpdateError, before anything has happened, where a backend has no call for it."""
        answers: Answers = {
            one: cannot_update(one)
            for one in self._router.in_rotation
            if not one.backend.update_weights(weights.path, weights.version)
        }
        if answers:
            self._calls.raise_failed(_CALL, answers, WeightUpdateError)

    async def give_all(self, weights: Weights) -> None:
        """Have all load *weights*, those too that wait for some to come into rotation.

        When one in rotation fails, all get what they had before, or leave. Raises WeightUpdateError.
        """
        previous = None if self._policy.set_by_hand else self._policy.weights
        with self._policy.changing():
            in_rotation = self._router.in_rotation
            waiting = [one for one in self._router.servers if one.awaits_weights and one not in in_rotation]
            servers, answers = [*in_rotation, *waiting], Answers()
            loaded_at: dict[Server, int] = {}  # in departures: one that left later may be another process

            async def give(server: Server) -> None:
                await self._give(server, weights)
                loaded_at[server] = server.departures

            try:
                await self._calls.to_each(give, servers, answers)
                for server in (one for one, error in answers.items() if error is None):
                    self._router.put_in(server, partial(_is_the_same, server, loaded_at[server]))
                self._see_who_stays_out(waiting, answers)
                self._calls.raise_failed(_CALL, answers, WeightUpdateError, but=waiting)
            except BaseException as error:
                self._events.weights_not_updated(weights.version, error)
                await self._roll_back(servers, previous, error)
                raise

    async def _give(self, server: Server, weights: Weights) -> None:
        if server.why_out is not None:
            await _pause_one_that_is_out(server)
        async with server.loading:
            with Cut(server, when_removed=True):
                await load(server, weights, self._config.control_timeout)

    async def _roll_back(
        self, servers: Sequence[Server], previous: Weights | None, error: BaseException
    ) -> None:
        """Give *servers* the weights that all had, or take them out of rotation."""
        answers = Answers()
        try:
            if previous is not None and isinstance(error, Exception):  # a cancelled task makes no more calls
                await self._calls.to_each(lambda server: self._give(server, previous), servers, answers)
        finally:
            lost = [one for one in servers if one not in answers or answers[one] is not None]
            for server in lost:
                server.weights_unknown = server.awaits_weights = True
            self._calls.take_out(lost, f"it may have loaded weights that others did not: {told(error)}")

    def _see_who_stays_out(self, waiting: Sequence[Server], answers: Answers) -> None:
        """Tell of those that were out of rotation and are still: others need not do without an update."""
        for server in waiting:
            error = answers[server]
            if error is not None:
                self._router.explain(server, str(error))
                self._events.server_stays_out(server.name, str(error))


async def _pause_one_that_is_out(server: Server) -> None:
    """Have it pause, and give up soon: one that is out may have gone since the prober asked it last."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):  # also while another call to it hangs
            await pause_or_resume(server, False, PROBE_TIMEOUT_S)
    except TimeoutError:
        message = f"{server.name} was told to pause, and was silent for {PROBE_TIMEOUT_S:g} s"
        raise ServerUnreachableError(message, server=server.name, sent=True) from None


def _is_the_same(server: Server, departures: int) -> bool:
    return server.departures == departures
