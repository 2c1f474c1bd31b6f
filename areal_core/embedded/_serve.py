"""Serve until told to stop: the part of the command that needs the event loop and aiohttp."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web

from areal_core.embedded._app import ServerApp
from areal_core.embedded._lifeline import watch_parent
from areal_core.embedded._options import ServerOptions
from areal_core.embedded._signals import StopSignals

_STDOUT = 1
# As many as clients may want to open at once; the kernel takes less if it allows less.
_BACKLOG = 4096
# Who still waits for a reply when the server stops is cut off; aiohttp takes 0 for "no limit".
_SHUTDOWN_S = 0.01


class UnheardError(Exception):
    """Nobody can be told where the server listens: the only argument says why."""


def run(options: ServerOptions, listener: socket.socket, signals: StopSignals, parent: int | None) -> None:
    """Serve on *listener* until a signal arrives, or the process *parent* ends (None: nobody's child).

    Closes *listener* then. Raises WeightsError and ModuleNotFoundError for *options* that it cannot
    generate with, UnheardError when it cannot write to standard output.
    """
    app = ServerApp(options)
    _raise_descriptor_limit()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(app, listener, signals, parent))


async def _serve(app: ServerApp, listener: socket.socket, signals: StopSignals, parent: int | None) -> None:
    stop = asyncio.Event()
    runner = web.AppRunner(
        app.build(),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=_SHUTDOWN_S,
    )
    await runner.setup()
    protocols = runner.server
    assert protocols is not None

    def accepted() -> asyncio.Protocol:
        # Called once for every connection the loop accepts.
        app.counters.add(connections=1)
        return protocols()

    loop = asyncio.get_running_loop()
    server = await loop.create_server(accepted, sock=listener, backlog=_BACKLOG)
    try:
        with signals.sent_to(loop, stop.set), watch_parent(parent, stop.set):
            _say({"addr": _addr(listener), "pid": os.getpid()})
            await stop.wait()
    finally:
        server.close()
        await runner.cleanup()


def _say(line: dict[str, Any]) -> None:
    try:
        # Not by sys.stdout, which would try again, and complain, when the interpreter ends.
        os.write(_STDOUT, json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise UnheardError(error.strerror) from None


def _addr(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _raise_descriptor_limit() -> None:
    """Allow as many connections as this process may have; the usual soft limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # macOS refuses "unlimited", which the hard limit may say there
