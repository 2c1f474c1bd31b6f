"""What the trainer does to all servers: interrupt them, give them weights, let them go on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
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
    EngineStoppedError,
    WeightUpdateError,
)
from areal_core.workflow_context import get_control_session


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
        # What generation is paused for. Where that is nothing any more, whose turn it is continues it.
        self._was_asked = False
        """Whether `pause` asked for it, and `resume` not since."""
        self._holders = 0
        """How many contexts of `paused` have not ended."""
        self._has_failed = False
        """Whether an update failed and left it so: one that succeeds ends that, or a context that begins."""
        self._stopped = False

    def stop(self) -> None:
        """Begin no more calls, and let none that is under way change the version; any thread may."""
        self._stopped = True

    def _check(self) -> None:
        if self._stopped:
            raise EngineStoppedError("the engine was destroyed")

    async def pause(self) -> None:
        """Interrupt all generations and open none. If one server refuses, all go on. Raises ControlError.

        In a context of `paused` it adds nothing: that continues at its end.
        """
        async with self._my_turn():
            await self._pause()
            self._was_asked = self._was_asked or not self._holders

    async def resume(self) -> None:
        """Open generation, and take out of rotation what does not go on. Raises ControlError, open."""
        async with self._my_turn():
            self._was_asked = self._has_failed = False
            await self._resume()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Pause for the body of this context. The last of several to end continues, if the first paused."""
        async with self._my_turn():
            await self._pause()
            self._has_failed = False
            self._holders += 1
        try:
            yield
        except WeightUpdateError:
            self._holders -= 1
            self._has_failed = True
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
        """Whether somebody is to continue generation, though he did not pause it."""
        return self._is_paused_in_vain and not self._stopped

    @property
    def _is_paused_in_vain(self) -> bool:
        return self._opening.is_paused and not (self._was_asked or self._holders or self._has_failed)

    async def _settle(self) -> None:
        if self._is_owed:
            await self._reopen(self._router.in_rotation)

    def _settle_without_calls(self) -> None:
        """Do that where no more calls can be made."""
        if self._is_owed:
            self._reopen_without_calls()

    async def abort_all(self) -> None:
        """End every generation; the engine's own go on from the tokens they have. Raises ControlError."""
        async with self._my_turn():
            calls = self._calls
            answers = await calls.to_each(calls.abort_all)
            calls.drop_failed(answers)
            calls.raise_failed("abort_all_requests", answers)

    async def update_weights(self, path: str, version: int) -> None:
        """Have all servers load *path* as *version*. Raises WeightUpdateError."""
        weights = Weights(check_text("path", path), check_integer("version", version, least=0))
        async with self._my_turn():
            self._updating.refuse_if_one_cannot(weights)
            if not self._opening.is_paused and self._router.in_rotation:
                await self._pause()
            self._opening.close()
            try:
                await self._update(weights)
            except BaseException as error:
                self._has_failed = not self._router.in_rotation
                if self._is_paused_in_vain:
                    await self._reopen_after(error)
                raise
            self._has_failed = False
            if self._is_paused_in_vain:
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
            try:
                with self._policy.changing():  # weights may be what it is about
                    answers = await self._calls.to_each(call)
            finally:
                if self._opening.is_paused:  # and there may be more of them
                    self._opening.called_at = self._policy.moment()
            self._calls.raise_failed(f"POST {path}", answers)
        return replies

    async def _pause(self) -> None:
        was_open, answers = not self._opening.is_paused, Answers()
        self._opening.close()
        try:
            await self._calls.to_each(self._calls.pause, None, answers)
            # An update is about to follow, for which these wait.
            waiting = [one for one in self._router.servers if one.awaits_weights and one.why_out is not None]
            self._calls.raise_failed("pause_generation", answers, may_come=len(waiting))
        except BaseException as error:
            if was_open:
                await self._reopen_after(error)
            raise

    async def _reopen_after(self, error: BaseException) -> None:
        """Open what was closed for what ended with *error*, with as many calls as that leaves time for."""
        if isinstance(error, Exception):
            await self._reopen(self._paused)
        elif isinstance(error, asyncio.CancelledError):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AFTER_CANCELLATION_S):
                    await self._reopen(self._paused)
        else:
            self._reopen_without_calls()

    async def _resume(self) -> None:
        answers = await self._reopen(self._router.in_rotation)
        self._calls.raise_failed("continue_generation", answers)

    async def _reopen(self, servers: Sequence[Server]) -> Answers:
        """Have *servers* go on, but for those that do not and leave rotation; then open."""
        try:
            answers = await self._go_on(servers)
            self._opening.open()
            # Who came into rotation meanwhile is paused, as all were; who comes from now on is not.
            answers |= await self._go_on(self._paused)
        except BaseException:
            self._reopen_without_calls()
            raise
        return answers

    async def _go_on(self, servers: Sequence[Server]) -> Answers:
        answers = await self._calls.to_each(self._calls.resume, servers)
        self._calls.drop_failed(answers)
        return answers

    def _reopen_without_calls(self) -> None:
        """Open to those alone that are known to go on."""
        self._opening.open()
        self._calls.take_out(self._paused, "it may be paused: no call could be made to continue it")

    @property
    def _paused(self) -> Sequence[Server]:
        """Those in rotation that may be paused."""
        return [server for server in self._router.in_rotation if server.may_be_paused]
