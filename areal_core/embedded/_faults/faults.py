"""Do to requests what the script of faults says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from weakref import WeakKeyDictionary

from aiohttp import web
from yarl import URL

from areal_core.embedded._fault_script import ABORT_AFTER, ArmedFault, Fault, Malformed
from areal_core.embedded._faults.bodies import bomb, endless_text, spoil
from areal_core.embedded._faults.writers import CutWriter, SpoilingWriter, hang_up
from areal_core.embedded._stats import Counters

CONTROL_PATHS = frozenset({"/faults", "/log", "/stats"})
"""The server's own calls, which no fault strikes."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Faults:
    """Stand before the handlers of one server; count each fault that strikes."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._armed: list[ArmedFault] = []
        # Requests of each connection so far; aiohttp has one task for each.
        self._arrived: WeakKeyDictionary[asyncio.Task[None], int] = WeakKeyDictionary()

    def turn_on(self, faults: Iterable[Fault]) -> None:
        """Put *faults* in the place of those before."""
        self._armed = [ArmedFault(fault, place) for place, fault in enumerate(faults)]
        self._counters.know_faults(armed.fault.name for armed in self._armed)

    @web.middleware
    async def strike(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer *request*, in a way that depends on the faults."""
        number = self._arrived[request.task] = self._arrived.get(request.task, 0) + 1
        if request.path in CONTROL_PATHS:
            return await handler(request)
        try:
            return await self._meet(request, handler, number)
        except ConnectionError:
            return web.Response()  # the client is gone, by itself or by a fault; nobody gets this

    async def _meet(self, request: web.Request, handler: Handler, number: int) -> web.StreamResponse:
        """Let *request*, the so manieth on its connection, meet the faults one after another."""
        idle: Fault | None = None
        for armed in self._armed:
            fault = armed.fault
            if not fault.matches(request.path) or (fault.kind == "race" and number == 1):
                continue
            if not armed.strikes():
                continue
            if fault.kind == "idle":
                idle = fault
                continue
            self._counters.add_fault(fault.name)
            if fault.kind != "latency":
                return await _DO[fault.kind](request, handler, fault)
            await asyncio.sleep(armed.draw_s())
        response = await handler(request)
        if idle is not None:
            # When the request is over it knows neither of them.
            connection, transport = request.task, request.transport

            def hang_up_if_idle() -> None:
                if self._arrived[connection] == number and transport and not transport.is_closing():
                    self._counters.add_fault("idle")
                    transport.close()

            asyncio.get_running_loop().call_later(idle.value, hang_up_if_idle)
        return response


async def _wants_stream(request: web.Request) -> bool:
    try:
        return json.loads(await request.read()).get("stream") is True
    except (ValueError, AttributeError, RecursionError):
        return False


async def _status(_request: web.Request, _handler: Handler, fault: Fault) -> web.StreamResponse:
    headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    body = {
        "error": {"message": "the script of faults says so", "type": "fault", "param": None, "code": None}
    }
    return web.json_response(body, status=fault.value, headers=headers)


async def _abort(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
    ABORT_AFTER.set(fault.value)
    return await handler(request)


async def _disconnect(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
    CutWriter(request, fault.value, fault.reset)
    return await handler(request)


async def _race(request: web.Request, _handler: Handler, fault: Fault) -> web.StreamResponse:
    hang_up(request, fault.reset)
    return web.Response()


async def _malformed(request: web.Request, handler: Handler, fault: Fault) -> web.StreamResponse:
    how = Malformed(fault.value)
    SpoilingWriter(request, how)
    response = await handler(request)
    if isinstance(response, web.Response) and isinstance(response.body, bytes):
        response.body = spoil(response.body, how)
    return response


async def _oversized(request: web.Request, _handler: Handler, fault: Fault) -> web.StreamResponse:
    stream = await _wants_stream(request)
    response = _begin(stream)
    if fault.gzip:
        response.headers["Content-Encoding"] = "gzip"
    await response.prepare(request)
    for piece in (bomb if fault.gzip else endless_text)(fault.value, b"data: " if stream else b""):
        if piece:
            await response.write(piece)
        await asyncio.sleep(0)  # a client that reads fast would not let others have their turn
    return response


async def _redirect(request: web.Request, _handler: Handler, fault: Fault) -> web.StreamResponse:
    target = URL(fault.value)
    if target.path == "/":
        target = target.with_path(request.path)
    return web.Response(status=307, headers={"Location": str(target)})


async def _silent(_request: web.Request, _handler: Handler, _fault: Fault) -> web.StreamResponse:
    await asyncio.get_running_loop().create_future()  # until the client goes away
    raise AssertionError


async def _drip(request: web.Request, _handler: Handler, fault: Fault) -> web.StreamResponse:
    response = _begin(await _wants_stream(request))
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(fault.value / 1000)


def _begin(stream: bool) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_type = "text/event-stream" if stream else "application/json"
    return response


_DO: Mapping[str, Callable[[web.Request, Handler, Fault], Awaitable[web.StreamResponse]]] = {
    "status": _status,
    "abort": _abort,
    "disconnect": _disconnect,
    "race": _race,
    "malformed": _malformed,
    "oversized": _oversized,
    "redirect": _redirect,
    "silent": _silent,
    "drip": _drip,
}
