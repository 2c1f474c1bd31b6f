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
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Self

from areal_core import _process
from areal_core._checks import check_flag, check_seconds
from areal_core._descriptors import require_descriptors_for_loop
from areal_core._engine.backend import Ask, Backend, HttpCall, Piece, Reader, ReplyError
from areal_core._engine.backends import backend_named
from areal_core._engine.events import Events
from areal_core._engine.opening import Opening, OpeningNews
from areal_core._engine.policy import Policy
from areal_core._engine.stats import EngineStats, ServerStats
from areal_core.config import InferenceEngineConfig
from areal_core.errors import EngineStoppedError
from areal_core.types import ModelRequest, ModelResponse

if TYPE_CHECKING:
    from areal_core._agents.chat_format import ChatFormat
    from areal_core._engine.running import Running

__all__ = [
    "Ask",
    "Backend",
    "EngineStats",
    "HttpCall",
    "Piece",
    "Reader",
    "RemoteInfEngine",
    "ReplyError",
    "ServerStats",
]


class RemoteInfEngine:
    """Asks inference servers for tokens.

    *backend* is their dialect: ``"sglang"``, ``"vllm"``, ``"openai"``, or a `Backend` object of your own.
    *chat* is how the model's chats are written as tokens, for agents that speak in messages; None: none do.
    Coroutines of several loops may use one engine at once, and any thread its plain methods.

    One engine has control of a server: it pauses it, gives it weights and continues it. Any other, such as
    one in a worker's process, *follows*: it only generates. It sends no control calls but aborts of its own
    requests, and is told by `set_version` and `hold_generation` of what the one with control does. A server
    that is lost and comes back it uses when that has the weights again. What is for the one with control
    raises RuntimeError.

    Raises ValueError for a backend nobody knows, TypeError for what is none.
    """

    def __init__(
        self,
        config: InferenceEngineConfig,
        backend: str | Backend = "sglang",
        *,
        chat: ChatFormat | None = None,
        follows: bool = False,
    ) -> None:
        if not isinstance(config, InferenceEngineConfig):
            raise TypeError(f"config is a {type(config).__name__}; pass an InferenceEngineConfig")
        if isinstance(backend, str):
            backend = backend_named(backend)
        elif not isinstance(backend, Backend):
            raise TypeError(f"backend={backend!r} is not a Backend; pass one, or the name of a dialect")
        if chat is not None:
            _check_chat(chat)
        self._config = config
        self._backend = backend
        self.chat = chat
        """How chats are written as tokens; None: not known here."""
        self._follows = check_flag("follows", follows)
        self._policy = Policy(Events())
        self._is_held = False
        self._news = OpeningNews(self._is_open, self._subscriber_raised)
        self._lock = threading.RLock()
        self._state: Running | None = None
        self._home = _process.home()

    # -- life --------------------------------------------------------------------------------------

    def initialize(self, addr: str | Iterable[str] | None = None, logger: Any = None) -> None:
        """Wait until the servers are healthy, and begin.

        *addr* is one address or several, ``"host:port"`` or a URL; None takes those in the environment
        variable ``AREAL_LLM_SERVER_ADDRS``, with commas between. *logger* is a structlog or a standard
        logger, None for ours. Blocks for up to ``setup_timeout`` seconds; with at least ``min_servers``
        healthy by then it begins without the others, which are taken in when they come (see `add_server`).
        A server whose weights nobody can tell, since an update failed there in an earlier life, counts as
        healthy and stays out until the next `update_weights_from_disk`.

        Raises ServerUnreachableError when there are fewer; EngineStoppedError when another thread destroys
        it meanwhile; RuntimeError on the thread of a running loop, or when it is initialized; ValueError for
        what is no address; OSError when there are too few file descriptors for a loop.
        """
        _refuse_on_loop("initialize")
        from areal_core._engine.running import Running  # aiohttp: not before somebody needs it

        self._arrive()
        require_descriptors_for_loop()
        with self._lock:
            if self._state is not None:
                raise RuntimeError("the engine is initialized already; destroy() it first")
            self._policy.events = events = Events(logger)
            opening = Opening(events, self._news.see, lambda: self._is_held)
            parts = self._config, self._backend, self._policy, opening, events
            self._state = state = Running(*parts, self._follows)
        opening.look()
        try:
            asyncio.run(state.set_up(addr))  # with the lock free, for destroy()
        except BaseException:
            with self._lock:
                if self._state is state:
                    self._state = None
            raise
        self._news.see()  # a pause of the life before is over

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
        if not isinstance(request, ModelRequest):
            raise TypeError(f"request is a {type(request).__name__}; pass a ModelRequest")
        if request.gconfig.n_samples != 1:
            raise ValueError(
                f"n_samples={request.gconfig.n_samples}: agenerate makes one reply; call it that often, "
                "with one rid for all"
            )
        running = self._running()
        generation = running.begin(request)
        try:
            return await generation.run()
        except Exception:
            generation.has_failed = True
            raise
        finally:
            running.end(generation)

    # -- servers -----------------------------------------------------------------------------------

    def add_server(self, addr: str) -> None:
        """Take one more server in, as soon as it is healthy and has the current weights.

        That is seen to on a loop that uses the engine: where there is none, from the next `agenerate` or
        control call on.

        Raises ValueError for what is no address, or one of the servers already; EngineStoppedError.
        """
        self._running().add_server(addr)

    def remove_server(self, addr: str) -> None:
        """Use a server no more. What it generates goes on elsewhere, from the tokens that came.

        Raises ValueError when it is none of the servers; EngineStoppedError.
        """
        self._running().remove_server(addr)

    @property
    def servers(self) -> dict[str, str | None]:
        """The servers by address, with why each is out of rotation; None: it is in."""
        return {server.name: server.why_out for server in self._running().router.servers}

    def stats(self) -> EngineStats:
        """Return what the engine does and has done, in numbers. Raises EngineStoppedError."""
        return self._running().stats()

    # -- policy version ----------------------------------------------------------------------------

    def get_version(self) -> int:
        """Return the policy version: 0 at first."""
        return self._policy.version

    def set_version(self, version: int) -> None:
        """Say which version the servers have, when they got it in another way than from this engine.

        A server that is out of rotation then stays there until the next `update_weights_from_disk`.
        Labels win: replies that bear a version are believed, so servers that were given one, as by
        `update_weights_from_disk`, must be given the new one along with the weights. With a label that is
        older than what was set here, a reply is told by its label, and is not ``versions_exact``.

        In an engine that follows this is how it learns of updates, each as soon as all servers have it. A
        token's version is then the oldest that its server can have had: the label of its reply, or, until
        the server has shown that label, the version that was set when the token was asked for. Replies
        without a label are of that version at least, and never ``versions_exact``. Servers that show an older
        label than others, when some show the version that was set, leave rotation; those that are out are
        tried at once.

        Raises TypeError and ValueError for what is no version.
        """
        self._arrive()
        self._policy.set(version)
        state = self._state
        if state is not None:
            state.version_was_set()

    def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have *callback* called with each new version, in the thread that sets it; return what ends that.

        It must not block, and not ask for the version.
        """
        self._arrive()
        return self._policy.subscribe(callback)

    # -- whether generation is open ----------------------------------------------------------------

    def hold_generation(self, held: bool) -> None:
        """Keep this engine's requests for tokens from being sent, or let them go; servers are told nothing.

        What was sent goes on; what waits is not charged for the time. It has nothing to do with
        `pause_generation`: generation is open when it is neither held nor paused. It may be called at any
        time, from any thread, and outlasts `destroy`.
        """
        self._arrive()
        self._is_held = check_flag("held", held)
        state = self._state
        if state is not None:
            state.opening.look()

    def subscribe_generation(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Have *callback* called with whether generation is open, when it closes or opens.

        Returns what ends that; `destroy` does not. It is called in the thread that closes or opens it, and at
        once when generation is closed now; it must neither block nor open or close generation itself. A pause
        in which the engine was destroyed ends with the next `initialize`.
        """
        self._arrive()
        return self._news.subscribe(callback)

    def _is_open(self) -> bool | None:
        state = self._state
        return None if state is None or not state.is_set_up else state.opening.is_open

    # -- control -----------------------------------------------------------------------------------

    async def pause_generation(self) -> None:
        """Interrupt all generations, and let none begin or go on until `continue_generation`.

        While there is a context of `paused`, in any task, generation goes on at the end of that.

        Raises ControlError when a server refuses, and lets all go on then; EngineStoppedError.
        """
        with self._in_control("pause_generation") as running:
            await running.control.pause()

    async def continue_generation(self) -> None:
        """Let generations go on.

        Raises ControlError when a server could not be told, which is out of rotation then; the others go
        on all the same. Raises EngineStoppedError.
        """
        with self._in_control("continue_generation") as running:
            await running.control.resume()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Pause generation for the body of this context; a weight update that failed there leaves it so.

        Generation goes on at the end if it did so at the beginning, and no other such context is left.
        Raises ControlError, EngineStoppedError.
        """
        with self._in_control("paused") as running:
            async with running.control.paused():
                yield

    async def abort_all_requests(self) -> None:
        """End all generations on the servers; those of this engine go on from the tokens they have.

        Raises ControlError, EngineStoppedError.
        """
        with self._in_control("abort_all_requests") as running:
            await running.control.abort_all()

    async def update_weights_from_disk(self, path: str | os.PathLike[str], version: int) -> None:
        """Have all servers load the weights at *path* (as they see it), as policy *version*.

        Pauses generation meanwhile, unless it is paused. Servers that are not there leave rotation, and
        get the weights before they return.

        Raises WeightUpdateError when a server fails: the version does not rise then, and the servers have
        the weights they had, or are out of rotation. Raises ControlError, EngineStoppedError.
        """
        with self._in_control("update_weights_from_disk") as running:
            await running.control.update_weights(os.fspath(path), version)

    async def call_all(self, path: str, json: Any = None, timeout: float | None = None) -> dict[str, Any]:
        """POST *json* to *path* at all servers in rotation, and return their answers by address.

        An answer that is no JSON is its text. *timeout* is in seconds for each, None is
        ``control_timeout``. For what has no method here, such as process groups and adapters.

        When it gives the servers weights, label them in the same call, where it can, and tell the engine by
        `set_version`: the servers' own labels win. A server that comes back in a pause in which this was
        called may have missed some of it, and waits for `set_version` or the end of the pause.

        Raises ControlError, EngineStoppedError; ValueError for a *path* that does not begin with ``/``.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        with self._in_control("call_all") as running:
            return await running.call_all(path, json, timeout)

    def _subscriber_raised(self, error: BaseException) -> None:
        self._policy.events.generation_subscriber_raised(error)  # which may be others by now

    def _arrive(self) -> None:
        """Begin anew in a forked process: who held a lock in the parent does not exist here."""
        if self._home is not _process.home():
            self._lock, self._state, self._home = threading.RLock(), None, _process.home()
            self._policy.renew()
            self._news.renew()

    @contextmanager
    def _in_control(self, method: str) -> Iterator[Running]:
        """Give what runs, and have its servers looked after for the body of this context."""
        if self._follows:
            raise RuntimeError(
                f"{method}() is for the engine that has control of the servers, and this one follows it; "
                "call it there, and tell this one of it by set_version() and hold_generation()"
            )
        running = self._running()
        with running.lookout.in_use():
            yield running

    def _running(self) -> Running:
        state = self._state
        if self._home is not _process.home():
            raise EngineStoppedError("this engine belongs to another process; initialize() it here")
        if state is None or not state.is_set_up:
            raise EngineStoppedError("the engine does not run; initialize() starts it")
        return state


def _check_chat(chat: object) -> None:
    from areal_core._agents.chat_format import ChatFormat  # not before somebody has one

    if not isinstance(chat, ChatFormat):
        raise TypeError(f"chat={chat!r} is not a ChatFormat; give ChatFormat(tokenizer), or None")


def _refuse_on_loop(method: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{method}() blocks; call it on a thread without a running event loop")
