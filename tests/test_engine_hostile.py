"""Servers that answer anything, of any size, or never: that one generation fails, with a clear error."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from areal_core.embedded import EmbeddedServer
from areal_core.embedded._fault_script import Malformed
from areal_core.errors import (
    GenerationTimeoutError,
    MalformedReplyError,
    ServerStatusError,
    ServerUnreachableError,
)
from areal_core.types import GenerationHyperparameters, ModelRequest
from conftest import MakeRunner
from engine_tools import Sending, an_engine, check_balanced, check_none_live
from exchanging import KEY, all_shown
from scripted import (
    Answer,
    Play,
    asking,
    document,
    engine_on,
    event,
    hanging_up,
    holding,
    made,
    saying,
    scripted,
)

MIB = 2**20
TOLD_OF = {
    Malformed.NOT_JSON: r"JSON is malformed: invalid character \(byte 0\)",
    Malformed.TRUNCATED: r"Input data was truncated",
    Malformed.DEEP: r"Expected `object`, got `array`",
    Malformed.WRONG_TYPES: r"got `str` - at `\$\.(meta_info\.completion_tokens|output_ids\[0\])`",
    Malformed.MISSING_IDS: r"\$\.meta_info\.output_token_logprobs is missing|the reply has no tokens",
    Malformed.UNEVEN: r"\$\.meta_info\.output_token_logprobs has \d+ entries, of \d+ tokens",
    Malformed.NOT_UTF8: "UnicodeDecodeError",
    Malformed.NAN: r"JSON is malformed: invalid character",
}
"""What the error says of each kind of malformed reply that is one however it comes."""


@pytest.fixture
def failure(make_runner: MakeRunner, server: EmbeddedServer) -> Callable[..., BaseException]:
    """Return what a generation raises at a server with a fault; all is well after it."""

    def failure(fault: str, streamed: bool = True, **config: Any) -> BaseException:
        runner = make_runner()
        with an_engine(server, **config) as engine:
            sending = Sending(runner, engine)
            wanted = GenerationHyperparameters(max_new_tokens=5, ignore_eos=True)
            extra = None if streamed else {"stream": False}
            server.faults([fault])
            ending = sending.ending(sending.send(ModelRequest([1, 2], wanted, extra=extra)))
            server.faults([])
            assert isinstance(ending, BaseException), ending
            assert server.addr in str(ending)
            assert len(str(ending).encode()) < 2000
            assert len(sending.reply(sending.send(ModelRequest([1, 2], wanted))).output_tokens) == 5
            check_balanced(engine)
            check_none_live(server)
            assert list(engine.servers.values()) == [None]
        return ending

    return failure


def struck(server: EmbeddedServer, name: str) -> int:
    return server.stats().faults.get(name, 0)


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("how", TOLD_OF)
def test_a_malformed_reply_is_told_with_its_server_and_place_and_not_asked_for_again(
    failure: Callable[..., BaseException], server: EmbeddedServer, how: Malformed, streamed: bool
) -> None:
    before = struck(server, f"malformed_{how}")
    error = failure(f"malformed={how}", streamed)
    assert isinstance(error, MalformedReplyError)
    assert error.server == server.addr
    with pytest.raises(MalformedReplyError, match=TOLD_OF[how]):
        raise error
    assert struck(server, f"malformed_{how}") - before == 1


def test_an_empty_reply_is_malformed_and_a_stream_of_nothing_was_cut_off(
    failure: Callable[..., BaseException],
) -> None:
    assert isinstance(failure("malformed=empty", streamed=False), MalformedReplyError)
    cut_off = failure("malformed=empty", request_retries=0)
    assert isinstance(cut_off, ServerUnreachableError)
    assert "ended a stream in the middle" in str(cut_off)


def test_a_stream_that_is_said_to_be_a_document_is_malformed(failure: Callable[..., BaseException]) -> None:
    assert isinstance(failure("malformed=content_type"), MalformedReplyError)


def test_what_nobody_reads_may_be_anything(play: Play) -> None:
    async def act() -> None:
        async def odd(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
            spoilt = event(body, 4, "length").replace(b'"', b'"\xff', 1)  # the name of a field
            return await saying(spoilt, b"data: {nonsense\n\n")(request, body)

        async with scripted(odd) as server, engine_on(server) as engine:
            assert (await engine.agenerate(asking())).output_tokens == made()

    play(act)


def test_the_attempt_that_brought_a_malformed_reply_is_aborted(play: Play) -> None:
    async def act() -> None:
        async with scripted(saying(b'data: {"meta_info": 5}\n\n')) as server, engine_on(server) as engine:
            with pytest.raises(MalformedReplyError, match=r"\$\.meta_info"):
                await engine.agenerate(asking())
            assert server.aborted == [call.wire_id for call in server.generations]
            assert len(server.aborted) == 1

    play(act)


@pytest.mark.any_loop
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("fault", ["oversized=10000000000", "oversized=1000000000,gzip"])
def test_a_reply_without_end_or_one_that_unpacks_without_end_takes_little_memory(
    failure: Callable[..., BaseException], fault: str, streamed: bool
) -> None:
    tracemalloc.start()
    try:
        error = failure(fault, streamed, max_reply_bytes=2 * MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(error, MalformedReplyError)
    assert str(2 * MIB) in str(error)
    assert peak < 24 * MIB


@pytest.mark.parametrize("fault", ["drip=1", "silent"])
def test_a_byte_at_a_time_or_none_at_all_costs_the_deadline(
    failure: Callable[..., BaseException], fault: str
) -> None:
    error = failure(fault, request_timeout=0.5)
    assert isinstance(error, GenerationTimeoutError)
    assert "0 of 5 tokens after 1 attempts" in str(error)


def test_a_redirect_is_not_followed_and_the_key_stays_here(
    play: Play, server: EmbeddedServer, make_runner: MakeRunner
) -> None:
    async def act() -> None:
        async with scripted() as thief:
            server.faults([f"redirect={thief.url}"])
            async with engine_on(server.url, api_key=KEY) as engine:
                with pytest.raises(ServerStatusError, match="a redirect to http") as redirected:
                    await engine.agenerate(asking())
                assert redirected.value.status == 307
                assert thief.calls == []
                assert KEY not in all_shown(redirected.value)
                assert KEY not in repr(engine)

    play(act)


@pytest.mark.parametrize("fault", ["malformed=deep", "oversized=10000000000"])
def test_one_hostile_server_harms_no_generation_on_another(
    make_runner: MakeRunner, make_embedded_server: Any, server: EmbeddedServer, fault: str
) -> None:
    good: EmbeddedServer = make_embedded_server()
    runner = make_runner()
    with an_engine(server, good, max_reply_bytes=2 * MIB) as engine:
        sending = Sending(runner, engine)
        server.faults([fault])
        wanted = GenerationHyperparameters(max_new_tokens=5, ignore_eos=True)
        tasks = [sending.send(ModelRequest([1, 2], wanted)) for _ in range(20)]
        endings = [sending.ending(task) for task in tasks]
        failed = [ending for ending in endings if isinstance(ending, BaseException)]
        for error in failed:
            assert isinstance(error, MalformedReplyError)
            assert error.server == server.addr
        assert 0 < len(failed) < 20
        assert good.stats().generations == 20 - len(failed)
        assert list(engine.servers.values()) == [None, None]


def test_a_stream_that_ends_early_goes_on_from_its_tokens(play: Play) -> None:
    async def act() -> None:
        async def ending(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
            return await saying(event(body, 3))(request, body)

        for early in (ending, hanging_up(3)):
            async with scripted(early) as server, engine_on(server) as engine:
                reply = await engine.agenerate(asking(5))
                assert (reply.output_tokens, reply.segments, reply.stop_reason) == (made(5), 2, "length")
                first, second = server.generations
                assert second.body["input_ids"] == [0, 1, 2, *made(3)]
                assert second.body["sampling_params"]["max_new_tokens"] == 2
                assert server.aborted == [first.wire_id]

    play(act)


def _aborting(seen: int, changes: Callable[[list[int], list[Any]], dict[str, Any]]) -> Answer:
    """Answer by so many tokens, and then by an abort that counts two more, with its lists changed."""

    async def answer(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
        first = len(body["input_ids"])
        reply = document(body, list(range(first, first + seen + 2)), "abort")
        meta = reply["meta_info"]
        changed = changes(reply["output_ids"], meta["output_token_logprobs"])
        reply["output_ids"] = changed.get("ids", reply["output_ids"])
        meta["output_token_logprobs"] = changed.get("entries", meta["output_token_logprobs"])
        meta.update(changed.get("meta", {}))
        if not seen:
            return web.json_response(reply)
        abort = b"data: " + json.dumps(reply).encode() + b"\n\n"
        return await saying(event(body, seen), abort)(request, body)

    return answer


def _told(version: int, end: int) -> dict[str, Any]:
    """Return what says that one version made all tokens up to *end*."""
    return {"weight_versions": [{"start": 0, "end": end, "version": version}]}


@pytest.mark.parametrize("seen", [2, 0], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        pytest.param(lambda _, __: {"entries": None}, 0, id="no-log-probabilities"),
        pytest.param(lambda _, entries: {"entries": entries[:-1]}, 1, id="one-less"),
        pytest.param(lambda ids, _: {"ids": ids[-1:]}, 0, id="last-id"),
    ],
)
def test_an_abort_whose_lists_disagree_goes_on_from_the_tokens_that_both_have(
    play: Play, seen: int, changes: Callable[[list[int], list[Any]], dict[str, Any]], kept: int
) -> None:
    async def act() -> None:
        async with scripted(_aborting(seen, changes)) as server, engine_on(server) as engine:
            reply = await engine.agenerate(asking(6))
            assert (reply.output_tokens, reply.stop_reason) == (made(6), "length")
            assert len(reply.output_logprobs) == 6
            asked = [call.body["input_ids"] for call in server.generations]
            assert asked == [[0, 1, 2], [0, 1, 2, *made(seen + kept)]]

    play(act)


@pytest.mark.parametrize(
    ("meta", "kept", "versions"),
    [
        pytest.param(_told(4, end=4), 2, [0, 0, 4, 4, 0, 0], id="agree"),
        pytest.param(_told(4, end=9), 2, [0] * 6, id="too-many-versions"),
        pytest.param(_told(4, end=3), 2, [0] * 6, id="too-few-versions"),
        pytest.param({"completion_tokens": 3, **_told(4, end=3)}, 1, [0, 0, 4, 0, 0, 0], id="counts-less"),
        pytest.param({"completion_tokens": 3, **_told(4, end=4)}, 1, [0] * 6, id="counts-less-than-versions"),
    ],
)
def test_an_abort_whose_versions_or_counter_disagree_with_its_tokens_shifts_none_and_fails_nothing(
    play: Play, meta: dict[str, Any], kept: int, versions: list[int]
) -> None:
    async def act() -> None:
        aborting = _aborting(2, lambda _, __: {"meta": meta})
        async with scripted(aborting) as server, engine_on(server) as engine:
            reply = await engine.agenerate(asking(6))
            assert (reply.output_tokens, reply.output_versions) == (made(6), versions)
            assert len(reply.output_logprobs) == 6
            assert server.generations[1].body["input_ids"] == [0, 1, 2, *made(2 + kept)]

    play(act)


def test_a_stream_that_never_ends_behind_its_last_piece_is_not_waited_for(play: Play) -> None:
    async def act() -> None:
        async with scripted(holding(4, "length")) as server, engine_on(server, request_timeout=5.0) as engine:
            assert (await engine.agenerate(asking())).output_tokens == made()

    play(act)


def test_one_document_is_read_though_a_stream_was_asked_for(play: Play) -> None:
    async def act() -> None:
        async def whole(_: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
            assert body["stream"]
            return web.json_response(document(body, made(), "stop"))

        async with scripted(whole) as server, engine_on(server) as engine:
            reply = await engine.agenerate(asking())
            assert (reply.output_tokens, reply.stop_reason, reply.ttft) == (made(), "stop", None)

    play(act)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        ({"message": "too long", "code": 400}, ServerStatusError, "400: the server says: too long"),
        ({"message": "too long"}, MalformedReplyError, "the server says: too long"),
        ("too long", MalformedReplyError, "the server says: too long"),
    ],
)
def test_an_error_inside_a_stream_fails_the_generation_at_once_unless_it_says_that_it_may_pass(
    play: Play, error: Any, kind: type[Exception], says: str
) -> None:
    async def act() -> None:
        told = b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
        async with scripted(saying(told)) as server, engine_on(server) as engine:
            with pytest.raises(kind, match=says):
                await engine.agenerate(asking())
            assert len(server.generations) == 1

    play(act)


def test_generations_that_fail_by_their_deadlines_do_not_disturb_others(play: Play) -> None:
    async def act() -> None:
        async def by_name(request: web.BaseRequest, body: dict[str, Any]) -> web.StreamResponse:
            if body["rid"].startswith("bad"):
                return await holding(1)(request, body)
            return await saying(event(body, 4, "length"))(request, body)

        async with scripted() as server, engine_on(server, request_timeout=2.0) as engine:
            server.usual = by_name
            names = [f"{kind} {number}" for number in range(50) for kind in ("bad", "good")]
            endings = await asyncio.gather(
                *(engine.agenerate(asking(rid=name)) for name in names), return_exceptions=True
            )
            for name, ending in zip(names, endings, strict=True):
                if name.startswith("bad"):
                    assert isinstance(ending, GenerationTimeoutError)
                else:
                    assert not isinstance(ending, BaseException)
            assert len(server.aborted) == 50

    play(act)
