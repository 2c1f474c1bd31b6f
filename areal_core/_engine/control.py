"""What the trainer does to all servers: interrupt them, give them weights, let them go on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from areal_core._checks import check_integer, check_text
from areal_core._engine.backend import HttpCall
from areal_core._engine.cut import Cut
from areal_core._engine.events import Events
from areal_core._engine.loading import cannot_update, load, pause_or_resume, update_calls
from areal_core._engine.opening import Opening
from areal_core._engine.policy import Policy, Weights
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core._engine.turn import Turn
from areal_core.config import InferenceEngineConfig
from areal_core.errors import (
    ControlError,
    EngineStoppedError,
    InferenceError,
    ServerStatusError,
    ServerUnreachableError,
    WeightUpdateError,
)
from areal_core.workflow_context import get_control_session

_TRIES = 3
_BETWEEN_TRIES_S = 0.5

_AFTER_CANCELLATION_S = 2.0  # less than the grace of a task that was cancelled

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
        async with self._turn:
            self._check()
            await self._pause()
            self._left_closed = False

    async def resume(self) -> None:
        """Open generation, and take out of rotation what does not go on. Raises ControlError, open."""
        async with self._turn:
            self._check()
            await self._resume()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Pause for the body of this context. The last of several to end continues, if the first paused."""
        async with self._turn:
            self._check()
            opens = self._opening.is_open or self._left_closed
            await self._pause()
            self._left_closed = False
            self._holders += 1
            self._opens_after_holders = self._opens_after_holders or opens
        try:
            yield
        except WeightUpdateError:
            self._holders -= 1
            self._left_closed, self._opens_after_holders = self._opens_after_holders, False
            raise
        except BaseException:
            await self._release()
            raise
        await self._release()

    async def _release(self) -> None:
        self._holders -= 1
        async with self._turn:
            if self._opens_after_holders and not self._holders and not self._stopped:
                await self._resume()

    async def abort_all(self) -> None:
        """End every generation; the engine's own go on from the tokens they have. Raises ControlError."""
        async with self._turn:
            self._check()
            answers = await self._each(lambda server: self._insist(server, server.backend.abort_all()))
            self._drop_failed(answers)
            self._raise_failed("abort_all_requests", answers)

    async def update_weights(self, path: str, version: int) -> None:
        """Have all servers load *path* as *version*. Raises WeightUpdateError."""
        check_text("path", path)
        check_integer("version", version, least=0)
        async with self._turn:
            self._check()
            self._refuse_if_one_cannot(path, version)
            opens = self._opening.is_open or self._left_closed
            if not self._router.in_rotation:
                self._opening.close()
            elif opens:
                await self._pause()
            self._left_closed = opens
            try:
                await self._update(Weights(path, version))
            except BaseException:
                if opens and self._router.in_rotation:
                    with contextlib.suppress(ControlError):  # the other error tells more
                        await self._resume()
                raise
            if opens:
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
            self._check()
            with self._policy.changing():  # weights may be what it is about
                answers = await self._each(call)
            self._raise_failed(f"POST {path}", answers)
        return replies

    async def _pause(self) -> None:
        was_open = self._opening.is_open
        self._opening.close()
        servers, answers = self._router.in_rotation, _Answers()
        try:
            await self._each(lambda server: self._call(server, server.backend.pause()), servers, answers)
            self._raise_failed("pause_generation", answers)
        except BaseException as error:
            if was_open:
                await self._undo_pause([one for one in servers if _may_be_paused(one, answers)], error)
            raise

    async def _undo_pause(self, servers: Sequence[Server], error: BaseException) -> None:
        if isinstance(error, Exception):
            await self._reopen(servers)
            return
        try:
            if isinstance(error, asyncio.CancelledError):
                async with asyncio.timeout(_AFTER_CANCELLATION_S):
                    await self._reopen(servers)
        except TimeoutError:
            pass
        finally:
            if not self._opening.is_open:  # no more calls can be made in this task
                self._take_out(servers, "it may be paused: pause_generation was cut off")
                self._opening.open()

    async def _resume(self) -> None:
        self._left_closed = self._opens_after_holders = False
        answers = await self._reopen(self._router.in_rotation)
        self._raise_failed("continue_generation", answers)

    async def _reopen(self, servers: Sequence[Server]) -> _Answers:
        """Have *servers* go on, but for those that do not and leave rotation; then open."""
        answers = _Answers()
        try:
            await self._each(lambda server: self._insist(server, server.backend.resume()), servers, answers)
            self._drop_failed(answers)
        finally:
            unanswered = [one for one in servers if one not in answers]
            self._take_out(unanswered, "it may be paused: continue_generation was cut off")
            self._opening.open()
        return answers

    async def _update(self, weights: Weights) -> None:
        began = time.monotonic()
        previous = None if self._policy.set_by_hand else self._policy.weights
        with self._policy.changing():
            in_rotation = self._router.in_rotation
            waiting = [one for one in self._router.servers if one.awaits_weights and one not in in_rotation]
            servers, answers = [*in_rotation, *waiting], _Answers()
            try:
                await self._each(lambda server: self._give(server, weights), servers, answers)
                for server in (one for one, error in answers.items() if error is None):
                    self._router.put_in(server, _always)
                self._see_who_stays_out(waiting, answers)
                self._raise_failed("update_weights_from_disk", answers, WeightUpdateError, but=waiting)
            except BaseException as error:
                self._events.weights_not_updated(weights.version, error)
                await self._roll_back(servers, previous, error)
                raise
        self._check()
        self._policy.set(weights.version, weights)
        self._events.weights_updated(
            weights.version, weights.path, time.monotonic() - began, len(self._router.in_rotation)
        )

    async def _give(self, server: Server, weights: Weights) -> None:
        if server.why_out is not None:
            await pause_or_resume(server, False, self._config.control_timeout)
        async with server.loading, Cut(server, when_removed=True):
            await load(server, weights, self._config.control_timeout)

    async def _roll_back(
        self, servers: Sequence[Server], previous: Weights | None, error: BaseException
    ) -> None:
        """Give *servers* the weights that all had, or take them out of rotation."""
        lost = servers
        if previous is not None and isinstance(error, Exception):  # a cancelled task makes no more calls
            answers = await self._each(lambda server: self._give(server, previous), servers)
            lost = [one for one, failure in answers.items() if failure is not None]
        for server in lost:
            server.weights_unknown = server.awaits_weights = True
        self._take_out(lost, f"it may have loaded weights that others did not: {error}")

    async def _each(
        self,
        act: Callable[[Server], Awaitable[None]],
        servers: Sequence[Server] | None = None,
        answers: _Answers | None = None,
    ) -> _Answers:
        """Do *act* to *servers* (None: those in rotation) at once; one that is not there leaves rotation.

        *answers* has what there is of them also when this is cancelled.
        """
        chosen = self._router.in_rotation if servers is None else servers
        found = _Answers() if answers is None else answers

        async def one(server: Server) -> None:
            try:
                await act(server)
            except InferenceError as error:
                found[server] = error
                if isinstance(error, ServerUnreachableError):
                    self._router.take_out(server, str(error))
                    self._router.cut(server, str(error))
            else:
                found[server] = None

        for result in await asyncio.gather(*map(one, chosen), return_exceptions=True):
            if result is not None:
                raise result
        return found

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

    def _refuse_if_one_cannot(self, path: str, version: int) -> None:
        """Raise before anything has happened where a backend has no call for it."""
        answers: _Answers = {
            one: cannot_update(one)
            for one in self._router.in_rotation
            if not update_calls(one, path, version)
        }
        if answers:
            self._raise_failed("update_weights_from_disk", answers, WeightUpdateError)

    def _see_who_stays_out(self, waiting: Sequence[Server], answers: _Answers) -> None:
        """Tell of those that were out of rotation and are still: others need not do without an update."""
        for server in waiting:
            error = answers[server]
            if error is not None:
                self._router.explain(server, str(error))
                self._events.server_stays_out(server.name, str(error))

    async def _call(self, server: Server, call: HttpCall | None) -> None:
        if call is not None:
            async with Cut(server):  # who falls silent meanwhile must not keep the others waiting
                await server.exchange.call(await get_control_session(), call, self._config.control_timeout)

    def _drop_failed(self, answers: _Answers) -> None:
        for server, error in answers.items():
            if error is not None:
                self._router.take_out(server, str(error))

    def _take_out(self, servers: Sequence[Server], why: str) -> None:
        for server in servers:
            self._router.take_out(server, why)

    def _raise_failed(
        self,
        what: str,
        answers: _Answers,
        kind: type[ControlError] = ControlError,
        but: Sequence[Server] = (),
    ) -> None:
        """Raise unless all answered, but for some that are not there while enough of the others are.

        Those in *but* need not have.
        """
        failed = [error for server, error in answers.items() if error is not None]
        refused = [
            error
            for server, error in answers.items()
            if not (error is None or server in but or isinstance(error, ServerUnreachableError))
        ]
        left, least = len(self._router.in_rotation), self._config.min_servers
        if refused or left < least:
            few = f", and {left} are in rotation where min_servers={least}" if left < least else ""
            named: Mapping[str, BaseException | None] = {server.name: e for server, e in answers.items()}
            raise kind(f"{what} failed at {len(failed)} of {len(answers)} servers{few}", named)


def _may_be_paused(server: Server, answers: _Answers) -> bool:
    """Return whether a server has to be continued after it was asked to pause."""
    error = answers.get(server)
    if isinstance(error, ServerStatusError):
        return error.status >= 500
    return not isinstance(error, ServerUnreachableError)  # that one has left rotation


def _always() -> bool:
    return True
