"""Calls to many servers at once, and what follows from their answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

from areal_core._engine.cut import Cut
from areal_core._engine.insisting import insist
from areal_core._engine.loading import pause, resume
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core.config import InferenceEngineConfig
from areal_core.errors import ControlError, InferenceError, ServerUnreachableError
from areal_core.workflow_context import get_control_session

_BETWEEN_TRIES_S = 0.5, 0.5

Answers = dict[Server, BaseException | None]
"""What became of a call at each server; None: it succeeded."""


class Calls:
    """Control calls of one engine."""

    def __init__(self, config: InferenceEngineConfig, router: Router) -> None:
        self._config = config
        self._router = router

    async def to_each(
        self,
        act: Callable[[Server], Awaitable[None]],
        servers: Sequence[Server] | None = None,
        answers: Answers | None = None,
    ) -> Answers:
        """Do *act* to *servers* (None: those in rotation) at once; one that is not there leaves rotation.

        *answers* has what there is of them also when this is cancelled.
        """
        chosen = self._router.in_rotation if servers is None else servers
        found = Answers() if answers is None else answers

        async def one(server: Server) -> None:
            try:
                await act(server)
            except InferenceError as error:
                found[server] = error
                if not _is_there(error):
                    self._router.take_out(server, str(error))
                    self._router.cut(server, str(error))
            else:
                found[server] = None

        tasks = [asyncio.create_task(one(server)) for server in chosen]
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        except GeneratorExit:  # nobody would see what they did after that
            for task in tasks:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    task.cancel()
            raise
        for result in results:
            if result is not None:
                raise result
        return found

    async def pause(self, server: Server) -> None:
        """Have *server* pause. Raises InferenceError."""
        with Cut(server):  # who falls silent meanwhile must not keep the others waiting
            await pause(server, self._config.control_timeout)
        if server.why_out is not None:  # since before it was known that it may be paused
            self._router.cut(server, server.why_out)

    async def resume(self, server: Server) -> None:
        """Have *server* go on, which is tried a few times. Raises InferenceError."""
        await insist(_BETWEEN_TRIES_S, _is_there, self._resume, server)

    async def abort_all(self, server: Server) -> None:
        """Have *server* end all generations, which is tried a few times. Raises InferenceError."""
        await insist(_BETWEEN_TRIES_S, _is_there, self._abort_all, server)

    async def _resume(self, server: Server) -> None:
        with Cut(server):
            await resume(server, self._config.control_timeout)

    async def _abort_all(self, server: Server) -> None:
        call = server.backend.abort_all()
        if call is not None:
            with Cut(server):
                await server.exchange.call(await get_control_session(), call, self._config.control_timeout)

    def take_out(self, servers: Sequence[Server], why: str) -> None:
        """Take *servers* out of rotation."""
        for server in servers:
            self._router.take_out(server, why)

    def drop_failed(self, answers: Answers) -> None:
        """Take out of rotation who failed."""
        for server, error in answers.items():
            if error is not None:
                self._router.take_out(server, str(error))

    def raise_failed(
        self,
        what: str,
        answers: Answers,
        kind: type[ControlError] = ControlError,
        but: Sequence[Server] = (),
        may_come: int = 0,
    ) -> None:
        """Raise unless all answered, but for some that are not there while enough of the others are.

        Those in *but* need not have; *may_come* count as if they were there.
        """
        failed = [error for server, error in answers.items() if error is not None]
        refused = [
            error
            for server, error in answers.items()
            if not (error is None or server in but) and _is_there(error)
        ]
        left, least = len(self._router.in_rotation) + may_come, self._config.min_servers
        if refused or left < least:
            few = f", and {left} are in rotation where min_servers={least}" if left < least else ""
            named: Mapping[str, BaseException | None] = {server.name: e for server, e in answers.items()}
            raise kind(f"{what} failed at {len(failed)} of {len(answers)} servers{few}", named)


def _is_there(error: BaseException) -> bool:
    return not isinstance(error, ServerUnreachableError) or error.is_shortage
