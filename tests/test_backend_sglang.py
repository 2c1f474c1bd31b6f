from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from areal_core._engine.backend import Piece, Reader, ReplyError
from areal_core._engine.backends import backend_named
from replies import an_ask, sglang

_BACKEND = backend_named("sglang")


def _reader(max_new_tokens: int = 64) -> Reader:
    return _BACKEND.reader(an_ask(max_new_tokens))


def _stream(events: list[bytes], max_new_tokens: int = 64) -> list[Piece | None]:
    reader = _reader(max_new_tokens)
    return [reader.event(event) for event in events]


def _piece(tokens: list[int], finish: str | None = None, label: int | None = None) -> Piece:
    return Piece(tokens, [-token / 8 for token in tokens], finish, label)


@pytest.mark.parametrize("finish", ["stop", "length", "abort", "whatever comes"])
def test_a_whole_reply_is_read(finish: str) -> None:
    assert _reader().whole(sglang([1, 2, 3], finish=finish)) == _piece([1, 2, 3], finish)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"output_ids": ...}, id="no-output-ids"),
        pytest.param({"output_ids": None}, id="null-output-ids"),
        pytest.param({"text": ...}, id="no-text"),
        pytest.param(
            {"meta": {"completion_tokens": ..., "id": ..., "weight_version": ...}}, id="bare-meta-info"
        ),
        pytest.param({"meta": {"completion_tokens": 7}}, id="counter-of-something-else"),
        pytest.param({"meta": {"weight_version": None, "new": {"deep": [1]}}}, id="new-field"),
        pytest.param({"meta": {"output_token_logprobs": [[0, 0], [-0.125, 1, "a", "b"]]}}, id="entries"),
        pytest.param({"error": None}, id="null-error"),
    ],
)
def test_fields_that_are_optional_may_be_missing_and_new_ones_there(changes: dict[str, Any]) -> None:
    assert _reader().whole(sglang([0, 1], finish="stop", **changes)) == _piece([0, 1], "stop")


@pytest.mark.parametrize("tokens", [[], [1, 2]])
def test_a_whole_abort_may_have_tokens_or_none(tokens: list[int]) -> None:
    assert _reader().whole(sglang(tokens, finish="abort")) == _piece(tokens, "abort")


@pytest.mark.parametrize(
    ("meta", "changes"),
    [
        ({"output_token_logprobs": ...}, {}),
        ({"output_token_logprobs": None}, {"output_ids": ...}),
        ({"completion_tokens": ..., "output_token_logprobs": ...}, {"output_ids": ...}),
    ],
)
def test_an_abort_before_prefill_has_neither_tokens_nor_log_probabilities(
    meta: dict[str, Any], changes: dict[str, Any]
) -> None:
    finish = {"type": "abort", "message": "Abort before prefill", "status_code": None}
    body = sglang([], finish=finish, meta=meta, **changes)
    assert _reader().whole(body) == _piece([], "abort")
    assert _reader().event(body) == _piece([], "abort")


@pytest.mark.parametrize("entries", [..., None, []])
def test_an_abort_without_log_probabilities_brings_no_tokens(entries: Any) -> None:
    body = sglang([1, 2], finish="abort", meta={"output_token_logprobs": entries})
    for read in (_reader().whole, _reader().event):
        assert read(body) == _piece([], "abort")


def _abort(ids: Any, entries: Any, counted: int, **meta: Any) -> bytes:
    if isinstance(entries, list):
        entries = [[-token / 8, token, None] for token in entries]
    meta = {"completion_tokens": counted, "output_token_logprobs": entries, **meta}
    return sglang([], finish="abort", output_ids=ids, meta=meta)


@pytest.mark.parametrize(
    ("ids", "entries", "kept"),
    [
        pytest.param([1, 2, 3], [1, 2], [1, 2], id="fewer-log-probabilities"),
        pytest.param([1, 2], [1, 2, 3], [1, 2], id="fewer-ids"),
        pytest.param([1, 9, 3], [1, 2, 3], [1], id="other-id"),
        pytest.param([3], [1, 2, 3], [], id="last-id"),
        pytest.param([], [1, 2], [], id="no-ids"),
    ],
)
def test_of_an_abort_whose_lists_disagree_the_tokens_that_both_begin_with_are_read(
    ids: list[int], entries: list[int], kept: list[int]
) -> None:
    for read in (_reader().whole, _reader().event):
        assert read(_abort(ids, entries, counted=3)) == _piece(kept, "abort")


@pytest.mark.parametrize(
    ("ids", "entries", "kept"),
    [
        pytest.param([1, 2, 3, 4], ..., [], id="no-log-probabilities"),
        pytest.param([3, 4], None, [], id="null-log-probabilities"),
        pytest.param([1, 2, 3, 4], [], [], id="empty-log-probabilities"),
        pytest.param([1, 2, 3, 4], [1, 2, 3], [3], id="one-log-probability-less"),
        pytest.param([3, 4], [1, 2, 3], [3], id="one-less-beside-new-ids"),
        pytest.param([1, 2, 3, 4], [1, 2], [], id="log-probabilities-of-before"),
        pytest.param(..., [1, 2], [], id="log-probabilities-of-before-alone"),
        pytest.param(..., [1], [], id="one-of-before-alone"),
        pytest.param(..., [4], [], id="one-that-may-be-any"),
        pytest.param([1, 2, 3, 4], [3], [3], id="first-new-log-probability"),
        pytest.param([1, 2, 3, 4], [4], [], id="last-new-log-probability"),
        pytest.param([4], [1, 2, 3, 4], [], id="last-id"),
        pytest.param([1, 2, 3], [1, 2, 3, 4], [3], id="one-id-less"),
        pytest.param([1, 2, 3, 9], [1, 2, 3, 4], [3], id="other-id"),
        pytest.param([1, 2, 3, 4], [1, 7, 3, 4], [], id="other-tokens-before"),
        pytest.param([1, 2, 3, 4], [1, 2, 3, 4], [3, 4], id="all"),
        pytest.param([3, 4], [3, 4], [3, 4], id="all-that-are-new"),
        pytest.param(..., [1, 2, 3, 4], [3, 4], id="all-log-probabilities-alone"),
        pytest.param(..., [3, 4], [3, 4], id="new-log-probabilities-alone"),
    ],
)
def test_an_abort_in_a_stream_brings_the_new_tokens_that_both_lists_have_and_none_in_a_wrong_place(
    ids: Any, entries: Any, kept: list[int]
) -> None:
    pieces = _stream([sglang([1, 2]), _abort(ids, entries, counted=4)])
    assert pieces == [_piece([1, 2]), _piece(kept, "abort")]


def test_tokens_of_an_abort_that_are_alike_are_not_taken_for_those_before_them() -> None:
    assert _stream([sglang([1]), _abort([1, 1, 1, 1], [1], counted=4)]) == [_piece([1]), _piece([], "abort")]


def test_what_is_read_of_an_abort_keeps_its_versions() -> None:
    spans = _spans(("4", 0, 2), ("5", 2, 4))
    assert _reader().whole(_abort([1, 2, 3, 4], [1, 2, 3], 4, **spans)).versions == [4, 4, 5]
    assert _reader().whole(_abort([1, 2, 3, 4], ..., 4, **spans)).versions is None


@pytest.mark.parametrize(
    ("before", "ids", "counted", "spans", "kept", "versions"),
    [
        pytest.param([], [1, 2, 3, 4, 5], 2, [(4, 0, 2)], [1, 2], [4, 4], id="at-first"),
        pytest.param([1, 2], [1, 2, 3, 4, 5], 3, [(4, 0, 2), (5, 2, 3)], [3], [5], id="all"),
        pytest.param([1, 2], [1, 2, 3, 4, 5], 3, [(4, 0, 2), (5, 2, 5)], [3], None, id="more-versions"),
        pytest.param([1, 2], [3, 4], 4, [(4, 0, 9)], [3, 4], None, id="versions-beyond-all"),
        pytest.param([1, 2], [3, 4], 4, [(4, 2, 4), (5, 0, 2)], [3, 4], None, id="out-of-order"),
        pytest.param([], [1, 2], 2, [(4, 0, 1)], [1, 2], None, id="fewer-versions"),
    ],
)
def test_an_abort_brings_no_more_than_it_counts_and_versions_only_if_they_are_of_those(
    before: list[int],
    ids: list[int],
    counted: int,
    spans: list[tuple[int, int, int]],
    kept: list[int],
    versions: list[int] | None,
) -> None:
    reader = _reader()
    if before:
        reader.event(sglang(before))
    expected = replace(_piece(kept, "abort"), versions=versions)
    assert reader.event(_abort(ids, ids, counted, **_spans(*spans))) == expected


def test_a_whole_abort_whose_versions_go_on_behind_its_tokens_is_read_without_them() -> None:
    assert _reader().whole(_abort([1, 2], [1, 2], 2, **_spans((4, 0, 3)))) == _piece([1, 2], "abort")


@pytest.mark.parametrize("spans", [[(4, 0, 4)], [(4, 1, 3), (5, 0, 1)]], ids=["too-long", "out-of-order"])
def test_a_reply_that_is_no_abort_is_refused_for_versions_that_disagree(
    spans: list[tuple[int, int, int]],
) -> None:
    body = sglang([1, 2, 3], finish="stop", meta=_spans(*spans))
    for read in (_reader().whole, _reader().event):
        with pytest.raises(ReplyError, match=r"^\$.meta_info.weight_versions"):
            read(body)


def test_a_stream_that_repeats_all_tokens_yields_the_new_ones() -> None:
    pieces = _stream(
        [
            sglang([]),
            sglang([1]),
            sglang([1, 2, 3]),
            sglang([1, 2, 3]),
            sglang([1, 2, 3, 4], finish="length"),
            b"[DONE]",
        ]
    )
    expected = [None, _piece([1]), _piece([2, 3]), None, _piece([4], "length"), None]
    assert pieces == expected


def test_a_stream_of_the_new_tokens_alone_yields_them() -> None:
    pieces = _stream(
        [
            sglang([1], meta={"completion_tokens": 1}),
            sglang([2, 3], meta={"completion_tokens": 3}),
            sglang([3], meta={"completion_tokens": 4}),
            sglang([], finish="stop", meta={"completion_tokens": 4}),
        ]
    )
    expected = [_piece([1]), _piece([2, 3]), _piece([3]), _piece([], "stop")]
    assert pieces == expected


def test_a_stream_may_repeat_one_list_and_not_the_other() -> None:
    pieces = _stream(
        [sglang([1]), sglang([1, 2, 3], output_ids=[2, 3]), sglang([1, 2, 3, 4], output_ids=[4])]
    )
    assert pieces == [_piece([1]), _piece([2, 3]), _piece([4])]
    pieces = _stream([sglang([1]), sglang([2, 3], output_ids=[1, 2, 3], meta={"completion_tokens": 3})])
    assert pieces == [_piece([1]), _piece([2, 3])]


@pytest.mark.parametrize("output_ids", [..., None])
def test_a_stream_without_output_ids_has_them_beside_the_log_probabilities(output_ids: Any) -> None:
    pieces = _stream([sglang([1], output_ids=output_ids), sglang([1, 2], output_ids=output_ids)])
    assert pieces == [_piece([1]), _piece([2])]


@pytest.mark.parametrize("meta", [{"completion_tokens": 0}, {"completion_tokens": ...}])
@pytest.mark.parametrize("output_ids", [[], [2], ...])
def test_an_abort_that_counts_no_tokens_takes_none_back(meta: dict[str, Any], output_ids: Any) -> None:
    abort = sglang([], finish="abort", meta={"output_token_logprobs": ..., **meta}, output_ids=output_ids)
    pieces = _stream([sglang([1, 2]), abort])
    assert pieces == [_piece([1, 2]), _piece([], "abort")]


@pytest.mark.parametrize("counted", [1, None])
def test_of_an_abort_that_does_not_count_them_tokens_are_not_read(counted: int | None) -> None:
    abort = sglang([1, 2, 3, 4], finish="abort", meta={"completion_tokens": counted})
    assert _stream([sglang([1, 2]), abort]) == [_piece([1, 2]), _piece([], "abort")]


def test_an_abort_keeps_the_tokens_that_came_with_it() -> None:
    pieces = _stream([sglang([1]), sglang([1, 2, 3], finish="abort")])
    assert pieces == [_piece([1]), _piece([2, 3], "abort")]


@pytest.mark.parametrize(
    ("label", "version"), [("3", 3), (3, 3), ("default", None), (None, None), (..., None)]
)
def test_the_weight_version_is_a_label_if_it_is_an_integer(label: Any, version: int | None) -> None:
    body = sglang([1], finish="stop", meta={"weight_version": label})
    assert _reader().whole(body) == _piece([1], "stop", version)
    assert _reader().event(body) == _piece([1], "stop", version)
    empty = sglang([], finish="abort", meta={"weight_version": label})
    assert _reader().event(empty) == _piece([], "abort", version)


def _spans(*spans: tuple[Any, int, int]) -> dict[str, Any]:
    return {"weight_versions": [{"version": v, "start": start, "end": end} for v, start, end in spans]}


def test_a_server_may_tell_the_version_of_each_token() -> None:
    body = sglang([1, 2, 3], finish="stop", meta=_spans(("4", 0, 1), ("5", 1, 3)) | {"weight_version": "5"})
    assert _reader().whole(body) == replace(_piece([1, 2, 3], "stop", 5), versions=[4, 5, 5])
    body = sglang([1], finish="stop", meta=_spans(("default", 0, 1)))
    assert _reader().whole(body).versions is None
    pieces = _stream(
        [sglang([1], meta=_spans(("4", 0, 1))), sglang([1, 2, 3], meta=_spans(("4", 0, 2), ("5", 2, 3)))]
    )
    assert [piece and piece.versions for piece in pieces] == [[4], [4, 5]]
    with pytest.raises(ReplyError, match=r"^\$.meta_info.weight_versions ends at token 2, of 1"):
        _reader().whole(sglang([1], finish="stop", meta=_spans(("4", 0, 2))))


@pytest.mark.parametrize("data", [b"[DONE]", b" [DONE]\n", b"", b"  "])
def test_the_end_of_a_stream_adds_nothing(data: bytes) -> None:
    assert _reader().event(data) is None


def test_log_probabilities_that_were_rounded_up_are_zero() -> None:
    body = sglang([1, 2], finish="stop", meta={"output_token_logprobs": [[1e-7, 1, None], [-0.5, 2, None]]})
    piece = _reader().whole(body)
    assert piece.logprobs == [0.0, -0.5]


_BAD_ENTRIES: list[Any] = [
    [-0.5],
    [],
    {},
    [None, 1],
    [-9999.0, 1],
    [-10_000, 1],
    [0.02, 1],
    [True, 1],
    ["-1", 1],
]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"[" + sglang([1], finish="stop") + b"]", "Expected `object`, got `array`", id="batch"),
        pytest.param(b"{}", r"^\$.meta_info is missing", id="nothing-in-it"),
        pytest.param(sglang([1]), "no finish reason", id="unfinished"),
        pytest.param(sglang([]), "no finish reason", id="unfinished-and-empty"),
        pytest.param(sglang([1], finish={"type": ""}), r"\$.meta_info.finish_reason.type", id="empty-finish"),
        pytest.param(sglang([1], finish={"type": "x" * 101}), "finish_reason.type", id="long-finish"),
        pytest.param(sglang([1], finish={}), "finish_reason", id="finish-without-type"),
        pytest.param(
            sglang([], finish="stop"), "has no tokens, and its finish reason is 'stop'", id="no-tokens"
        ),
        pytest.param(
            sglang([1, 2], finish="stop", meta={"output_token_logprobs": ...}),
            r"^\$.meta_info.output_token_logprobs is missing",
            id="no-log-probabilities",
        ),
        pytest.param(
            sglang([1, 2], finish="stop", output_ids=[1]),
            r"\$.output_ids has 1 entries, of 2 tokens",
            id="fewer-ids",
        ),
        pytest.param(
            sglang([1, 2], finish="stop", output_ids=[1, 2, 3]),
            r"output_token_logprobs has 2 entries, of 3 tokens",
            id="fewer-log-probabilities",
        ),
        pytest.param(
            sglang([1, 2], finish="stop", output_ids=[1, 3]),
            r"\$.output_ids has other tokens than \$.meta_info.output_token_logprobs",
            id="other-ids",
        ),
        pytest.param(
            sglang(range(5), finish="stop"), "has 5 tokens; at most 4 were asked for", id="too-many"
        ),
        *(
            pytest.param(
                sglang([1], finish="stop", meta={"output_token_logprobs": [entry]}),
                r"\$.meta_info.output_token_logprobs\[0\]",
                id=f"entry-{entry}",
            )
            for entry in _BAD_ENTRIES
        ),
        *(
            pytest.param(
                sglang(
                    [], finish="stop", output_ids=[token], meta={"output_token_logprobs": [[0, token, None]]}
                ),
                r"\$.(output_ids\[0\]|meta_info.output_token_logprobs\[0\]\[1\])",
                id=f"token-{str(token)[:5]}",
            )
            for token in (-1, 2**63, 10**300, 1.0, True, "1", None)
        ),
        pytest.param(
            sglang([1], finish="stop").replace(b"-0.125", b"NaN"), "malformed", id="log-probability-nan"
        ),
        pytest.param(
            sglang([1], finish="stop").replace(b"-0.125", b"-Infinity"), "malformed", id="log-probability-inf"
        ),
        pytest.param(
            sglang([1], finish="stop").replace(b"-0.125", b"-1e999"),
            "out of range",
            id="log-probability-huge",
        ),
        pytest.param(
            sglang([1], finish="stop", meta={"weight_version": [1]}), "weight_version", id="list-as-label"
        ),
    ],
)
def test_a_reply_that_makes_no_sense_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(ReplyError, match=words):
        _reader(4).whole(body)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        pytest.param(
            [sglang([1], meta={"completion_tokens": ...})], "completion_tokens is missing", id="no-counter"
        ),
        pytest.param(
            [sglang([1]), sglang([1], meta={"completion_tokens": -1})],
            "completion_tokens",
            id="negative-counter",
        ),
        pytest.param(
            [sglang([1, 2]), sglang([1])], r"completion_tokens is 1, after 2 tokens", id="counter-that-falls"
        ),
        pytest.param(
            [sglang([1]), sglang([3], meta={"completion_tokens": 3})],
            "output_token_logprobs has 1 entries, of 3 tokens with 2 new",
            id="lost-tokens",
        ),
        pytest.param(
            [sglang([1]), sglang([1, 2, 3], output_ids=[3])], "output_ids has 1 entries", id="lost-ids"
        ),
        pytest.param(
            [sglang([1]), sglang([1, 2], output_ids=[9])], "output_ids has other tokens", id="other-ids"
        ),
        pytest.param(
            [sglang([1]), sglang([1, 2], meta={"output_token_logprobs": ...})], "is missing", id="no-entries"
        ),
        pytest.param(
            [sglang([1]), sglang([1, 2], meta={"output_token_logprobs": [[-0.125, 1, None], [1, 2, None]]})],
            r"in \$.meta_info.output_token_logprobs: .*<= 0.01",
            id="new-entry",
        ),
        pytest.param([sglang([1]), sglang([1, -1])], r"in \$.output_ids: .*>= 0", id="new-id"),
        pytest.param([sglang([1, 2]), sglang([1, 2, 3, 4, 5])], "has 5 tokens; at most 4", id="too-many"),
        pytest.param([sglang([1], finish="stop"), sglang([1, 2])], "goes on behind", id="more-after-the-end"),
        pytest.param(
            [sglang([1], finish="stop"), sglang([1], finish="stop")], "goes on behind", id="two-ends"
        ),
        pytest.param([sglang([], finish="stop")], "has no tokens, and its", id="no-tokens"),
        pytest.param(
            [sglang([1]), sglang([1, 2], output_ids=3)], r"in \$.output_ids: .*got `int`", id="no-list"
        ),
        pytest.param([b"[1]"], "Expected `object`", id="no-object"),
        pytest.param([b"data: {}"], "malformed", id="no-json"),
    ],
)
def test_an_event_that_makes_no_sense_is_refused(events: list[bytes], words: str) -> None:
    reader = _reader(4)
    for event in events[:-1]:
        reader.event(event)
    with pytest.raises(ReplyError, match=words):
        reader.event(events[-1])


@pytest.mark.parametrize("form", ["whole", "event"])
@pytest.mark.parametrize(
    ("body", "words", "status"),
    [
        (json.dumps({"error": {"message": "too long"}}).encode(), "the server says: too long", None),
        (json.dumps({"error": {"message": "full", "code": 503}}).encode(), "the server says: full", 503),
        (sglang([1], finish="stop", error="broken"), "the server says: broken", None),
        (
            sglang(
                [], finish={"type": "abort", "message": "too long", "status_code": 400, "err_type": "Bad"}
            ),
            "the server says: too long",
            400,
        ),
        (
            sglang([1], finish={"type": "abort", "message": "queue full", "status_code": 503}),
            "the server says: queue full",
            503,
        ),
        (sglang([], finish={"type": "abort", "status_code": 500}), "the server says: abort", 500),
    ],
)
def test_a_failure_inside_a_200_is_told_with_the_servers_words_and_status(
    form: str, body: bytes, words: str, status: int | None
) -> None:
    with pytest.raises(ReplyError) as caught:
        getattr(_reader(), form)(body)
    assert (str(caught.value), caught.value.status) == (words, status)


@pytest.mark.parametrize("status", [200, 399])
def test_an_abort_that_is_no_failure_says_so_by_its_status(status: int) -> None:
    body = sglang([1], finish={"type": "abort", "message": "Abort", "status_code": status})
    assert _reader().whole(body) == _piece([1], "abort")
