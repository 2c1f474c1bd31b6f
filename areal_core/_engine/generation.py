"""One `agenerate`: from the prompt to the last token, over as many attempts and servers as it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from tenacity import RetryCallState

from areal_core import _record
from areal_core._engine.aborts import abort, abort_after_cancellation
from areal_core._engine.attempt import Attempt
from areal_core._engine.backend import Ask, Piece
from areal_core._engine.deadlines import Deadlines
from areal_core._engine.events import Events
from areal_core._engine.following import Following, ShownWeights
from areal_core._engine.limits import Limits
from areal_core._engine.opening import Opening
from areal_core._engine.policy import Moment, Policy
from areal_core._engine.proof import OldWeightsError
from areal_core._engine.resting import Resting
from areal_core._engine.retries import AtOnceError, EmptyAbortError, Patience, did_not_begin, may_try_again
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core._engine.standing import is_servers_fault
from areal_core._engine.tally import Ending, Visit
from areal_core._engine.wire.exchange import StaleConnectionError
from areal_core._unique import unique_id
from areal_core.config import InferenceEngineConfig
from areal_core.errors import (
    ArealError,
    GenerationTimeoutError,
    MalformedReplyError,
    ServerStatusError,
    ServerUnreachableError,
)
from areal_core.types import ModelRequest, ModelResponse


@dataclass(frozen=True, slots=True)
class Parts:
    """What all generations of an engine share."""

    config: InferenceEngineConfig
    router: Router
    opening: Opening
    policy: Policy
    events: Events
    deadlines: Deadlines
    following: Following | None = None
    """Where another engine has control of the servers."""


class Generation:
    """Makes the reply to one request, on the running loop. `leave` has to follow."""

    def __init__(self, parts: Parts, request: ModelRequest) -> None:
        self._config = parts.config
        self._router = parts.router
        self._opening = parts.opening
        self._policy = parts.policy
        self._events = parts.events
        self._following = parts.following
        self._request = request
        self._conversation = request.rid or unique_id()
        self.limits = Limits(parts.deadlines, self._describe)
        self.stage = "about to begin"
        """What it does, or waits for."""
        self._record = _record.current.get()  # of the episode it is for; None outside of one
        self.attempts = 0
        """How often something was sent for it."""
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._versions: list[int] = []
        self._exact = True
        self._segments = 0
        self._finish: str | None = None
        self._first_token_at: float | None = None
        self._last_server = ""
        self.has_failed = False
        """Whether it has raised; who cancels it does not make it fail."""
        self._visit = Visit()
        # Of the attempt under way. The wire id is kept for as long as no server can have begun with it.
        self._wire_id = self._new_wire_id()
        self._sent = Moment(0, 0)
        self._shown: ShownWeights | None = None  # None: what servers have is known here
        self._last_label: int | None = None
        self._pin = self._router.pin(request.rid)
        self._resting = Resting(self._router, self._pin, stays=request.rid is not None)
        self._blamed: set[Server] = set()  # those that one of its attempts counts against

    async def run(self) -> ModelResponse:
        """Return the reply.

        Raises what `RemoteInfEngine.agenerate` does.
        """
        began = time.monotonic()
        with self.limits:
            while self._finish is None:
                failed: list[Exception] = []
                try:
                    await self._attempt()
                except Exception as error:
                    if not may_try_again(error):
                        raise
                    failed.append(error)
                if failed:  # else without tenacity, which takes half as long as an exchange
                    await self._try_again(failed)
        return ModelResponse(
            input_tokens=list(self._request.input_ids),
            output_tokens=self._tokens,
            output_logprobs=self._logprobs,
            output_versions=self._versions,
            versions_exact=self._exact,
            stop_reason=self._finish,
            latency=time.monotonic() - began,
            ttft=None if self._first_token_at is None else self._first_token_at - began,
            segments=self._segments,
        )

    @property
    def is_complete(self) -> bool:
        """Whether its reply is whole."""
        return self._finish is not None

    @property
    def tokens_so_far(self) -> int:
        """How many tokens have come."""
        return len(self._tokens)

    def leave(self) -> None:
        """Hold the conversation at its server no longer, and let the episode's record say that it plays on.

        It is called once, whatever came of the generation.
        """
        self._router.unpin(self._request.rid)
        if self._record is not None:
            self._record.enter(_record.PLAYING)

    async def _try_again(self, failed: list[Exception]) -> None:
        """Make further attempts after the one that *failed*."""

        async def attempt() -> None:
            if failed:
                raise failed.pop()
            await self._attempt()

        patience = Patience(self._config.request_retries, self.limits.left_s, self._resting.asked_s)
        try:
            await patience.retrying(self._about_to_sleep, self._resting.sleep)(attempt)
        except ArealError as error:
            if patience.out_of_time:
                raise GenerationTimeoutError(
                    f"no time is left of request_timeout={self._config.request_timeout:g} s "
                    f"for another attempt: {self._describe()}; {error}"
                ) from error
            raise

    def _about_to_sleep(self, state: RetryCallState) -> None:
        self._enter(f"{self.stage}, then backing off")
        error = state.outcome.exception() if state.outcome is not None else None
        if error is not None:
            self._say_failed(error, state.upcoming_sleep)

    def _say_failed(self, error: BaseException, wait_s: float) -> None:
        self._events.attempt_failed(self._conversation, self._last_server, error, wait_s)

    async def _attempt(self) -> None:
        """Send what is missing to a server once. Raises what went wrong, unless tokens came all the same."""
        server = await self._next_server()
        closings, visit = self._opening.closings, Visit()
        self._visit = visit
        server.tally.begin(visit)
        self._last_server = server.name
        self._enter(f"generating on {server.name}", server.name)
        self.attempts += 1
        try:
            ask = self._next_ask(server)
            prove = None if self._shown is None else self._shown.prove
            await Attempt(server, ask, partial(self._take, server), prove).run()
            visit.ending = "completed"
        except asyncio.CancelledError:  # or out of time, or the engine was stopped
            visit.ending = "cancelled" if self.limits.left_s() > 0 else "failed"
            await abort_after_cancellation(self._router, server, self._wire_id)
            raise
        except Exception as error:
            visit.ending, brought = _ending_by(error), visit.tokens > 0
            await self._recover(server, error, brought)
            self._judge(server, error)
            if not brought or not may_try_again(error):
                raise
            self._resting.asked_s(error)  # with tokens there is no rest, but the next may be elsewhere
            if len(self._tokens) < self._request.gconfig.max_new_tokens:
                self._say_failed(error, 0.0)
        finally:
            self._router.give_back(server, visit)
            if self._record is not None:
                self._record.segment_came(visit.tokens)
        if visit.tokens:
            self._segments += 1
        if self._finish == "abort":
            self._wire_id = self._new_wire_id()
            self._finish = None
            if not visit.tokens and self._opening.closings == closings:
                # Where another has control, it was that one, which in a moment tells of it here.
                kind = EmptyAbortError if self._following is None else AtOnceError
                raise kind(f"{server.name} ended it before the first token")
        if len(self._tokens) >= self._request.gconfig.max_new_tokens and self._finish is None:
            self._finish = "length"

    async def _next_server(self) -> Server:
        while True:
            if not self._opening.is_open:
                self._enter(_record.PAUSED)
                await self._opening.wait()
            self._enter("waiting for a server")
            self._resting.choose()
            server = await self._router.take(self._pin, self._config.setup_timeout)
            if self._opening.is_open:
                return server
            self._router.give_back(server)

    def _next_ask(self, server: Server) -> Ask:
        """Return what to ask *server* for now, and note at which policy version that is."""
        self._shown = None if self._following is None else self._following.shown_by(server)
        self._sent = self._policy.moment() if self._shown is None else self._shown.before
        if self._record is not None:
            self._record.segment_sent(self._sent.version)
        self._last_label = None
        wanted = self._request.gconfig
        return Ask(
            self._wire_id,
            [*self._request.input_ids, *self._tokens] if self._tokens else self._request.input_ids,
            wanted.max_new_tokens - len(self._tokens),
            max(0, wanted.min_new_tokens - len(self._tokens)),
            wanted,
            self._request.extra or {},
            self._config.model,
            self._config.stream_replies or self._request.on_tokens is not None,
        )

    def _judge(self, server: Server, error: Exception) -> None:
        """Count a failed attempt if it is the fault of *server*, and tell when that is avoided for it."""
        if self._visit.tokens or server.why_out is not None or not is_servers_fault(error):
            return  # one that died is out of rotation by now
        if server in self._blamed:
            return  # it may be what is asked
        self._blamed.add(server)
        failed = self._router.note_failure(server)
        if failed:
            self._events.server_is_avoided(server.name, failed, error)

    async def _recover(self, server: Server, error: Exception, brought_tokens: bool) -> None:
        """Take care that nothing of a failed attempt runs on."""
        if isinstance(error, OldWeightsError):
            self._router.take_out(server, str(error))
        elif isinstance(error, ServerUnreachableError) and error.is_shortage and not error.sent:
            return
        elif isinstance(error, ServerUnreachableError) and not error.sent:
            if not isinstance(error, StaleConnectionError):
                self._router.take_out(server, str(error))
            raise AtOnceError(str(error)) from error  # elsewhere, or when a server is back
        elif isinstance(error, ServerStatusError) and not brought_tokens and did_not_begin(error):
            return
        if isinstance(error, ServerStatusError | ServerUnreachableError | MalformedReplyError | AtOnceError):
            await abort(self._router, server, self._wire_id)
            self._wire_id = self._new_wire_id()
        if isinstance(error, StaleConnectionError):
            raise AtOnceError(str(error)) from error

    def _take(self, server: Server, piece: Piece, streamed: bool) -> None:
        if piece.tokens and not self._visit.tokens:
            self._router.note_tokens(server)
        if piece.tokens and streamed and self._first_token_at is None:
            self._first_token_at = time.monotonic()
        self._tokens += piece.tokens
        self._visit.tokens += len(piece.tokens)
        self._logprobs += piece.logprobs
        versions, exact = self._versions_of(piece)
        self._versions += versions
        self._exact = self._exact and (exact or not piece.tokens)
        self._finish = piece.finish
        if self._request.on_tokens is not None and piece.tokens:
            self._request.on_tokens(piece.tokens)

    def _versions_of(self, piece: Piece) -> tuple[Sequence[int], bool]:
        """Return the oldest version that can have made each token of *piece*, and whether it did."""
        shown = self._shown
        by_hand = self._policy.set_by_hand  # whether its servers have been told is not known
        if piece.versions is not None:
            return piece.versions, not by_hand or min(piece.versions, default=0) >= self._sent.version
        count, label = len(piece.tokens), piece.label
        held = shown is None and self._policy.held_since(self._sent)
        if label is None:
            return [self._sent.version if shown is None else shown.oldest] * count, held
        earlier = self._last_label
        if earlier is None:  # while nothing has changed here, a server that says otherwise knows better
            earlier = label if held else self._sent.version
        self._last_label = label
        is_known = not by_hand or label >= self._policy.version
        return [min(earlier, label)] * count, earlier == label and is_known

    def _enter(self, stage: str, server: str | None = None) -> None:
        self.stage = stage
        if self._record is not None:
            self._record.enter(stage, server)

    def _new_wire_id(self) -> str:
        return f"{self._conversation}-{unique_id()}"

    def _describe(self) -> str:
        wanted = self._request.gconfig.max_new_tokens
        return f"{len(self._tokens)} of {wanted} tokens after {self.attempts} attempts, last {self.stage}"


def _ending_by(error: Exception) -> Ending | None:
    """Return how a request is to be counted that raised *error*; None: it never got to the server."""
    if isinstance(error, StaleConnectionError):
        return None
    return "failed" if isinstance(error, ArealError) else "cancelled"  # by who is told the tokens
