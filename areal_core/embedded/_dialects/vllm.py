"""vLLM's dialect: tokens in, tokens out, and what controls a server. Its completions are OpenAI's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from aiohttp import web

from areal_core.embedded._checks import BadRequestError, integer, mapping, string, token_ids
from areal_core.embedded._dialects.asked import WITHOUT_EFFECT, flag, given
from areal_core.embedded._dialects.dialect import json_body, json_reply
from areal_core.embedded._dialects.openai import EventStream, openai_error
from areal_core.embedded._dialects.openai_asks import sampling_of
from areal_core.embedded._dialects.openai_replies import logprob_entries
from areal_core.embedded._generating.generation import Ask, Generation
from areal_core.embedded._generating.generations import Generations
from areal_core.embedded._models.weights import Weights, WeightsError
from areal_core.embedded._options import ServerOptions

_TOKENS_PREFIX = "generate-tokens-"
_ABORTED = "Aborted"
_MAX_TOKENS = 16
# What has an effect, and what may be there because it changes nothing in a reply that has no text.
_PARAMETERS = WITHOUT_EFFECT | {
    *("max_tokens", "min_tokens", "temperature", "top_p", "seed", "stop", "stop_token_ids", "ignore_eos"),
    *("logprobs", "n", "prompt_logprobs"),
    *("detokenize", "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output"),
}


class VLLM:
    """Speak vLLM's dialect; a `Dialect`."""

    def __init__(self, generations: Generations, options: ServerOptions) -> None:
        self._generations = generations
        self._tokens_only = options.tokens_in_tokens_out

    def routes(self) -> Sequence[web.RouteDef]:
        """Return its routes."""
        routes = [
            web.post("/abort_requests", self._abort),
            web.post("/pause", self._pause),
            web.post("/resume", self._resume),
            web.get("/is_paused", self._is_paused),
            web.post("/collective_rpc", self._rpc),
            web.post("/update_weight_version", self._label),
            web.get("/weight_info", self._weight_info),
            web.post("/reset_prefix_cache", self._reset_prefix_cache),
        ]
        if self._tokens_only:
            routes += [
                web.post("/inference/v1/generate", self._generate),
                web.post("/inference/v1/abort_requests", self._abort_tokens),
            ]
        return routes

    def error(self, message: str, status: int) -> dict[str, Any]:
        """Return the body that says *message*."""
        return openai_error(message, status)

    # Tokens in, tokens out

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        fields = mapping("body", await json_body(request))
        ask, logprobs = self._ask(fields)
        stream = flag("", fields, "stream", False)
        with self._generations.start([ask], stream) as started:
            if not stream:
                (generation,) = await started.ended()
                return json_reply(self._reply(generation, logprobs, 0))
            events = EventStream(request)
            told = 0
            async for generation in started:
                await events.send(self._reply(generation, logprobs, told))
                told = len(generation)
            return await events.end()

    def _ask(self, fields: dict[str, Any]) -> tuple[Ask, bool]:
        """Return what *fields* ask for, and whether with log-probabilities."""
        prompt = fields.get("token_ids")
        if not isinstance(prompt, list) or not prompt:
            raise BadRequestError("token_ids", prompt, "is not a list of at least one token id")
        token_ids("token_ids", prompt)
        parameters = mapping("sampling_params", given(fields, "sampling_params", {}))
        for name, value in parameters.items():
            if name not in _PARAMETERS:
                raise BadRequestError(
                    f"sampling_params.{name}", value, "is not a sampling parameter of this server"
                )
        for name, only in (("n", 1), ("prompt_logprobs", None)):
            if parameters.get(name, only) != only:
                raise BadRequestError(f"sampling_params.{name}", parameters[name], f"is not {only}")
        logprobs = parameters.get("logprobs")
        if logprobs is not None:
            integer("sampling_params.logprobs", logprobs, 0, 20)
        rid = fields.get("request_id")
        most = given(parameters, "max_tokens", _MAX_TOKENS)
        sampling = sampling_of("sampling_params.", parameters, most, self._generations.model.room(prompt))
        rid = self._generations.new_id() if rid is None else string("request_id", rid)
        return Ask(rid, prompt, sampling), logprobs is not None

    def _reply(self, generation: Generation, logprobs: bool, since: int) -> dict[str, Any]:
        """Return what there is from token number *since* on; positions count all of them."""
        entries = logprob_entries(self._generations.model, True, generation, since, 0)
        choice = {
            "index": 0,
            "token_ids": generation.tokens(since),
            "logprobs": {"content": entries} if logprobs else None,
            "finish_reason": None if generation.finish is None else generation.finish.kind,
            "weight_versions": [
                {"version": one.weights.label, "start": max(one.start, since), "end": one.end}
                for one in generation.spans()
                if one.end > since
            ],
        }
        return {"request_id": generation.id, "choices": [choice], "prompt_logprobs": None}

    # Control

    async def _abort_tokens(self, request: web.Request) -> web.Response:
        fields = mapping("body", await json_body(request))
        ids = _ids(fields.get("request_ids"))
        self._abort_some({one.removeprefix(_TOKENS_PREFIX) for one in ids if one.startswith(_TOKENS_PREFIX)})
        return web.Response()

    async def _abort(self, request: web.Request) -> web.Response:
        fields = mapping("body", await json_body(request)) if request.can_read_body else {}
        if fields.get("request_ids") is None:
            aborted = self._abort_those(lambda _: True)
        else:
            ids = _ids(fields["request_ids"])
            aborted = self._abort_some({name for one in ids for name in _names(one)})
        return web.json_response({"status": "aborted", "aborted": aborted})

    async def _pause(self, request: web.Request) -> web.Response:
        mode = request.query.get("mode", "abort")
        if mode not in ("abort", "wait", "keep"):
            raise BadRequestError("mode", mode, "is not abort, wait or keep")
        self._generations.close()
        if mode == "abort":
            self._abort_those(self._generations.live)
        elif mode == "keep":
            self._generations.freeze()
        else:
            await self._generations.idle()
        return web.json_response({"status": "paused"})

    async def _resume(self, _request: web.Request) -> web.Response:
        self._generations.resume()
        return web.json_response({"status": "resumed"})

    async def _is_paused(self, _request: web.Request) -> web.Response:
        return web.json_response({"is_paused": self._generations.paused})

    async def _rpc(self, request: web.Request) -> web.Response:
        """Load weights, between two tokens of what runs; they keep the label until that is updated."""
        fields = mapping("body", await json_body(request))
        if fields.get("method") != "reload_weights":
            raise BadRequestError("method", fields.get("method"), "is not reload_weights")
        kwargs = mapping("kwargs", given(fields, "kwargs", {}))
        path = string("kwargs.weights_path", kwargs.get("weights_path"))
        try:
            version, content = self._generations.model.load(path)
        except WeightsError as error:
            return web.json_response(openai_error(str(error), 500), status=500)
        self._generations.swap(Weights(version, self._generations.weights.label, content))
        return web.json_response({"results": [None]})

    async def _label(self, request: web.Request) -> web.Response:
        fields = mapping("body", await json_body(request))
        label = string("new_version", fields.get("new_version"))
        self._generations.swap(self._generations.weights.labelled(label))
        return web.json_response({"status": "updated", "weight_version": label})

    async def _weight_info(self, _request: web.Request) -> web.Response:
        return web.json_response({"weight_version": self._generations.weights.label})

    async def _reset_prefix_cache(self, _request: web.Request) -> web.Response:
        return web.Response()

    def _abort_some(self, ids: Collection[str]) -> int:
        return self._abort_those(lambda one: one.id in ids)

    def _abort_those(self, chosen: Callable[[Generation], bool]) -> int:
        return self._generations.abort(chosen, _ABORTED, _ABORTED)


def _ids(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise BadRequestError("request_ids", value, "is not a list of ids")
    return [string(f"request_ids[{index}]", one) for index, one in enumerate(value)]


def _names(given_id: str) -> list[str]:
    """Return the ids of requests that vLLM may know as *given_id*: their own, or one made of it."""
    inside = given_id.removeprefix("cmpl-").removesuffix("-0") if given_id.startswith("cmpl-") else given_id
    return [given_id, inside, inside.removeprefix("chatcmpl-").removeprefix(_TOKENS_PREFIX)]
