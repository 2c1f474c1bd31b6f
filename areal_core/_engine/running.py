"""An engine from `initialize` to `destroy`: the parts, wired together."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from areal_core._engine.backend import Backend
from areal_core._engine.control import Control
from areal_core._engine.deadlines import Deadlines
from areal_core._engine.done import Done
from areal_core._engine.events import Events
from areal_core._engine.following import FollowersRecovery, Following
from areal_core._engine.generation import Generation, Parts
from areal_core._engine.lookout import Lookout
from areal_core._engine.opening import Opening
from areal_core._engine.policy import Policy
from areal_core._engine.prober import Prober
from areal_core._engine.recovery import Recovery
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core._engine.stats import EngineStats
from areal_core._engine.turn import Turn
from areal_core._engine.waking import Bell, wake
from areal_core._engine.wire.address import Address
from areal_core._engine.wire.decoding import encode, json_or_text
from areal_core._engine.wire.exchange import Exchange
from areal_core.config import InferenceEngineConfig
from areal_core.errors import EngineStoppedError, ServerUnreachableError
from areal_core.types import ModelRequest

_ADDRESSES_VARIABLE = "AREAL_LLM_SERVER_ADDRS"
_PINS_PER_ROLLOUT = 8
_FEWEST_PINS = 4096
_MOST_REMOVED = 1000
_DESTROYED = "the engine was destroyed"


class Running:
    """One life of an engine. It does not know the engine.

    *opening* is its own; *follows*: another engine has control of the servers.
    """

    def __init__(
        self,
        config: InferenceEngineConfig,
        backend: Backend,
        policy: Policy,
        opening: Opening,
        events: Events,
        follows: bool,
    ) -> None:
        self._config = config
        self._backend = backend
        self._events = events
        self.opening = opening
        most_pins = max(_FEWEST_PINS, _PINS_PER_ROLLOUT * config.concurrency)
        told = self._on_out, self._on_in, self._tell_of_change
        self.router = Router(config.max_inflight_per_server, most_pins, *told)
        self.control = Control(config, self.router, self.opening, policy, events)
        deadlines = Deadlines(config.request_timeout, self.opening)
        self._following = Following(policy) if follows else None
        self._parts = Parts(config, self.router, self.opening, policy, events, deadlines, self._following)
        self._bell = Bell()
        self._policy = policy
        self.generations: set[Generation] = set()
        self._done = Done()
        self.lookout = Lookout(lambda: self._new_prober().run(), self._on_gap, events)
        self._stopped = False
        self._change: asyncio.Future[None] | None = None  # what `set_up` waits for
        self._removed: dict[Address, Server] = {}  # one that is added again may have attempts to abort
        self.is_set_up = False
        """Whether `set_up` has succeeded."""

    # -- servers -----------------------------------------------------------------------------------

    async def set_up(self, addr: str | Iterable[str] | None) -> None:
        """Wait until all servers are in rotation, or until ``setup_timeout`` at least ``min_servers``.

        Those that wait for an update, as an earlier one failed that may have changed their weights, count.

        Raises ServerUnreachableError, EngineStoppedError, ValueError.
        """
        for one in _addresses(addr):
            self.router.add(self._make_server(one))
        config = self._config
        prober = asyncio.create_task(self._new_prober(at_first=True).run())
        try:
            deadline = time.monotonic() + config.setup_timeout
            while await self._changes_before(deadline):
                pass
            if not self._stopped:
                self._raise_if_too_few()
        finally:
            prober.cancel()
            await asyncio.wait((prober,))
        if self._stopped:
            raise EngineStoppedError(_DESTROYED)
        self.is_set_up = True

    async def _changes_before(self, deadline: float) -> bool:
        """Wait until a server comes into rotation; False when there is nothing to wait for, or no time."""
        self._change = asyncio.get_running_loop().create_future()  # before looking: none goes unnoticed
        if self._stopped or all(one.why_out is None or _is_doubted(one) for one in self.router.servers):
            return False
        done, _ = await asyncio.wait((self._change,), timeout=max(0.0, deadline - time.monotonic()))
        return bool(done)

    def _raise_if_too_few(self) -> None:
        left, config = len(self.router.in_rotation), self._config
        if left + sum(map(_is_doubted, self.router.servers)) < config.min_servers:
            out = [server for server in self.router.servers if server.why_out is not None]
            why = "; ".join(f"{server.name} is out: {server.why_out}" for server in out)
            raise ServerUnreachableError(
                f"{left} servers were ready within setup_timeout={config.setup_timeout:g} s, "
                f"where min_servers={config.min_servers} ({why})"
            )

    def add_server(self, addr: str) -> None:
        """Take one more server in. Raises ValueError."""
        server = self._make_server(Address.parse(addr))
        self.router.add(server)
        before = self._removed.pop(server.exchange.address, None)
        if before is not None:
            server.unaborted = before.unaborted  # which may still grow

    def remove_server(self, addr: str) -> None:
        """Use a server no more. Raises ValueError."""
        address = Address.parse(addr)
        for server in self.router.servers:
            if server.exchange.address == address:
                self.router.remove(server)
                self._note_doubt(server)
                self._removed[address] = server
                while len(self._removed) > _MOST_REMOVED:
                    del self._removed[next(iter(self._removed))]
                return
        raise ValueError(f"{address.name} is none of the servers")

    def _make_server(self, address: Address) -> Server:
        keys = self._config.api_key
        if isinstance(keys, Mapping):
            key = {Address.parse(addr): key for addr, key in keys.items()}.get(address)
        else:
            key = keys
        server = Server(Exchange(address, key, self._config.max_reply_bytes), self._backend)
        server.weights_unknown = address in self._policy.doubted
        return server

    def _note_doubt(self, server: Server) -> None:
        """Remember, for when its address comes again, whether it may have any weights."""
        doubted, address = self._policy.doubted, server.exchange.address
        (doubted.add if server.weights_unknown else doubted.discard)(address)

    # -- work --------------------------------------------------------------------------------------

    def begin(self, request: ModelRequest) -> Generation:
        """Take on what makes the reply to *request*; `end` has to follow. Raises EngineStoppedError."""
        generation = Generation(self._parts, request)
        try:
            self.lookout.begin_use(generation.limits.loop)
        except BaseException:
            generation.leave()
            raise
        self.generations.add(generation)
        if self._stopped:  # a moment ago, and did not see it
            self.end(generation)
            raise EngineStoppedError(_DESTROYED)
        return generation

    def end(self, generation: Generation) -> None:
        """Know no more of *generation*, whatever came of it."""
        self.generations.discard(generation)
        self._done.count(generation)
        self.lookout.end_use(generation.limits.loop)
        generation.leave()

    def stats(self) -> EngineStats:
        """Return what is going on, and what was done so far; from any thread."""
        running, done = list(self.generations), self._done
        return EngineStats(
            running=len(running),
            ended=done.ended,
            failed=done.failed,
            cancelled=done.cancelled,
            attempts=done.attempts,
            tokens=done.tokens + sum(one.tokens_so_far for one in running),
            is_paused=not self.opening.is_open,
            waiting=self.router.waiting,
            servers=tuple(map(self.router.stats_of, self.router.servers)),
        )

    async def call_all(self, path: str, json: Any, timeout_s: float | None) -> dict[str, Any]:
        """POST *json* to the servers in rotation; return their answers by address. Raises ControlError."""
        body = encode({} if json is None else json)
        replies = await self.control.call_all(path, body, timeout_s or self._config.control_timeout)
        return {server: json_or_text(reply) for server, reply in replies.items()}

    def version_was_set(self) -> None:
        """Look at the servers at once: they may have what was told, or not."""
        if self._following is not None:
            self._bell.ring()

    def stop(self) -> None:
        """End every generation, and the prober."""
        self._stopped = True
        self._tell_of_change()
        self.lookout.stop()
        self.control.stop()
        for server in self.router.servers:
            self._note_doubt(server)
        for generation in list(self.generations):
            generation.limits.stop(_DESTROYED)

    def _new_prober(self, at_first: bool = False) -> Prober:
        parts = self._config, self.router, self.opening, self._policy
        if self._following is None:
            recovery = Recovery(*parts, at_first)
        else:
            recovery = FollowersRecovery(*parts, self._following, at_first)
        return Prober(self._config, self.router, recovery, self._events, self._bell)

    def _on_gap(self) -> None:
        """Begin to look after servers again, where nobody did."""
        self.router.renew_patience()
        for server in self.router.servers:
            if server.why_out is not None:  # a loop that stopped may keep the turns that it had
                server.loading, server.telling = Turn(), Turn()

    def _on_out(self, server: Server) -> None:
        self._events.server_out(server.name, server.why_out or "")

    def _on_in(self, server: Server) -> None:
        version = self._policy.version if server.weights is None else server.weights
        self._events.server_in(server.name, version)
        self._tell_of_change()

    def _tell_of_change(self) -> None:
        if self._change is not None:
            wake(self._change)


def _is_doubted(server: Server) -> bool:
    """Return whether *server* is well, and only an update can tell which weights it has: one has failed."""
    return server.awaits_weights and server.weights_unknown and server.why_out is not None


def _addresses(addr: str | Iterable[str] | None) -> list[Address]:
    if addr is None:
        addr = os.environ.get(_ADDRESSES_VARIABLE, "").split(",")
        addr = [one.strip() for one in addr if one.strip()]
        if not addr:
            raise ValueError(f"addr=None, and {_ADDRESSES_VARIABLE} is not set; give a server's address")
    found = [Address.parse(one) for one in ([addr] if isinstance(addr, str) else addr)]
    if not found:
        raise ValueError("addr is empty; give at least one server's address")
    return found
