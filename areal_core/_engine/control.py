"""What the trainer does to all servers: interrupt them, give them weights, let them go on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence, Set
from contextlib import asynccontextmanager

from areal_core._checks import check_integer, check_text
from areal_core._engine.backend import HttpCall
from areal_core._engine.calls import Answers, Calls
from areal_core._engine.events import Events
from areal_core._engine.insisting import AFTER_CANCELLATION_S as _AFTER_CANCELLATION_S
from areal_core._engine.opening import Opening
from areal_core._engine.policy import Policy, Weights
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core._engine.turn import Turn
from areal_core._engine.updating import Updating
from areal_core.config import InferenceEngineConfig
from areal_core.errors import (
    ControlError,
    EngineStoppedError,
    ServerStatusError,
    ServerUnreachableError,
    WeightUpdateError,
)
from areal_core.workflow_context import get_control_session

_CUT_OFF = "it may be paused: continue_generation was cut off"


class Control:
    """The control calls of one engine. One runs at a time; each goes to the servers in rotation."""

    def __init__(
        self, config: InferenceEngineConfig, router: Router, opening: Opening, policy: Policy, events: Events
    ) -> None:
        self._router = router
        self._opening = opening
        self._policy = policy
        self._events = events
        self._calls = Calls(config, router)
        self._updating = Updating(config, router, policy, self._calls, events)
        self._turn = Turn()
        self._left_closed = False
        """Whether generation is closed since an update failed: the next one that succeeds opens it."""
        self._holders = 0
        self._opens_after_holders = False
        self._stopped = False

    def stop(self) -> None:
        """Begin no more calls, and let none that is under way change the version; any thread may."""
        self._stopped = True

    def _check(self) -> None:
        if self._stopped:
            raise EngineStoppedError("the engine was destroyed")

    async def pause(self) -> None:
        """Interrupt all generations and open none. If one server refuses, all go on. Raises ControlError."""
        async with self._my_turn():
            await self._pause()
            self._left_closed = False

    async def resume(self) -> None:
        """Open generation, and take out of rotation what does not go on. Raises ControlError, open."""
        async with self._my_turn():
            await self._resume()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Pause for the body of this context. The last of several to end continues, if the first paused."""
        async with self._my_turn():
            opens = not self._opening.is_paused or self._left_closed
            await self._pause()
            self._left_closed = False
            self._holders += 1
            self._opens_after_holders = self._opens_after_holders or opens
        try:
            yield
        except WeightUpdateError:
            self._holders -= 1
            self._leave_closed()
            raise
        except GeneratorExit:
            self._holders -= 1
            if not self._turn.is_taken:  # else whose turn it is sees to it
                self._settle_without_calls()
            raise
        except BaseException as error:
            self._holders -= 1
            await (self._release() if isinstance(error, Exception) else self._release_soon())
            raise
        self._holders -= 1
        await self._release()

    async def _release(self) -> None:
        """Continue what nobody holds any more. Raises ControlError."""
        if not self._is_owed:
            return
        try:
            async with self._turn:
                if self._is_owed:
                    await self._resume()
        except asyncio.CancelledError:
            await self._release_soon()
            raise

    async def _release_soon(self) -> None:
        """Do that in a task that was cancelled; if it takes too long, whose turn it is sees to it."""
        if self._is_owed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AFTER_CANCELLATION_S), self._turn:
                    await self._settle()

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        """Wait for the turn, and do at its end what others could not wait for. Raises EngineStoppedError."""
        async with self._turn:
            self._check()
            try:
                yield
            except GeneratorExit:
                self._settle_without_calls()
                raise
            finally:
                if self._is_owed:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_AFTER_CANCELLATION_S):
                            await self._settle()

    @property
    def _is_owed(self) -> bool:
        """Whether generation is to be continued, now that all contexts have ended."""
        return self._opens_after_holders and not self._holders and not self._stopped

    async def _settle(self) -> None:
        if self._is_owed:
            self._left_closed = self._opens_after_holders = False
            await self._reopen(self._router.in_rotation)

    def _settle_without_calls(self) -> None:
        """Do that where no more calls can be made."""
        if self._is_owed:
            self._left_closed = self._opens_after_holders = False
            self._open_without(self._router.in_rotation)

    def _leave_closed(self) -> None:
        """Leave it to the next update to continue."""
        self._left_closed, self._opens_after_holders = self._opens_after_holders, False

    async def abort_all(self) -> None:
        """End every generation; the engine's own go on from the tokens they have. Raises ControlError."""
        async with self._my_turn():
            calls = self._calls
            answers = await calls.to_each(lambda server: calls.insist(server, server.backend.abort_all()))
            calls.drop_failed(answers)
            calls.raise_failed("abort_all_requests", answers)

    async def update_weights(self, path: str, version: int) -> None:
        """Have all servers load *path* as *version*. Raises WeightUpdateError."""
        weights = Weights(check_text("path", path), check_integer("version", version, least=0))
        async with self._my_turn():
            self._updating.refuse_if_one_cannot(weights)
            opens = not self._opening.is_paused or self._left_closed
            if not self._router.in_rotation:
                self._opening.close()
            elif opens:
                await self._pause()
            self._left_closed = opens
            try:
                await self._update(weights)
            except BaseException:
                if opens and self._router.in_rotation:
                    with contextlib.suppress(ControlError):  # the other error tells more
                        await self._resume()
                if self._is_owed and not self._router.in_rotation:
                    self._leave_closed()
                raise
            if opens:
                await self._resume()

    async def _update(self, weights: Weights) -> None:
        began = time.monotonic()
        await self._updating.give_all(weights)
        self._check()
        self._policy.set(weights.version, weights)
        self._events.weights_updated(
            weights.version, weights.path, time.monotonic() - began, len(self._router.in_rotation)
        )

    async def call_all(self, path: str, body: bytes, timeout_s: float) -> dict[str, bytes]:
        """POST *body* to all servers and return their answers by address. Raises ControlError, ValueError."""
        if not check_text("path", path).startswith("/"):  # it would become part of a port, or of a host
            raise ValueError(f"path={path!r} does not begin with '/'; give the path of a URL, whole")
        replies: dict[str, bytes] = {}

        async def call(server: Server) -> None:
            session = await get_control_session()
            replies[server.name] = await server.exchange.call(
                session, HttpCall("POST", path, body), timeout_s
            )

        async with self._my_turn():
            with self._policy.changing():  # weights may be what it is about
                answers = await self._calls.to_each(call)
            self._calls.raise_failed(f"POST {path}", answers)
        return replies

    async def _pause(self) -> None:
        was_open = not self._opening.is_paused
        self._opening.close()
        servers, answers, calls = self._router.in_rotation, Answers(), self._calls
        try:
            await calls.to_each(lambda one: calls.make(one, one.backend.pause()), servers, answers)
            calls.raise_failed("pause_generation", answers)
        except BaseException as error:
            if was_open:
                await self._undo_pause([one for one in servers if _may_be_paused(one, answers)], error)
            raise

    async def _undo_pause(self, servers: Sequence[Server], error: BaseException) -> None:
        if isinstance(error, Exception):
            await self._reopen(servers)
        elif isinstance(error, asyncio.CancelledError):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AFTER_CANCELLATION_S):
                    await self._reopen(servers)
        else:
            self._open_without(servers)

    def _open_without(self, servers: Sequence[Server]) -> None:
        self._calls.take_out(servers, "it may be paused: no call could be made to continue it")
        self._opening.open()

    async def _resume(self) -> None:
        self._left_closed = self._opens_after_holders = False
        answers = await self._reopen(self._router.in_rotation)
        self._calls.raise_failed("continue_generation", answers)

    async def _reopen(self, servers: Sequence[Server]) -> Answers:
        """Have *servers* go on, but for those that do not and leave rotation; then open."""
        answers, there = Answers(), set(self._router.in_rotation)
        try:
            await self._go_on(servers, answers)
        except BaseException:
            self._calls.take_out(self._open(there), _CUT_OFF)
            raise
        await self._go_on(self._open(there), answers)
        return answers

    def _open(self, there: Set[Server]) -> list[Server]:
        """Open; return the servers that came into rotation since *there* were in it: paused, as all were.

        Those that come from now on are not.
        """
        self._opening.open()
        return [one for one in self._router.in_rotation if one not in there]

    async def _go_on(self, servers: Sequence[Server], answers: Answers) -> None:
        calls, theirs = self._calls, Answers()
        try:
            await calls.to_each(lambda one: calls.insist(one, one.backend.resume()), servers, theirs)
            calls.drop_failed(theirs)
        finally:
            calls.take_out([one for one in servers if one not in theirs], _CUT_OFF)
            answers.update(theirs)


def _may_be_paused(server: Server, answers: Answers) -> bool:
    """Return whether a server has to be continued after it was asked to pause."""
    error = answers.get(server)
    if isinstance(error, ServerStatusError):
        return error.status >= 500
    return not isinstance(error, ServerUnreachableError)  # that one has left rotation
