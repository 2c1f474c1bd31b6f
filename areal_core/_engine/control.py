"""What the trainer does to all servers: interrupt them, give them weights, let them go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from areal_core._checks import check_integer, check_text
from areal_core._engine.backend import HttpCall
from areal_core._engine.events import Events
from areal_core._engine.opening import Opening
from areal_core._engine.policy import Policy, Weights
from areal_core._engine.proof import ask_weights
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core._engine.turn import Turn
from areal_core.config import InferenceEngineConfig
from areal_core.errors import (
    ControlError,
    InferenceError,
    MalformedReplyError,
    ServerStatusError,
    ServerUnreachableError,
    WeightUpdateError,
)
from areal_core.workflow_context import get_control_session

UNKNOWN_PATH = (404, 405, 501)
_TRIES = 3
_BETWEEN_TRIES_S = 0.5

_Answers = dict[Server, BaseException | None]


class Control:
    """The control calls of one engine. One runs at a time; each goes to the servers in rotation."""

    def __init__(
        self, config: InferenceEngineConfig, router: Router, opening: Opening, policy: Policy, events: Events
    ) -> None:
        self._config = config
        self._router = router
        self._opening = opening
        self._policy = policy
        self._events = events
        self._turn = Turn()

    async def pause(self) -> None:
        """Interrupt all generations and open none. If one server refuses, all go on. Raises ControlError."""
        async with self._turn:
            await self._pause()

    async def resume(self) -> None:
        """Open generation, and take out of rotation what does not go on. Raises ControlError, open."""
        async with self._turn:
            await self._resume()

    async def abort_all(self) -> None:
        """End every generation; the engine's own go on from the tokens they have. Raises ControlError."""
        async with self._turn:
            answers = await self._each(lambda server: self._insist(server, server.backend.abort_all()))
            self._drop_failed(answers)
            self._raise_failed("abort_all_requests", answers)

    async def update_weights(self, path: str, version: int) -> None:
        """Have all servers load *path* as *version*. Raises WeightUpdateError."""
        check_text("path", path)
        check_integer("version", version, least=0)
        async with self._turn:
            pausing = self._opening.is_open
            if not self._router.in_rotation:
                self._opening.close()
            elif pausing:
                await self._pause()
            try:
                await self._update(Weights(path, version))
            finally:
                if pausing and self._router.in_rotation:
                    await self._resume()

    async def call_all(self, path: str, body: bytes, timeout_s: float) -> dict[str, bytes]:
        """POST *body* to all servers and return their answers by address. Raises ControlError."""
        replies: dict[str, bytes] = {}

        async def call(server: Server) -> None:
            session = await get_control_session()
            replies[server.name] = await server.exchange.call(
                session, HttpCall("POST", path, body), timeout_s
            )

        async with self._turn:
            with self._policy.changing():  # weights may be what it is about
                answers = await self._each(call)
            self._raise_failed(f"POST {path}", answers)
        return replies

    async def _pause(self) -> None:
        was_open = self._opening.is_open
        self._opening.close()
        answers: _Answers = {}
        try:
            answers = await self._each(lambda server: self._call(server, server.backend.pause()))
            self._raise_failed("pause_generation", answers)
        except BaseException:
            if was_open:
                await self._resume_servers([server for server, error in answers.items() if error is None])
                self._opening.open()
            raise

    async def _resume(self) -> None:
        try:
            answers = await self._resume_servers(self._router.in_rotation)
        finally:
            self._opening.open()
        self._raise_failed("continue_generation", answers)

    async def _resume_servers(self, servers: Sequence[Server]) -> _Answers:
        answers = await self._each(lambda server: self._insist(server, server.backend.resume()), servers)
        self._drop_failed(answers)
        return answers

    async def _update(self, weights: Weights) -> None:
        began = time.monotonic()
        previous = self._policy.weights
        with self._policy.changing():
            servers = [one for one in self._router.servers if one.why_out is None or one.awaits_weights]
            try:
                answers = await self._each(
                    lambda server: load(server, weights, self._config.control_timeout), servers
                )
                for server in (one for one, error in answers.items() if error is None):
                    self._router.put_in(server, _always)
                self._raise_failed("update_weights_from_disk", answers, WeightUpdateError)
            except BaseException as error:
                self._events.weights_not_updated(weights.version, error)
                await self._roll_back(servers, previous, error)
                raise
        self._policy.set(weights.version, weights)
        self._events.weights_updated(
            weights.version, weights.path, time.monotonic() - began, len(self._router.in_rotation)
        )

    async def _roll_back(
        self, servers: Sequence[Server], previous: Weights | None, error: BaseException
    ) -> None:
        """Give *servers* the weights that all had, or take them out of rotation."""
        if previous is not None and isinstance(error, Exception):  # a cancelled task makes no more calls
            answers = await self._each(
                lambda server: load(server, previous, self._config.control_timeout), servers
            )
            self._drop_failed(answers)
            return
        for server in servers:
            server.weights_unknown = True
            self._router.take_out(server, f"it may have loaded weights that others did not: {error}")

    async def _each(
        self, act: Callable[[Server], Awaitable[None]], servers: Sequence[Server] | None = None
    ) -> _Answers:
        """Do *act* to *servers* (None: those in rotation) at once; one that is not there leaves rotation."""
        chosen = self._router.in_rotation if servers is None else servers
        results = await asyncio.gather(*map(act, chosen), return_exceptions=True)
        answers: _Answers = dict(zip(chosen, results, strict=True))
        for server, error in answers.items():
            if isinstance(error, ServerUnreachableError):
                self._router.take_out(server, str(error))
            elif error is not None and not isinstance(error, InferenceError):
                raise error
        return answers

    async def _insist(self, server: Server, call: HttpCall | None) -> None:
        for left in reversed(range(_TRIES)):
            try:
                await self._call(server, call)
            except InferenceError as error:
                if not left or isinstance(error, ServerUnreachableError):
                    raise
                await asyncio.sleep(_BETWEEN_TRIES_S)
            else:
                return

    async def _call(self, server: Server, call: HttpCall | None) -> None:
        if call is not None:
            await server.exchange.call(await get_control_session(), call, self._config.control_timeout)

    def _drop_failed(self, answers: _Answers) -> None:
        for server, error in answers.items():
            if error is not None:
                self._router.take_out(server, str(error))

    def _raise_failed(self, what: str, answers: _Answers, kind: type[ControlError] = ControlError) -> None:
        """Raise unless all answered, but for some that are not there while enough of the others are."""
        failed = [error for error in answers.values() if error is not None]
        refused = [error for error in failed if not isinstance(error, ServerUnreachableError)]
        left, least = len(self._router.in_rotation), self._config.min_servers
        if refused or left < least:
            few = f", and {left} are in rotation where min_servers={least}" if left < least else ""
            named: Mapping[str, BaseException | None] = {server.name: e for server, e in answers.items()}
            raise kind(f"{what} failed at {len(failed)} of {len(answers)} servers{few}", named)


async def load(server: Server, weights: Weights, timeout_s: float) -> None:
    """Have one server load *weights*, and see that it has them. Raises InferenceError."""
    calls = server.backend.update_weights(weights.path, weights.version)
    if not calls:
        raise InferenceError(
            f"backend {server.backend.name!r} cannot update weights; "
            "load them in a way of your own, and call set_version()"
        )
    for call in calls:
        await _load(server, call, timeout_s)
    version = await ask_weights(server)
    if version is not None:
        server.tells_version = True
        if version != weights.version:
            raise MalformedReplyError(
                server.name, calls[-1].name, f"it says that it has version {version}, not {weights.version}"
            )
    server.weights = weights.version
    server.weights_unknown = server.awaits_weights = False


def _always() -> bool:
    return True


async def _load(server: Server, call: HttpCall, timeout_s: float) -> None:
    try:
        body = await server.exchange.call(await get_control_session(), call, timeout_s)
    except ServerStatusError as error:
        if not (call.optional and error.status in UNKNOWN_PATH):
            raise
        return
    problem = server.backend.check_update(body)
    if problem is not None:
        raise MalformedReplyError(server.name, call.name, problem)
