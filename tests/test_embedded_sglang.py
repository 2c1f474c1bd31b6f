"""SGLang's dialect of the embedded server: streams, aborts, pauses, weights, and its log."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from areal_core.embedded import EmbeddedServer, ServerOptions, token_of, write_weights
from areal_core.embedded._dialects.sglang_control import Control
from areal_core.embedded._generating.clock import RunningClock
from areal_core.embedded._generating.generations import Generations
from areal_core.embedded._models.choice import model_of
from areal_core.embedded._stats import Counters
from calls import Asking, call, generate
from completions import predict
from streams import streaming
from virtual_time import VirtualLoop

LONG = {"max_new_tokens": 10_000, "ignore_eos": True}


@pytest.fixture(scope="module")
def quick() -> Iterator[EmbeddedServer]:
    """Share a server that answers at once, in the mode test."""
    with EmbeddedServer(ms_per_token=0, mode="test") as server:
        yield server


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """Start a server with two slots on which every token takes 2 ms."""
    with EmbeddedServer(ms_per_token=2, sigma=0, mode="test", slots=2, weight_version_spans=True) as server:
        yield server


def post(server: EmbeddedServer, path: str, **body: Any) -> Any:
    status, reply = call(server, "POST", path, body)
    assert status == 200, reply
    return reply


def stream(server: EmbeddedServer, **body: Any) -> Generator[Any, None, None]:
    """Yield the chunks of a streamed generation as they come; closing it hangs up."""
    with streaming(server, "/generate", body) as events:
        yield from events


def flush(server: EmbeddedServer) -> int:
    """Return the status of the answer, which is a text."""
    with closing(http.client.HTTPConnection(server.addr, timeout=10)) as connection:
        connection.request("POST", "/flush_cache")
        return connection.getresponse().status


def ends(server: EmbeddedServer) -> dict[str, dict[str, Any]]:
    return {one["id"]: one for one in server.log() if one["event"] == "end"}


def check_tokens(prompt: list[int], reply: Any, version_of: dict[str, int]) -> None:
    """See that each token is the one that the version told for it makes."""
    spans = reply["meta_info"]["weight_versions"]
    assert [spans[0]["start"], *(one["end"] for one in spans)] == [
        *(one["start"] for one in spans),
        len(reply["output_ids"]),
    ]
    for span in spans:
        for place in range(span["start"], span["end"]):
            prefix = prompt + reply["output_ids"][:place]
            assert reply["output_ids"][place] == token_of(version_of[span["version"]], prefix, False)


# Streams


def test_a_streams_chunks_have_all_there_is_and_the_last_is_the_whole_reply() -> None:
    with EmbeddedServer(ms_per_token=10, sigma=0, mode="test", weight_version_spans=True) as server:
        body = {"input_ids": [21], "return_logprob": True}
        chunks = list(stream(server, **body))
        whole = generate(server, **body)
    tokens, logprobs = predict([21])
    counts = [chunk["meta_info"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(set(counts))
    assert (counts[-1], len(counts) > 1) == (len(tokens), True)
    for chunk, count in zip(chunks, counts, strict=True):
        meta = chunk["meta_info"]
        assert chunk["output_ids"] == tokens[:count]
        assert [one[:2] for one in meta["output_token_logprobs"]] == [
            list(pair) for pair in zip(logprobs[:count], tokens, strict=False)
        ]
        assert (meta["finish_reason"] is None) == (chunk is not chunks[-1])
    for reply in (whole, chunks[-1]):
        del reply["meta_info"]["e2e_latency"], reply["meta_info"]["id"]
    assert chunks[-1] == whole


def test_an_incremental_streams_chunks_have_what_is_new() -> None:
    with EmbeddedServer(ms_per_token=10, sigma=0, incremental_streaming_output=True) as server:
        body = {"input_ids": [21], "return_logprob": True}
        chunks = list(stream(server, **body))
        whole = generate(server, **body)
    assert len(chunks) > 1
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert list(itertools.chain(*(chunk["output_ids"] for chunk in chunks))) == whole["output_ids"]
    logprobs = [chunk["meta_info"]["output_token_logprobs"] for chunk in chunks]
    assert list(itertools.chain(*logprobs)) == whole["meta_info"]["output_token_logprobs"]
    assert chunks[-1]["meta_info"]["completion_tokens"] == len(whole["output_ids"])


def test_the_chunks_of_a_batch_tell_their_place_in_it(quick: EmbeddedServer) -> None:
    prompts = [[21], list(b"hello")]
    last = {chunk["index"]: chunk for chunk in stream(quick, input_ids=prompts, rid="r")}
    assert [last[place]["output_ids"] for place in (0, 1)] == [predict(prompt)[0] for prompt in prompts]
    assert [last[place]["meta_info"]["id"] for place in (0, 1)] == ["r_0", "r_1"]


def test_a_listener_that_hangs_up_ends_its_generation(server: EmbeddedServer) -> None:
    chunks = stream(server, input_ids=[21], rid="r", sampling_params=LONG)
    heard = [next(chunks) for _ in range(3)][-1]["meta_info"]["completion_tokens"]
    chunks.close()
    assert server.stats(cancelled=1).in_flight == 0
    end = ends(server)["r"]
    assert (end["how"], end["tokens"] >= heard) == ("disconnect", True)


# Aborts


def test_an_abort_ends_all_whose_id_begins_so_and_they_keep_their_tokens() -> None:
    with EmbeddedServer(ms_per_token=2, sigma=0, mode="test") as server, Asking(server) as asking:
        replies = {
            rid: asking.generate(input_ids=[21], rid=rid, sampling_params=LONG, return_logprob=True)
            for rid in ("q-1", "q-10", "q-2")
        }
        server.stats(in_flight=3)
        chunks = stream(server, input_ids=[21], rid="q-11", sampling_params=LONG)
        next(chunks)  # those before have a token too by now
        for body in ({}, {"rid": ""}, {"rid": None}, {"rid": "x"}, {"rid": "-1"}):
            post(server, "/abort_request", **body)
        assert server.stats().aborted == 0
        post(server, "/abort_request", rid="q-1")
        *_, last = chunks
        for reply in (replies["q-1"].result(), replies["q-10"].result(), last):
            meta = reply["meta_info"]
            reason = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
            assert (meta["finish_reason"], meta["prompt_tokens"]) == (reason, 1)
            assert len(reply["output_ids"]) == meta["completion_tokens"] > 0
            prefix = [21]
            for token in reply["output_ids"]:
                assert token == token_of(0, prefix, False)
                prefix.append(token)
        assert server.stats().in_flight == 1
        post(server, "/abort_request", abort_all=True)
        assert replies["q-2"].result()["meta_info"]["finish_reason"]["type"] == "abort"
        assert {one["how"] for one in ends(server).values()} == {"abort"}


def test_an_abort_in_the_queue_has_no_tokens_and_none_of_the_counts(server: EmbeddedServer) -> None:
    with Asking(server) as asking:
        for rid in ("a", "b"):
            asking.generate(input_ids=[21], rid=rid, sampling_params=LONG)
        server.stats(in_flight=2)
        queued = asking.generate(input_ids=[21], rid="c", return_logprob=True)
        server.stats(waiting=1)
        post(server, "/abort_request", rid="c")
        reply = queued.result()
        assert reply["meta_info"].pop("e2e_latency") > 0
        assert reply == {
            "text": "",
            "output_ids": [],
            "meta_info": {
                "id": "c",
                "finish_reason": {"type": "abort", "message": "Abort in waiting queue"},
                "completion_tokens": 0,
                "weight_version": "default",
            },
        }
        post(server, "/abort_request", abort_all=True)


# Pauses


def test_a_pause_that_aborts_gives_partial_replies_and_holds_what_comes_until_it_ends(
    server: EmbeddedServer,
) -> None:
    with Asking(server) as asking:
        chunks = stream(server, input_ids=[21], sampling_params=LONG)
        next(chunks)
        assert server.stats().paused is False
        post(server, "/pause_generation")
        assert server.stats(paused=1).paused is True
        *_, last = chunks
        assert last["meta_info"]["finish_reason"]["type"] == "abort"
        held = asking.generate(input_ids=[21], rid="held")
        assert server.stats(waiting=1).in_flight == 1
        # What is held has not reached the scheduler, so no abort reaches it.
        post(server, "/abort_request", rid="held")
        post(server, "/pause_generation", mode="abort")
        assert server.stats().waiting == 1
        post(server, "/continue_generation")
        assert server.stats().paused is False
        assert held.result()["output_ids"] == predict([21])[0]


@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_a_pause_keeps_the_tokens_and_the_generation_goes_on_with_new_weights(
    server: EmbeddedServer, tmp_path: Path, mode: str
) -> None:
    write_weights(tmp_path / "w", 7)
    update = {"model_path": str(tmp_path / "w"), "weight_version": "seven"}
    with Asking(server) as asking:
        whole = asking.generate(input_ids=[22], sampling_params=LONG)
        server.stats(in_flight=1)
        chunks = stream(server, input_ids=[21], sampling_params=LONG)
        before = [next(chunks) for _ in range(5)][-1]
        post(server, "/pause_generation", mode=mode)
        running = call(server, "GET", "/v1/loads?include=core")[1]["loads"][0]["num_running_reqs"]
        assert running == {"in_place": 2, "retract": 0}[mode]
        # Tokens keep their cache in place; sent back to wait, they do not.
        assert flush(server) == {"in_place": 400, "retract": 200}[mode]
        post(server, "/update_weights_from_disk", **update, flush_cache=mode == "retract")
        post(server, "/continue_generation")
        seen = before
        while seen["meta_info"]["weight_version"] != "seven":
            seen = next(chunks)
        post(server, "/abort_request", abort_all=True)
        *_, last = chunks
        for prompt, reply in (([21], last), ([22], whole.result())):
            spans = reply["meta_info"]["weight_versions"]
            assert [one["version"] for one in spans] == ["default", "seven"]
            check_tokens(prompt, reply, {"default": 0, "seven": 7})
        assert last["output_ids"][: len(before["output_ids"])] == before["output_ids"]
        assert [version for version, _ in ends(server)[last["meta_info"]["id"]]["versions"]] == [0, 7]


def test_weights_without_their_label_are_what_a_cache_that_cannot_be_flushed_leaves(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    write_weights(tmp_path / "w", 7)
    with Asking(server) as asking:
        reply = asking.generate(input_ids=[21], sampling_params=LONG)
        server.stats(in_flight=1)
        post(server, "/pause_generation", mode="in_place")
        body = {"model_path": str(tmp_path / "w"), "weight_version": "seven"}
        status, answer = call(server, "POST", "/update_weights_from_disk", body)
        assert (status, answer["success"]) == (400, False)
        assert answer["message"].startswith("Weights were updated, but the cache was not flushed because")
        assert call(server, "GET", "/model_info")[1]["weight_version"] == "default"
        assert server.log()[-1] | {"at": 0} == {"event": "weights", "at": 0, "version": 7, "label": "default"}
        post(server, "/pause_generation", mode="abort")
        assert reply.result()["meta_info"]["finish_reason"]["type"] == "abort"


# Weights


@pytest.mark.parametrize(("spans", "label"), [(True, "default"), (False, "seven")])
def test_an_abort_right_after_an_update_names_the_weights_of_the_last_token_with_spans_alone(
    tmp_path: Path, spans: bool, label: str
) -> None:
    write_weights(tmp_path / "w", 7)
    with (
        EmbeddedServer(ms_per_token=2, mode="test", weight_version_spans=spans) as server,
        Asking(server) as asking,
    ):
        whole = asking.generate(input_ids=[22], sampling_params=LONG)
        chunks = stream(server, input_ids=[21], sampling_params=LONG)
        next(chunks)
        server.stats(in_flight=2)
        post(server, "/pause_generation", mode="in_place")
        body = {"model_path": str(tmp_path / "w"), "weight_version": "seven", "flush_cache": False}
        post(server, "/update_weights_from_disk", **body)
        post(server, "/abort_request", abort_all=True)
        *_, last = chunks
        assert last["meta_info"]["weight_version"] == label
        assert ("weight_versions" in last["meta_info"]) == spans
        assert {one["versions"][0][0] for one in ends(server).values() if one["tokens"]} == {0}
        assert whole.result()["meta_info"]["finish_reason"]["type"] == "abort"


def test_an_update_without_a_pause_waits_for_what_runs_and_holds_what_comes(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    write_weights(tmp_path / "w", 3)
    with Asking(server) as asking:
        asking.generate(input_ids=[21], rid="old", sampling_params=LONG)
        before = server.stats(in_flight=1).requests
        body = {"model_path": str(tmp_path / "w"), "weight_version": "3"}
        update = asking.call("POST", "/update_weights_from_disk", body)
        server.stats(requests=before + 2)
        new = asking.generate(input_ids=[21], rid="new")
        server.stats(waiting=1)
        assert not update.done()
        post(server, "/abort_request", rid="old")
        message = "Succeeded to update model weights. Weight version updated to 3."
        assert update.result() == (200, {"success": True, "message": message, "num_paused_requests": 0})
        assert new.result()["output_ids"] == predict([21], version=3)[0]
        assert [one["event"] for one in server.log()] == [
            "weights",
            "start",
            "end",
            "weights",
            "start",
            "end",
        ]


def test_an_update_may_abort_what_runs(server: EmbeddedServer, tmp_path: Path) -> None:
    write_weights(tmp_path / "w", 3)
    with Asking(server) as asking:
        reply = asking.generate(input_ids=[21], sampling_params=LONG)
        server.stats(in_flight=1)
        body = {"model_path": str(tmp_path / "w"), "abort_all_requests": True}
        assert post(server, "/update_weights_from_disk", **body)["success"]
        assert reply.result()["meta_info"]["finish_reason"]["type"] == "abort"
    # A label that was not given is the old one.
    assert call(server, "GET", "/get_model_info")[1]["weight_version"] == "default"
    assert generate(server, input_ids=[21])["output_ids"] == predict([21], version=3)[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot read the weights {path}: No such file or directory."),
        (b"", 'the weights {path} are not JSON such as {{"version": 3}}; see write_weights().'),
        (b"[]", 'the weights {path} are not JSON such as {{"version": 3}}; see write_weights().'),
        (
            b'{"version": -1}',
            'the weights {path} are not JSON such as {{"version": 3}}; see write_weights().',
        ),
        (
            b'{"version": true}',
            'the weights {path} are not JSON such as {{"version": 3}}; see write_weights().',
        ),
    ],
)
def test_a_file_without_weights_changes_nothing(
    quick: EmbeddedServer, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "w"
    if content is not None:
        path.write_bytes(content)
    body = {"model_path": str(path), "weight_version": "bad"}
    status, answer = call(quick, "POST", "/update_weights_from_disk", body)
    message = f"Failed to update weights: {problem.format(path=repr(str(path)))}"
    assert (status, answer) == (400, {"success": False, "message": message, "num_paused_requests": 0})
    assert call(quick, "GET", "/model_info")[1]["weight_version"] == "default"
    assert generate(quick, input_ids=[21])["output_ids"] == predict([21])[0]


def test_a_restarted_server_has_the_weights_it_started_with_again(tmp_path: Path) -> None:
    for version in (2, 5):
        write_weights(tmp_path / str(version), version)
    with EmbeddedServer(ms_per_token=0, mode="test", weights=tmp_path / "2") as server:
        for _ in range(2):
            assert generate(server, input_ids=[21])["output_ids"] == predict([21], version=2)[0]
            body = {"model_path": str(tmp_path / "5"), "weight_version": "five"}
            post(server, "/update_weights_from_disk", **body)
            reply = generate(server, input_ids=[21])
            assert reply["output_ids"] == predict([21], version=5)[0]
            assert reply["meta_info"]["weight_version"] == "five"
            server.kill()
            server.start()
        assert call(server, "GET", "/model_info")[1]["weight_version"] == "default"


def test_a_server_that_cannot_load_its_weights_does_not_start(tmp_path: Path) -> None:
    said = f"cannot generate: cannot read the weights '{tmp_path}/w': No such file or directory"
    with pytest.raises(RuntimeError, match=f"^the embedded server ended with status 1 and said: {said}$"):
        EmbeddedServer(weights=tmp_path / "w").start()


def test_in_the_mode_text_the_version_changes_no_token(tmp_path: Path) -> None:
    write_weights(tmp_path / "w", 5)
    with EmbeddedServer(ms_per_token=0, weights=str(tmp_path / "w")) as server:
        assert generate(server, input_ids=[21])["output_ids"] == predict([21])[0]
        assert ends(server)[server.log()[1]["id"]]["versions"] == [[5, 11]]


def test_weights_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_weights(tmp_path / "w", 1)
    before = (tmp_path / "w").stat().st_ino
    write_weights(tmp_path / "w", 2)
    assert json.loads((tmp_path / "w").read_text()) == {"version": 2}
    assert (tmp_path / "w").stat().st_ino != before  # another file in its place
    for version, error in ((-1, ValueError), ("x", TypeError)):
        with pytest.raises(error):
            write_weights(tmp_path / "w", version)  # type: ignore[arg-type]
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_weights(tmp_path / "directory", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "w"]


# What a server says of itself


def test_a_server_tells_its_load_its_model_and_its_options(server: EmbeddedServer) -> None:
    with Asking(server) as asking:
        for _ in range(3):
            asking.generate(input_ids=[21], sampling_params=LONG)
        server.stats(waiting=1, in_flight=3)
        (load,) = call(server, "GET", "/v1/loads?include=core")[1]["loads"]
        assert load.pop("timestamp") > 0
        assert load == {
            "dp_rank": 0,
            "num_running_reqs": 2,
            "num_waiting_reqs": 1,
            "num_total_reqs": 3,
            "max_running_requests": 2,
        }
        post(server, "/abort_request", abort_all=True)
    for path in ("/get_server_info", "/server_info"):
        told = call(server, "GET", path)[1]
        assert (told["slots"], told["mode"], told["weight_version"]) == (2, "test", "default")
    for path in ("/get_model_info", "/model_info"):
        told = call(server, "GET", path)[1]
        assert (told["is_generation"], told["weight_version"]) == (True, "default")


def test_health_generate_makes_a_token_unless_others_are_made(server: EmbeddedServer) -> None:
    assert call(server, "GET", "/health_generate") == (200, None)
    (end,) = ends(server).values()
    assert (end["id"].startswith("HEALTH_CHECK_"), end["tokens"]) == (True, 1)
    with Asking(server) as asking:
        for _ in range(3):
            asking.generate(input_ids=[21], sampling_params=LONG)
        server.stats(waiting=1)
        assert call(server, "GET", "/health_generate") == (200, None)
        assert server.stats().generations == 4
        assert flush(server) == 400
        post(server, "/abort_request", abort_all=True)
    assert flush(server) == 200


def test_a_paused_server_is_not_well_by_health_generate() -> None:
    async def ask() -> None:
        options = ServerOptions(ms_per_token=10)
        clock = RunningClock(asyncio.get_running_loop().time)
        generations = Generations(options, Counters(), *model_of(options), clock)
        (health,) = (one for one in Control(generations, options).routes() if one.path == "/health_generate")
        generations.close()
        response: Any = await health.handler(None)  # type: ignore[arg-type]
        assert response.status == 503
        assert asyncio.get_running_loop().time() == pytest.approx(20)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(ask())


def test_the_log_has_every_generation_in_the_order_of_events(quick: EmbeddedServer) -> None:
    before = len(quick.log())
    generate(quick, input_ids=[[21], [21, 22]], rid=["a", "b"], sampling_params={"max_new_tokens": 2})
    events = quick.log()[before:]
    assert [one["at"] for one in events] == sorted(one.pop("at") for one in events)
    assert events == [
        {"event": "start", "id": "a", "prompt_tokens": 1},
        {"event": "start", "id": "b", "prompt_tokens": 2},
        *(
            {
                "event": "end",
                "id": rid,
                "prompt_tokens": prompt,
                "tokens": 2,
                "versions": [[0, 2]],
                "how": "length",
            }
            for rid, prompt in (("a", 1), ("b", 2))
        ),
    ]


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("/abort_request", [], "body=[] is not an object"),
        ("/abort_request", {"abort_all": 1}, "abort_all=1 is not true or false"),
        ("/abort_request", {"rid": 7}, "rid=7 is not a string of at least one character"),
        ("/pause_generation", {"mode": "keep"}, "mode='keep' is not abort, retract or in_place"),
        ("/continue_generation", [], "body=[] is not an object"),
        ("/update_weights_from_disk", {}, "model_path=None is not a string of at least one character"),
        (
            "/update_weights_from_disk",
            {"model_path": "x", "weight_version": 3},
            "weight_version=3 is not a string of at least one character",
        ),
        (
            "/update_weights_from_disk",
            {"model_path": "x", "flush_cache": 0},
            "flush_cache=0 is not true or false",
        ),
    ],
)
def test_a_malformed_control_call_is_told_the_field_and_its_value(
    quick: EmbeddedServer, path: str, body: Any, problem: str
) -> None:
    assert call(quick, "POST", path, body) == (400, {"error": {"message": problem}})
