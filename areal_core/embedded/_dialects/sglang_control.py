"""SGLang's dialect: aborting, pausing, weights, and what a server says of itself."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from aiohttp import web

from areal_core import __version__
from areal_core.embedded._checks import BadRequestError, boolean, mapping, string
from areal_core.embedded._dialects.dialect import json_body
from areal_core.embedded._dialects.sglang_replies import ABORTED, ABORTED_IN_QUEUE
from areal_core.embedded._generating.generation import Ask, Generation
from areal_core.embedded._generating.generations import Generations
from areal_core.embedded._models.tokens import Sampling
from areal_core.embedded._models.weights import Weights, WeightsError
from areal_core.embedded._options import ServerOptions

# As SGLang: a server whose scheduler says nothing for so long is not well.
_HEALTH_TIMEOUT_S = 20.0
_UNFLUSHED = (
    "Weights were updated, but the cache was not flushed because requests are still running or queued. "
    "Retract or finish them, then call /flush_cache."
)


class Control:
    """Answer the calls that control one server."""

    def __init__(self, generations: Generations, options: ServerOptions) -> None:
        self._generations = generations
        self._options = options
        self._path = options.weights or ""
        self._started = time.time()

    def routes(self) -> Sequence[web.RouteDef]:
        """Return the routes."""
        return [
            web.post("/abort_request", self._abort),
            web.post("/pause_generation", self._pause),
            web.post("/continue_generation", self._continue),
            web.post("/update_weights_from_disk", self._update),
            web.get("/get_model_info", self._model_info),
            web.get("/model_info", self._model_info),
            web.get("/get_server_info", self._server_info),
            web.get("/server_info", self._server_info),
            web.get("/v1/loads", self._loads),
            web.get("/health_generate", self._health),
            web.get("/flush_cache", self._flush),
            web.post("/flush_cache", self._flush),
        ]

    async def _abort(self, request: web.Request) -> web.Response:
        fields = mapping("body", await json_body(request))
        everything = boolean("abort_all", fields.get("abort_all", False))
        rid = fields.get("rid")
        if not everything and rid:
            prefix = string("rid", rid)
            self._abort_live(lambda one: one.id.startswith(prefix))
        elif everything:
            self._abort_live(lambda _: True)
        return web.Response()

    async def _pause(self, request: web.Request) -> web.Response:
        mode = mapping("body", await json_body(request)).get("mode", "abort")
        if mode not in ("abort", "retract", "in_place"):
            raise BadRequestError("mode", mode, "is not abort, retract or in_place")
        self._generations.close()
        if mode == "abort":
            self._abort_live(lambda _: True)
        else:
            self._generations.freeze()
        if mode == "retract":
            self._generations.requeue()
        return web.json_response({"message": "Generation paused successfully.", "status": "ok"})

    async def _continue(self, request: web.Request) -> web.Response:
        mapping("body", await json_body(request))
        self._generations.resume()
        return web.json_response({"message": "Generation continued successfully.", "status": "ok"})

    async def _update(self, request: web.Request) -> web.Response:
        """Change the weights at once in a pause; else when all that runs has ended, as SGLang does."""
        fields = mapping("body", await json_body(request))
        path = string("model_path", fields.get("model_path"))
        label = fields.get("weight_version")
        label = None if label is None else string("weight_version", label)
        flush = boolean("flush_cache", fields.get("flush_cache", True))
        if boolean("abort_all_requests", fields.get("abort_all_requests", False)):
            self._abort_live(lambda _: True)
        if self._generations.paused:
            success, message = self._swap(path, label, flush)
        else:
            async with self._generations.drained():
                success, message = self._swap(path, label, flush)
        content = {"success": success, "message": message, "num_paused_requests": 0}
        return web.json_response(content, status=200 if success else 400)

    def _swap(self, path: str, label: str | None, flush: bool) -> tuple[bool, str]:
        generations = self._generations
        try:
            version, content = generations.model.load(path)
        except WeightsError as error:
            return False, f"Failed to update weights: {error}."
        flushed = not flush or self._may_flush()
        weights = Weights(version, generations.weights.label, content)
        # Weights without their label: what SGLang is left with when the cache could not be flushed.
        generations.swap(weights.labelled(label) if flushed else weights)
        self._path = path
        if not flushed:
            return False, _UNFLUSHED
        named = "" if label is None else f" Weight version updated to {label}."
        return True, f"Succeeded to update model weights.{named}"

    async def _flush(self, _request: web.Request) -> web.Response:
        if self._may_flush():
            return web.Response(text="Cache flushed.\n")
        return web.Response(text="Flush cache failed: requests are running or queued.\n", status=400)

    def _may_flush(self) -> bool:
        """Return whether nothing needs the cache; there is none, but SGLang's refuses to be emptied then."""
        return not self._generations.running and (self._generations.frozen or not self._generations.queued)

    async def _model_info(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "model_path": self._path,
                "served_model_name": self._options.mode,
                "tokenizer_path": self._path,
                "is_generation": True,
                "preferred_sampling_params": None,
                "weight_version": self._generations.weights.label,
                "load_format": "auto",
                "model_type": self._options.mode,
            }
        )

    async def _server_info(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                **asdict(self._options),
                "weight_version": self._generations.weights.label,
                "startup_time": self._started,
                "internal_states": [],
                "version": __version__,
                "frontend": "python",
            }
        )

    async def _loads(self, request: web.Request) -> web.Response:
        """Answer with the "core" section whatever is asked for: there is no other."""
        running, queued = self._generations.running, self._generations.queued
        load = {
            "dp_rank": 0,
            "timestamp": time.time(),
            "num_running_reqs": running,
            "num_waiting_reqs": queued,
            "num_total_reqs": running + queued,
            "max_running_requests": self._options.slots,
        }
        now = datetime.now(UTC).isoformat()
        return web.json_response({"timestamp": now, "version": __version__, "loads": [load]})

    async def _health(self, _request: web.Request) -> web.Response:
        """Answer when a token is made: a server that generates makes them, another is asked for one."""
        generations = self._generations
        if generations.running and not generations.frozen:
            return web.Response()
        ask = Ask(f"HEALTH_CHECK_{uuid.uuid4().hex}", [0], Sampling(max_new_tokens=1, temperature=0.0))
        try:
            with generations.start([ask]) as started:
                async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                    await started.ended()
        except TimeoutError:
            return web.Response(status=503)
        return web.Response()

    def _abort_live(self, chosen: Callable[[Generation], bool]) -> None:
        """Abort those that are *chosen*: what waits for the end of a pause is out of SGLang's reach."""

        def reached(one: Generation) -> bool:
            return self._generations.live(one) and chosen(one)

        self._generations.abort(reached, ABORTED, ABORTED_IN_QUEUE)
