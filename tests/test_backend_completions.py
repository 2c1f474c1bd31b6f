from __future__ import annotations

import json
import re
from typing import Any

import pytest

from areal_core._engine.backend import Backend, Piece, Reader, ReplyError
from areal_core._engine.backends import backend_named
from areal_core._engine.backends._tally import Tally
from replies import an_ask, completion

_BACKENDS = {
    "openai": backend_named("openai"),
    "vllm": backend_named("vllm"),
    "tokens": backend_named("vllm").variant(405),
}


@pytest.fixture(params=_BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return _BACKENDS[request.param]


def _reader(max_new_tokens: int = 64) -> Reader:
    return _BACKENDS["vllm"].reader(an_ask(max_new_tokens))


def _stream(events: list[bytes]) -> list[Piece | None]:
    reader = _reader()
    return [reader.event(event) for event in events]


def _piece(tokens: list[int], finish: str | None = None, versions: list[int] | None = None) -> Piece:
    return Piece(tokens, [-token / 8 for token in tokens], finish, None, versions)


@pytest.mark.parametrize("finish", ["stop", "length", "abort", "whatever comes"])
def test_a_whole_completion_is_read(backend: Backend, finish: str) -> None:
    assert backend.reader(an_ask()).whole(completion([1, 2, 3], finish=finish)) == _piece([1, 2, 3], finish)


def test_a_stream_yields_the_tokens_of_each_event(backend: Backend) -> None:
    reader = backend.reader(an_ask())
    events = [
        completion([], logprobs=None),
        completion([1]),
        completion([2, 3]),
        completion([1], finish="length"),
        b'{"choices": [], "usage": {"total_tokens": 7}}',
        b"[DONE]",
    ]
    expected = [None, _piece([1]), _piece([2, 3]), _piece([1], "length"), None, None]
    assert [reader.event(event) for event in events] == expected


_TEXTS = {"tokens": ["a", "b"], "token_logprobs": [-0.125, -0.25]}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="all"),
        pytest.param({"logprobs": "chat"}, id="chat"),
        pytest.param({"token_ids": ..., "response_token_ids": [1, 2]}, id="other-name"),
        pytest.param({"token_ids": None, "response_token_ids": [1, 2]}, id="other-name-beside-null"),
        pytest.param({"token_ids": ...}, id="ids-as-texts"),
        pytest.param({"token_ids": None, "response_token_ids": None}, id="ids-as-texts-beside-nulls"),
        pytest.param({"token_ids": ..., "logprobs": "chat"}, id="ids-as-texts-in-chat"),
        pytest.param({"logprobs": _TEXTS}, id="texts"),
        pytest.param({"logprobs": {"token_logprobs": [-0.125, -0.25]}}, id="no-texts"),
        pytest.param({"index": ..., "text": ..., "stop_reason": ...}, id="bare"),
        pytest.param({"text": None, "prompt_token_ids": [5, 6, 7], "new": [[1]]}, id="new-field"),
        pytest.param({"weight_versions": None}, id="null-versions"),
        pytest.param({"weight_versions": []}, id="empty-versions"),
    ],
)
def test_ids_and_log_probabilities_are_where_servers_put_them(changes: dict[str, Any]) -> None:
    body = completion([1, 2], finish="stop", **changes)
    assert _reader().whole(body) == _piece([1, 2], "stop")
    assert _reader().event(body) == _piece([1, 2], "stop")


_EMPTY: list[dict[str, Any]] = [
    {},
    {"logprobs": None},
    {"token_ids": ..., "logprobs": None},
    {"token_ids": ..., "logprobs": {"tokens": [], "token_logprobs": []}},
]


@pytest.mark.parametrize("changes", _EMPTY)
def test_an_abort_may_have_no_tokens(changes: dict[str, Any]) -> None:
    body = completion([], finish="abort", **changes)
    assert _reader().whole(body) == _piece([], "abort")
    assert _reader().event(body) == _piece([], "abort")


@pytest.mark.parametrize("changes", _EMPTY)
@pytest.mark.parametrize("finish", ["stop", "abort"])
def test_the_last_event_may_bring_no_more_than_the_end(finish: str, changes: dict[str, Any]) -> None:
    pieces = _stream([completion([1]), completion([], finish=finish, **changes)])
    assert pieces == [_piece([1]), _piece([], finish)]


_LOGPROBS = {"tokens": ["a"], "token_logprobs": [-1.0]}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(completion([1], finish="stop", token_ids=..., logprobs=_LOGPROBS), id="texts"),
        pytest.param(completion([1], finish="stop", token_ids=..., logprobs=None), id="text-alone"),
        pytest.param(completion([], finish="stop", token_ids=..., logprobs=None), id="nothing"),
        pytest.param(
            completion([1], finish="stop", token_ids=..., logprobs={"token_logprobs": [-1]}),
            id="numbers-alone",
        ),
        pytest.param(
            completion([1], finish="stop", token_ids=..., logprobs=_LOGPROBS, text=""), id="half-a-letter"
        ),
    ],
)
def test_a_server_that_gives_no_ids_is_told_what_it_lacks(backend: Backend, body: bytes) -> None:
    for form in ("whole", "event"):
        with pytest.raises(
            ReplyError, match=r"no token ids: .*`return_token_ids` or `return_tokens_as_token_ids`"
        ):
            getattr(backend.reader(an_ask()), form)(body)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        pytest.param({"logprobs": None}, [], id="no-log-probabilities"),
        pytest.param({"logprobs": {}}, [], id="empty-log-probabilities"),
        pytest.param({"logprobs": {"token_logprobs": [-0.125]}}, [1], id="one-log-probability-less"),
        pytest.param({"token_ids": [1]}, [1], id="one-id-less"),
        pytest.param({"token_ids": ..., "logprobs": None}, [], id="text-alone"),
        pytest.param({"token_ids": ..., "logprobs": _TEXTS, "text": ""}, [], id="half-a-letter"),
    ],
)
def test_of_an_abort_whose_lists_disagree_the_tokens_that_both_begin_with_are_read(
    backend: Backend, changes: dict[str, Any], kept: list[int]
) -> None:
    abort = completion([1, 2], finish="abort", **changes)
    assert backend.reader(an_ask()).whole(abort) == _piece(kept, "abort")
    reader = backend.reader(an_ask())
    assert [reader.event(completion([7])), reader.event(abort)] == [_piece([7]), _piece(kept, "abort")]


def test_what_is_read_of_an_abort_keeps_its_versions() -> None:
    fields: dict[str, Any] = {"finish": "abort", "weight_versions": _spans(("4", 0, 1), ("5", 1, 2))}
    assert _reader().whole(completion([1, 2], logprobs={"token_logprobs": [-1]}, **fields)).versions == [4]
    assert _reader().whole(completion([1, 2], logprobs=None, **fields)).versions is None


@pytest.mark.parametrize(
    "spans",
    [[("4", 0, 3)], [("4", 1, 2), ("5", 0, 1)], [("4", 0, 1)]],
    ids=["too-long", "out-of-order", "too-short"],
)
def test_an_abort_whose_versions_are_not_of_its_tokens_is_read_without_them(
    spans: list[tuple[Any, int, int]],
) -> None:
    body = completion([1, 2], finish="abort", weight_versions=_spans(*spans))
    for read in (_reader().whole, _reader().event):
        assert read(body) == _piece([1, 2], "abort")


def test_no_piece_has_more_or_fewer_versions_than_tokens() -> None:
    for versions in ([4], [4, 4, 4]):
        with pytest.raises(ReplyError, match=rf"has 2 token ids and {len(versions)} versions"):
            Tally(an_ask()).piece([1, 2], [-1.0, -1.0], "stop", versions=versions)


def test_an_event_with_nothing_in_it_adds_nothing() -> None:
    assert _reader().event(completion([], token_ids=..., logprobs=None)) is None


def test_texts_behind_ids_are_no_end() -> None:
    reader = _reader()
    reader.event(completion([1]))
    with pytest.raises(ReplyError, match="no token ids"):
        reader.event(completion([], finish="stop", token_ids=..., logprobs=None, text="a"))


def _spans(*spans: tuple[Any, int, int]) -> list[dict[str, Any]]:
    return [{"version": version, "start": start, "end": end} for version, start, end in spans]


@pytest.mark.parametrize(
    ("spans", "versions"),
    [
        (_spans(("4", 0, 3)), [4, 4, 4]),
        (_spans((4, 0, 1), ("5", 1, 3)), [4, 5, 5]),
        (_spans((4, 0, 1), (5, 1, 1), (6, 1, 3)), [4, 6, 6]),
        (_spans((0, 0, 3)), [0, 0, 0]),
        (_spans(("default", 0, 3)), None),
        (_spans(("default", 0, 1), (5, 1, 3)), None),
        (_spans((None, 0, 3)), None),
        (_spans((4, 1, 3)), None),
        (_spans((4, 0, 2)), None),
        (_spans((4, 0, 1), (5, 2, 3)), None),
        ([{"start": 0, "end": 3}], None),
    ],
)
def test_spans_give_each_token_its_version_or_none_has_one(
    spans: list[dict[str, Any]], versions: list[int] | None
) -> None:
    body = completion([1, 2, 3], finish="stop", weight_versions=spans)
    assert _reader().whole(body) == _piece([1, 2, 3], "stop", versions)


@pytest.mark.parametrize(
    "spans",
    [
        pytest.param([_spans((4, 0, 2)), _spans((4, 2, 3), (5, 3, 5)), _spans((5, 5, 6))], id="of-the-event"),
        pytest.param(
            [_spans((4, 0, 2)), _spans((4, 0, 3), (5, 3, 5)), _spans((4, 0, 3), (5, 3, 6))], id="of-all"
        ),
        pytest.param(
            [_spans((4, 0, 2)), _spans((4, 0, 1), (5, 1, 3)), _spans((5, 0, 1))], id="from-the-event"
        ),
    ],
)
def test_spans_of_an_event_count_from_the_beginning_of_the_reply_or_of_the_event(
    spans: list[list[dict[str, Any]]],
) -> None:
    tokens = [[1, 2], [3, 4, 5], [6]]
    pieces = _stream([completion(t, weight_versions=s) for t, s in zip(tokens, spans, strict=True)])
    assert pieces == [
        _piece([1, 2], None, [4, 4]),
        _piece([3, 4, 5], None, [4, 5, 5]),
        _piece([6], None, [5]),
    ]


def test_spans_of_the_whole_reply_may_come_with_an_end_that_brings_no_tokens() -> None:
    pieces = _stream([completion([1]), completion([], finish="stop", weight_versions=_spans((4, 0, 1)))])
    assert pieces == [_piece([1]), _piece([], "stop")]


@pytest.mark.parametrize(
    "spans",
    [
        pytest.param(_spans((4, 0, 4)), id="too-long"),
        pytest.param(_spans((4, 0, 10**18), (5, 0, 3)), id="much-too-long"),
        pytest.param(_spans((4, 2, 1), (4, 1, 3)), id="backwards"),
        pytest.param(_spans((4, 1, 3), (5, 0, 1)), id="not-sorted"),
        pytest.param(_spans((4, 0, 2), (5, 1, 3)), id="overlapping"),
        pytest.param(_spans((4, -1, 3)), id="negative"),
        pytest.param(_spans((4, 0, 2**64)), id="huge"),
        pytest.param([{"version": 4, "start": 0}], id="no-end"),
        pytest.param(_spans(([4], 0, 3)), id="list-as-label"),
    ],
)
def test_spans_that_make_no_sense_are_refused(spans: list[dict[str, Any]]) -> None:
    with pytest.raises(ReplyError, match=r"\$.choices\[0\].weight_versions"):
        _reader().whole(completion([1, 2, 3], finish="stop", weight_versions=spans))


def test_log_probabilities_that_were_rounded_up_are_zero() -> None:
    body = completion([1, 2], finish="stop", logprobs={"token_logprobs": [-0.5, 1e-7]})
    assert _reader().whole(body).logprobs == [-0.5, 0.0]


def _with(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


_CHOICE = json.loads(completion([1], finish="stop"))["choices"][0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"[]", "Expected `object`", id="no-object"),
        pytest.param(b"{}", r"^\$.choices is missing", id="nothing-in-it"),
        pytest.param(_with(choices=None), r"^\$.choices is missing", id="null-choices"),
        pytest.param(_with(choices=[]), "no finish reason", id="no-choice"),
        pytest.param(_with(choices=[_CHOICE, _CHOICE]), "more than the one choice", id="two-choices"),
        pytest.param(completion([1], finish="stop", index=1), "more than the one choice", id="second-choice"),
        pytest.param(completion([1]), "no finish reason", id="unfinished"),
        pytest.param(completion([1], finish=""), "finish_reason", id="empty-finish"),
        pytest.param(
            completion([], finish="stop"), "no tokens, and its finish reason is 'stop'", id="no-tokens"
        ),
        pytest.param(completion([1], finish="stop", logprobs=None), "logprobs is missing", id="no-logprobs"),
        pytest.param(completion([1], finish="stop", logprobs={}), "logprobs is missing", id="empty-logprobs"),
        pytest.param(
            completion([1, 2], finish="stop", token_ids=[1]),
            "has 1 token ids and 2 log-probabilities",
            id="fewer-ids",
        ),
        pytest.param(
            completion([1, 2], finish="stop", logprobs={"token_logprobs": [-1.0]}),
            "has 2 token ids and 1 log-probabilities",
            id="fewer-logprobs",
        ),
        pytest.param(completion(range(5), finish="stop"), "has 5 tokens; at most 4", id="too-many"),
        *(
            pytest.param(
                completion([1], finish="stop", logprobs={"token_logprobs": [logprob]}),
                r"\$.choices\[0\].logprobs.token_logprobs\[0\]",
                id=f"logprob-{logprob}",
            )
            for logprob in (-9999.0, None, 0.02, True, "-1")
        ),
        pytest.param(
            completion([1], finish="stop", logprobs={"content": [{"token": "a", "logprob": -9999.0}]}),
            r"\$.choices\[0\].logprobs.content\[0\].logprob",
            id="logprob-in-chat",
        ),
        *(
            pytest.param(
                completion([1], finish="stop", token_ids=[token]),
                r"\$.choices\[0\].token_ids\[0\]",
                id=f"token-{str(token)[:5]}",
            )
            for token in (-1, 2**63, 10**300, 1.0, True, "1", None)
        ),
        *(
            pytest.param(
                completion(
                    [1, 1],
                    finish="stop",
                    token_ids=...,
                    logprobs={"tokens": ["token_id:1", text], "token_logprobs": [-1, -1]},
                ),
                rf"(^|\s){re.escape(repr(text[:40]))} among tokens that are given as token_id:<number> is no",
                id=f"text-{text[:20]}",
            )
            for text in (
                "a",
                "1",
                "token_id:",
                "token_id:-1",
                "token_id:1_0",
                "token_id:٣",
                "token_id: 1",
                f"token_id:{2**63}",
                f"token_id:{1:020}",
                "token_id:" + "9" * 5_000,
            )
        ),
    ],
)
def test_a_completion_that_makes_no_sense_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(ReplyError, match=words):
        _reader(4).whole(body)


def test_the_largest_id_is_read_from_a_text() -> None:
    logprobs = {"tokens": [f"token_id:{2**63 - 1}"], "token_logprobs": [0]}
    piece = _reader().whole(completion([1], finish="stop", token_ids=..., logprobs=logprobs))
    assert piece.tokens == [2**63 - 1]


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (completion([1, 2]), "has 5 tokens; at most 4"),
        (completion([1], index=1), "more than the one choice"),
    ],
)
def test_an_event_that_makes_no_sense_is_refused(last: bytes, words: str) -> None:
    reader = _reader(4)
    reader.event(completion([1, 2, 3]))
    with pytest.raises(ReplyError, match=words):
        reader.event(last)


def test_nothing_comes_behind_the_end() -> None:
    reader = _reader()
    reader.event(completion([1], finish="stop"))
    assert reader.event(completion([], logprobs=None)) is None
    with pytest.raises(ReplyError, match="goes on behind its finish reason"):
        reader.event(completion([1]))


@pytest.mark.parametrize("form", ["whole", "event"])
@pytest.mark.parametrize(
    ("body", "words", "status"),
    [
        (_with(error={"message": "full", "type": "x", "code": 503}), "the server says: full", 503),
        (_with(error="broken", choices=[_CHOICE]), "the server says: broken", None),
    ],
)
def test_a_failure_inside_a_200_is_told_with_the_servers_words_and_status(
    form: str, body: bytes, words: str, status: int | None
) -> None:
    with pytest.raises(ReplyError) as caught:
        getattr(_reader(), form)(body)
    assert (str(caught.value), caught.value.status) == (words, status)
