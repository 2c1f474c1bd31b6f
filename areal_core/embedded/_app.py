"""The HTTP side of the embedded server: routes, errors as JSON, and what is counted where."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

from aiohttp import web

from areal_core.embedded._checks import BadRequestError
from areal_core.embedded._dialects.dialect import Dialect, json_body
from areal_core.embedded._dialects.openai import OpenAI
from areal_core.embedded._dialects.sglang import SGLang
from areal_core.embedded._dialects.vllm import VLLM
from areal_core.embedded._fault_script import FAULT_NAMES, read_fault
from areal_core.embedded._faults.faults import Faults
from areal_core.embedded._generating.generations import DuplicateIdError, Generations
from areal_core.embedded._models.choice import model_of
from areal_core.embedded._models.model import PromptError
from areal_core.embedded._options import ServerOptions
from areal_core.embedded._stats import COUNTERS, Counters

# A batch of 64 prompts of 32 000 tokens is 14 MB of JSON.
_MAX_BODY_BYTES = 256 * 2**20

_logger = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ServerApp:
    """Answer the requests of one server, each in the dialect that has its path.

    Raises WeightsError and ModuleNotFoundError for *options* that it cannot generate with.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.counters = Counters()
        self._generations = Generations(options, self.counters, *model_of(options))
        # The first has the paths that no dialect has.
        self._dialects: Sequence[Dialect] = (
            SGLang(self._generations, options),
            VLLM(self._generations, options),
            OpenAI(self._generations, options),
        )
        self._dialect_of = {
            route.path: dialect for dialect in reversed(self._dialects) for route in dialect.routes()
        }
        self._faults = Faults(self.counters)
        self._turn_on([(f"fault[{index}]", text) for index, text in enumerate(options.fault)])

    def build(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(
            client_max_size=_MAX_BODY_BYTES, middlewares=[self._count_and_explain, self._faults.strike]
        )
        for dialect in self._dialects:
            app.add_routes(dialect.routes())
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/stats", self._stats),
                web.get("/log", self._log),
                web.post("/faults", self._set_faults),
            ]
        )
        return app

    @web.middleware
    async def _count_and_explain(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        self.counters.add(requests=1)
        dialect = self._dialect_of.get(request.path, self._dialects[0])
        try:
            return await handler(request)
        except (BadRequestError, PromptError) as error:
            status, message, headers = 400, str(error), None
        except DuplicateIdError as error:
            message = f"rid={error.args[0]!r} is running already; abort it first, or use another id"
            status, headers = 400, None
        except web.HTTPException as error:
            status, message = error.status, f"{request.method} {request.path}: {error.reason}"
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        except Exception as error:
            if request.writer.output_size:
                raise  # in the middle of a reply: aiohttp hangs up
            _logger.exception("cannot answer %s %s", request.method, request.path)
            status, message, headers = 500, f"the server failed: {type(error).__name__}: {error}", None
        return web.json_response(dialect.error(message, status), status=status, headers=headers)

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _stats(self, request: web.Request) -> web.Response:
        """Answer with the counters; ``?in_flight=64`` first waits until that many run, and so on."""
        wanted = {}
        for name, value in request.query.items():
            if name not in COUNTERS and name not in FAULT_NAMES:
                raise BadRequestError(name, value, f"is not a counter; there are {', '.join(COUNTERS)}")
            if not value.isdecimal():
                raise BadRequestError(name, value, "is not a number to wait for")
            wanted[name] = int(value)
        return web.json_response(asdict(await self.counters.reach(wanted)))

    async def _log(self, _request: web.Request) -> web.Response:
        return web.json_response(self._generations.log.read())

    async def _set_faults(self, request: web.Request) -> web.Response:
        """Put a list of faults, each as an object or as text, in the place of those before."""
        given = await json_body(request)
        if not isinstance(given, list):
            raise BadRequestError("faults", given, "is not a list")
        self._turn_on([(f"faults[{index}]", one) for index, one in enumerate(given)])
        return web.json_response({})

    def _turn_on(self, faults: Sequence[tuple[str, Any]]) -> None:
        self._faults.turn_on([read_fault(where, one) for where, one in faults])
