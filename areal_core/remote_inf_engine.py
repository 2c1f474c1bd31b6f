"""Tokens from inference servers, each with the policy version that made it.

::

    engine = RemoteInfEngine(InferenceEngineConfig(), backend="sglang")
    engine.initialize(["127.0.0.1:30000", "127.0.0.1:30001"])
    reply = await engine.agenerate(ModelRequest(input_ids=[1, 2, 3]))         # in a workflow
    runner.run(engine.update_weights_from_disk, "checkpoint-4", 4)            # in the trainer

See the package ``_engine`` for how it works.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import msgspec

from areal_core import _process
from areal_core._checks import check_seconds
from areal_core._engine.address import Address
from areal_core._engine.backend import Backend
from areal_core._engine.backends import backend_named
from areal_core._engine.control import Control
from areal_core._engine.events import Events
from areal_core._engine.exchange import Exchange
from areal_core._engine.generation import Generation, Parts
from areal_core._engine.opening import Opening
from areal_core._engine.policy import Policy
from areal_core._engine.prober import Prober
from areal_core._engine.recovery import Recovery
from areal_core._engine.router import Router
from areal_core._engine.server import Server
from areal_core.config import InferenceEngineConfig
from areal_core.errors import EngineStoppedError, ServerUnreachableError
from areal_core.loop_cleanup import register_loop_cleanup, unregister_loop_cleanup
from areal_core.types import ModelRequest, ModelResponse

__all__ = ["RemoteInfEngine"]

_ADDRESSES_VARIABLE = "AREAL_LLM_SERVER_ADDRS"
_PINS_PER_ROLLOUT = 8
_FEWEST_PINS = 4096


class RemoteInfEngine:
    """Asks inference servers for tokens.

    *backend* is their dialect: ``"sglang"``, ``"vllm"``, ``"openai"``, or a `Backend` object of your own.
    Coroutines of several loops may use one engine at once, and any thread its plain methods.

    Raises ValueError for a backend nobody knows.
    """

    def __init__(self, config: InferenceEngineConfig, backend: str | Backend = "sglang") -> None:
        if not isinstance(config, InferenceEngineConfig):
            raise TypeError(f"config={config!r} is not an InferenceEngineConfig")
        self._config = config
        self._backend = backend_named(backend) if isinstance(backend, str) else backend
        self._events = Events()
        self._policy = Policy(self._events)
        self._lock = threading.RLock()
        self._state: _Running | None = None
        self._home = _process.home()

    # -- life --------------------------------------------------------------------------------------

    def initialize(self, addr: str | Iterable[str] | None = None, logger: Any = None) -> None:
        """Wait until the servers are healthy, and begin.

        *addr* is one address or several, ``"host:port"`` or a URL; None takes those in the environment
        variable ``AREAL_LLM_SERVER_ADDRS``, with commas between. *logger* is a structlog or a standard
        logger, None for ours. Blocks for up to ``setup_timeout`` seconds; with at least ``min_servers``
        healthy by then it begins without the others, which are taken in when they come.

        Raises ServerUnreachableError when there are fewer; RuntimeError on the thread of a running loop,
        or when it is initialized; ValueError for what is no address.
        """
        _refuse_on_loop("initialize")
        if self._home is not _process.home():
            self._lock, self._state, self._home = threading.RLock(), None, _process.home()
        with self._lock:
            if self._state is not None:
                raise RuntimeError("the engine is initialized already; destroy() it first")
            self._events = Events(logger)
            state = _Running(self._config, self._policy, self._events)
            for one in _addresses(addr):
                state.router.add(self._make_server(one))
            asyncio.run(state.set_up(self._config))
            self._state = state

    def destroy(self) -> None:
        """End: generations under way raise EngineStoppedError. Nothing happens when it has ended.

        A control call under way goes on, but a weight update does not raise the version any more.

        Raises RuntimeError on the thread of a running loop.
        """
        _refuse_on_loop("destroy")
        if self._home is not _process.home():
            return  # of the parent process, whose it stays; who held the lock there does not exist here
        with self._lock:
            state, self._state = self._state, None
        if state is not None:
            state.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()

    def __repr__(self) -> str:
        state = self._state
        servers = "stopped" if state is None else ", ".join(map(repr, state.router.servers))
        return f"<RemoteInfEngine {self._backend.name}, version {self._policy.version}, {servers}>"

    # -- generations -------------------------------------------------------------------------------

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        """Return a reply to *request*, over as many attempts and servers as it takes.

        Cancelling it ends the generation on its server.

        Raises GenerationTimeoutError (a TimeoutError) after ``request_timeout`` seconds without pauses;
        ServerStatusError for a request that servers refuse, or fail at too often; MalformedReplyError;
        ServerUnreachableError when servers hang up too often, or none has been there for
        ``setup_timeout`` seconds; EngineStoppedError; ValueError when ``n_samples`` is not 1.
        """
        if request.gconfig.n_samples != 1:
            raise ValueError(
                f"n_samples={request.gconfig.n_samples}: agenerate makes one reply; call it that often, "
                "with one rid for all"
            )
        state = self._running()
        state.look_after_servers()
        generation = Generation(state.parts, request)
        state.generations.add(generation)
        try:
            self._running()  # destroy() may have come before it was in there
            return await generation.run()
        finally:
            state.generations.discard(generation)

    # -- servers -----------------------------------------------------------------------------------

    def add_server(self, addr: str) -> None:
        """Take one more server in, as soon as it is healthy and has the current weights.

        Raises ValueError for what is no address, or one of the servers already; EngineStoppedError.
        """
        self._running().router.add(self._make_server(Address.parse(addr)))

    def remove_server(self, addr: str) -> None:
        """Use a server no more. What it generates goes on elsewhere, from the tokens that came.

        Raises ValueError when it is none of the servers; EngineStoppedError.
        """
        router = self._running().router
        address = Address.parse(addr)
        for server in router.servers:
            if server.exchange.address == address:
                router.remove(server)
                return
        raise ValueError(f"{address.name} is none of the servers")

    @property
    def servers(self) -> dict[str, str | None]:
        """The servers by address, with why each is out of rotation; None: it is in."""
        return {server.name: server.why_out for server in self._running().router.servers}

    def _make_server(self, address: Address) -> Server:
        keys = self._config.api_key
        if isinstance(keys, Mapping):
            known = {Address.parse(addr): key for addr, key in keys.items()}
            key = known.get(address)
        else:
            key = keys
        return Server(Exchange(address, key, self._config.max_reply_bytes), self._backend)

    # -- policy version ----------------------------------------------------------------------------

    def get_version(self) -> int:
        """Return the policy version: 0 at first."""
        return self._policy.version

    def set_version(self, version: int) -> None:
        """Say which version the servers have, when they got it in another way than from this engine.

        A server that is out of rotation then stays there until the next `update_weights_from_disk`.
        Raises TypeError and ValueError for what is no version.
        """
        self._policy.set(version)

    def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have *callback* called with each new version, in the thread that sets it; return what ends that.

        It must not block, and not ask for the version.
        """
        return self._policy.subscribe(callback)

    # -- control -----------------------------------------------------------------------------------

    async def pause_generation(self) -> None:
        """Interrupt all generations, and let none begin or go on until `continue_generation`.

        Raises ControlError when a server refuses, and lets all go on then; EngineStoppedError.
        """
        await self._running().control.pause()

    async def continue_generation(self) -> None:
        """Let generations go on.

        Raises ControlError when a server could not be told, which is out of rotation then; the others go
        on all the same. Raises EngineStoppedError.
        """
        await self._running().control.resume()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Pause generation for the body of this context; a weight update that failed there leaves it so.

        Generation goes on at the end if it did so at the beginning, and no other such context is left.
        Raises ControlError, EngineStoppedError.
        """
        async with self._running().control.paused():
            yield

    async def abort_all_requests(self) -> None:
        """End all generations on the servers; those of this engine go on from the tokens they have.

        Raises ControlError, EngineStoppedError.
        """
        await self._running().control.abort_all()

    async def update_weights_from_disk(self, path: str | os.PathLike[str], version: int) -> None:
        """Have all servers load the weights at *path* (as they see it), as policy *version*.

        Pauses generation meanwhile, unless it is paused. Servers that are not there leave rotation, and
        get the weights before they return.

        Raises WeightUpdateError when a server fails: the version does not rise then, and the servers have
        the weights they had, or are out of rotation. Raises ControlError, EngineStoppedError.
        """
        await self._running().control.update_weights(os.fspath(path), version)

    async def call_all(self, path: str, json: Any = None, timeout: float | None = None) -> dict[str, Any]:
        """POST *json* to *path* at all servers in rotation, and return their answers by address.

        An answer that is no JSON is its text. *timeout* is in seconds for each, None is
        ``control_timeout``. For what has no method here, such as process groups and adapters.

        Raises ControlError, EngineStoppedError.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        state = self._running()
        body = msgspec.json.encode({} if json is None else json)
        replies = await state.control.call_all(path, body, timeout or self._config.control_timeout)
        return {server: _as_json(reply) for server, reply in replies.items()}

    def _running(self) -> _Running:
        state = self._state
        if self._home is not _process.home():
            raise EngineStoppedError("this engine belongs to another process; initialize() it here")
        if state is None:
            raise EngineStoppedError("the engine does not run; initialize() starts it")
        return state


class _Running:
    """An engine from `initialize` to `destroy`: the parts, wired together. It does not know the engine."""

    def __init__(self, config: InferenceEngineConfig, policy: Policy, events: Events) -> None:
        self._config = config
        self._events = events
        self.opening = Opening(events)
        most_pins = max(_FEWEST_PINS, _PINS_PER_ROLLOUT * config.concurrency)
        self.router = Router(config.max_inflight_per_server, most_pins, self._on_out)
        self.control = Control(config, self.router, self.opening, policy, events)
        self.parts = Parts(config, self.router, self.opening, policy)
        self._policy = policy
        self.generations: set[Generation] = set()
        self._lock = threading.RLock()
        self._prober: tuple[asyncio.AbstractEventLoop, asyncio.Task[None]] | None = None
        self._stopped = False

    async def set_up(self, config: InferenceEngineConfig) -> None:
        """Wait until all servers are in rotation, or until ``setup_timeout`` at least ``min_servers``."""
        prober = asyncio.create_task(self._new_prober(at_first=True).run())
        try:
            deadline = time.monotonic() + config.setup_timeout
            while any(server.why_out is not None for server in self.router.servers):
                if time.monotonic() >= deadline:
                    self._raise_if_too_few(config)
                    break
                await asyncio.sleep(0.05)
        finally:
            prober.cancel()
            await asyncio.wait((prober,))

    def _raise_if_too_few(self, config: InferenceEngineConfig) -> None:
        left = len(self.router.in_rotation)
        if left < config.min_servers:
            out = [server for server in self.router.servers if server.why_out is not None]
            why = "; ".join(f"{server.name} is out: {server.why_out}" for server in out)
            raise ServerUnreachableError(
                f"{left} servers were ready within setup_timeout={config.setup_timeout:g} s, "
                f"where min_servers={config.min_servers} ({why})"
            )

    def look_after_servers(self) -> None:
        """See that a prober runs, on the running loop if there is none yet."""
        if _runs(self._prober):
            return
        with self._lock:
            if self._stopped or _runs(self._prober):
                return
            self._cancel_prober()  # its loop may run again one day
            loop = asyncio.get_running_loop()
            task = loop.create_task(self._new_prober().run(), name="areal_core prober")
            self._prober = (loop, task)

            async def end() -> None:
                task.cancel()
                await asyncio.wait((task,))

            token = register_loop_cleanup(end)

            def ended(task: asyncio.Task[None]) -> None:
                unregister_loop_cleanup(token)
                error = None if task.cancelled() else task.exception()
                if error is not None:
                    self._events.prober_died(error)

            task.add_done_callback(ended)
        self.router.renew_patience()

    def stop(self) -> None:
        """End every generation, and the prober."""
        with self._lock:
            self._stopped = True
            self._cancel_prober()
        self.control.stop()
        for generation in list(self.generations):
            generation.limits.stop("the engine was destroyed")

    def _cancel_prober(self) -> None:
        if self._prober is not None:
            loop, task = self._prober
            with contextlib.suppress(RuntimeError):  # the loop is closed, and has ended it
                loop.call_soon_threadsafe(task.cancel)

    def _new_prober(self, at_first: bool = False) -> Prober:
        recovery = Recovery(self._config, self.router, self.opening, self._policy, self._events, at_first)
        return Prober(self._config, self.router, recovery, self._events)

    def _on_out(self, server: Server) -> None:
        self._events.server_out(server.name, server.why_out or "")


def _runs(prober: tuple[asyncio.AbstractEventLoop, asyncio.Task[None]] | None) -> bool:
    return prober is not None and prober[0].is_running() and not prober[1].done()


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


def _as_json(reply: bytes) -> Any:
    try:
        return msgspec.json.decode(reply)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return reply.decode("utf-8", "replace")


def _refuse_on_loop(method: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{method}() blocks; call it on a thread without a running event loop")
