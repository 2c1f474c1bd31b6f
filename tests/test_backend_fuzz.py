"""Spoilt replies, a hundred thousand of them and some that are searched for: nothing but ReplyError comes."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_core._engine.backend import Backend, Piece, ReplyError
from areal_core._engine.backends import backend_named
from replies import an_ask, completion, sglang

_SGLANG, _VLLM, _OPENAI = map(backend_named, ("sglang", "vllm", "openai"))
_MOST = 8

_SPANS = [{"version": "4", "start": 0, "end": 2}, {"version": 5, "start": 2, "end": 3}]

# Each is one stream, or one reply.
_SGLANG_REPLIES = [
    [sglang([1, 2, 3], finish={"type": "stop", "matched": 3}, meta={"weight_version": "4"})],
    [sglang([1, 2, 3], finish="length", meta={"weight_versions": _SPANS})],
    [sglang([], finish={"type": "abort", "message": "Abort before prefill", "status_code": None})],
    [sglang([1]), sglang([1, 2, 3]), sglang([1, 2, 3, 4], finish="length")],
    [sglang([1]), sglang([2, 3], meta={"completion_tokens": 3}), sglang([1, 2, 3], finish="abort")],
    [b'{"error": {"message": "too long", "code": 400}}'],
]
_COMPLETIONS = [
    [completion([1, 2, 3], finish="stop")],
    [completion([1, 2, 3], finish="stop", token_ids=...)],
    [completion([1, 2, 3], finish="length", logprobs="chat", weight_versions=_SPANS)],
    [completion([1]), completion([2, 3]), completion([4], finish="length")],
    [completion([], finish="abort", logprobs=None)],
    [b'{"error": {"message": "too long", "code": 400}}'],
]
_UPDATES = [
    b'{"success": true, "message": "Succeeded", "num_paused_requests": 0}',
    b'{"success": false, "message": "no such file"}',
]
_INFOS = [
    b'{"model_path": "m", "weight_version": "4", "is_generation": true}',
    b'{"weight_version": null, "version": 4, "history": [1, 2]}',
]

_NASTY = (
    *(b"null", b"true", b"false", b'""', b"[]", b"{}", b"[[]]", b'[{"a":1}]', b'{"type":"abort"}', b"NaN"),
    *(b"-Infinity", b"-0.0", b"1e-320", b"1e999", b"-1e999", b"1.5", b"-9999.0", b"0.005", b"-1", b"007"),
    *(b"9223372036854775807", b"9223372036854775808", b"1" + b"0" * 400, b"-1" + b"0" * 400, b"9" * 5000),
    *(b'"4"', b'"token_id:1"', b'"token_id:-1"', b'"token_id:99999999999999999999"', b'"token_id:"'),
    *(b'"\xff"', b'"\xc3"', b'"\\ud800"', b'"\\u0000"', b"\xed\xa0\x80", b"\x00", b"'a'", b"\xef\xbb\xbf"),
)
# A key and its value, if that is not nested, or an item of a list; or a bracket.
_PART = re.compile(rb'(?:"[^"]*": )?(?:"[^"]*"|-?\d[\d.e-]*|null|true|false)(?:, )?|[][{}]')
_VALUE = re.compile(rb'"[^"]*"(?!:)|-?\d[\d.e-]*|null|true|false|\[[^][]*\]|\{[^{}]*\}')


class _Mutator:
    """Spoils replies, the same ones in every run."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._found: dict[tuple[re.Pattern[bytes], bytes], list[tuple[int, int]]] = {}
        self._ways: list[Callable[[bytes], bytes]] = [
            self._flip,
            self._cut,
            self._drop,
            self._repeat,
            self._replace,
            self._replace,
            self._swap,
        ]

    def spoil(self, reply: bytes) -> bytes:
        """Return *reply* spoilt in one or two ways; one in 500 is nested too deep instead."""
        if self._random.random() < 0.002:
            return self._nest(reply)
        spoilt = self._random.choice(self._ways)(reply)
        return self._flip(spoilt) if self._random.random() < 0.05 else spoilt

    def stream(self, replies: list[bytes]) -> list[bytes]:
        """Return *replies* with at least one of them spoilt, dropped, or come twice."""
        at = self._random.randrange(len(replies))
        chance = self._random.random()
        if chance < 0.9 or len(replies) == 1:
            return [*replies[:at], self.spoil(replies[at]), *replies[at + 1 :]]
        return [*replies[:at], *replies[at + 1 :]] if chance < 0.95 else [*replies, replies[at]]

    def _flip(self, reply: bytes) -> bytes:
        spoilt = bytearray(reply)
        for _ in range(self._random.randint(1, 3)):
            if spoilt:
                spoilt[self._random.randrange(len(spoilt))] ^= 1 << self._random.randrange(8)
        return bytes(spoilt)

    def _cut(self, reply: bytes) -> bytes:
        return reply[: self._random.randrange(len(reply))]

    def _drop(self, reply: bytes) -> bytes:
        start, end = self._place(_PART, reply)
        return reply[:start] + reply[end:]

    def _repeat(self, reply: bytes) -> bytes:
        start, end = self._place(_PART, reply)
        return reply[:end] + reply[start:]

    def _replace(self, reply: bytes) -> bytes:
        start, end = self._place(_VALUE, reply)
        return reply[:start] + self._random.choice(_NASTY) + reply[end:]

    def _swap(self, reply: bytes) -> bytes:
        (a, b), (c, d) = sorted((self._place(_VALUE, reply), self._place(_VALUE, reply)))
        return reply if b > c else reply[:a] + reply[c:d] + reply[b:c] + reply[a:b] + reply[d:]

    def _nest(self, reply: bytes) -> bytes:
        start, end = self._place(_VALUE, reply)
        opening, closing = self._random.choice(((b"[", b"]"), (b'{"a":', b"}")))
        return reply[:start] + opening * 2_000 + reply[start:end] + closing * 2_000 + reply[end:]

    def _place(self, pattern: re.Pattern[bytes], reply: bytes) -> tuple[int, int]:
        places = self._found.get((pattern, reply))
        if places is None:
            places = [match.span() for match in pattern.finditer(reply)]
            self._found[pattern, reply] = places
        return self._random.choice(places)


def _check(piece: Piece) -> None:
    """Assert that *piece* is one that the port allows."""
    count = len(piece.tokens)
    assert len(piece.logprobs) == count
    assert set(map(type, piece.tokens)) <= {int}
    assert set(map(type, piece.logprobs)) <= {float}
    assert all(0 <= token < 2**63 for token in piece.tokens)
    assert all(math.isfinite(logprob) and -9999 < logprob <= 0 for logprob in piece.logprobs)
    assert piece.finish is None or 0 < len(piece.finish) <= 100
    assert piece.tokens or piece.finish is not None
    labels = [piece.label] if piece.label is not None else []
    if piece.versions is not None:
        assert len(piece.versions) == count > 0
        labels += piece.versions
    assert all(type(label) is int and 0 <= label < 2**63 for label in labels)


def _check_error(error: ReplyError) -> None:
    """Assert that *error* says something, and not too much."""
    assert 0 < len(str(error)) <= 600
    assert error.status is None or 400 <= error.status <= 599


def _read_whole(backend: Backend, body: bytes) -> bool:
    """Return whether *body* is a reply."""
    try:
        piece = backend.reader(an_ask(_MOST)).whole(body)
    except ReplyError as error:
        _check_error(error)
        return False
    _check(piece)
    assert piece.finish is not None
    assert piece.tokens or piece.finish == "abort"
    assert len(piece.tokens) <= _MOST
    return True


def _read_stream(backend: Backend, events: list[bytes]) -> bool:
    """Return whether *events* are a stream, though perhaps one without its end."""
    reader = backend.reader(an_ask(_MOST))
    pieces: list[Piece] = []
    for event in events:
        try:
            piece = reader.event(event)
        except ReplyError as error:
            _check_error(error)
            return False
        if piece is not None:
            _check(piece)
            pieces.append(piece)
    assert sum(len(piece.tokens) for piece in pieces) <= _MOST
    assert all(piece.finish is None for piece in pieces[:-1])
    return True


@pytest.mark.parametrize(
    ("backend", "replies"),
    [
        pytest.param(_SGLANG, _SGLANG_REPLIES, id="sglang"),
        pytest.param(_VLLM, _COMPLETIONS, id="vllm"),
        pytest.param(_VLLM.variant(405), _COMPLETIONS, id="vllm-tokens"),
        pytest.param(_OPENAI, _COMPLETIONS, id="openai"),
    ],
)
def test_of_ninety_thousand_spoilt_replies_none_raises_anything_but_a_reply_error(
    backend: Backend, replies: list[list[bytes]]
) -> None:
    mutator = _Mutator(1)
    read = refused = 0
    for _ in range(22_500 // len(replies)):
        for events in replies:
            spoilt = mutator.stream(events)
            good = _read_stream(backend, spoilt) if len(spoilt) > 1 else _read_whole(backend, spoilt[0])
            read += good
            refused += not good
    assert read + refused == 22_500
    assert read > 2_000
    assert refused > 5_000


@pytest.mark.parametrize(
    ("parse", "bodies", "kind"),
    [
        pytest.param(_SGLANG.check_update, _UPDATES * 2, str, id="sglang-update"),
        pytest.param(_SGLANG.read_weight_version, _INFOS, int, id="sglang-version"),
        pytest.param(_VLLM.read_weight_version, _INFOS, int, id="vllm-version"),
    ],
)
def test_of_ten_thousand_spoilt_answers_to_control_calls_none_raises_anything_but_a_reply_error(
    parse: Callable[[bytes], object], bodies: list[bytes], kind: type
) -> None:
    mutator = _Mutator(2)
    seen: set[type] = set()
    for _ in range(1_250):
        for body in bodies:
            try:
                seen.add(type(parse(mutator.spoil(body))))
            except ReplyError:
                seen.add(ReplyError)
    assert seen == {kind, type(None), ReplyError}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("4"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _fields(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container in *value* with each of its keys or indices."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield value, key
        yield from _fields(one)


@st.composite
def _changed(draw: st.DrawFn, replies: list[list[bytes]]) -> list[bytes]:
    """Draw one of *replies* with one to three of its fields changed, or gone."""
    decoded = [json.loads(event) for event in draw(st.sampled_from(replies))]
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(list(_fields(decoded))))
        if draw(st.booleans()):
            holder[key] = draw(_json)
        elif holder is not decoded:
            del holder[key]
    return [json.dumps(event).encode() for event in decoded]


@given(events=_changed(_SGLANG_REPLIES))
def test_any_change_to_a_reply_of_sglang_leaves_a_good_one_or_is_refused(events: list[bytes]) -> None:
    _read_stream(_SGLANG, events)
    _read_whole(_SGLANG, events[0])


@given(events=_changed(_COMPLETIONS))
def test_any_change_to_a_completion_leaves_a_good_one_or_is_refused(events: list[bytes]) -> None:
    _read_stream(_VLLM, events)
    _read_whole(_VLLM, events[0])


@given(tokens=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8), data=st.data())
def test_the_same_tokens_come_out_of_a_stream_however_it_is_cut(
    tokens: list[int], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(tokens)))) | {len(tokens)})
    seen, streams = 0, [[] for _ in range(4)]  # type: tuple[int, list[list[bytes]]]
    for cut in cuts:
        finish = "length" if cut == len(tokens) else None
        logprobs = [[-0.5, token, None] for token in tokens[:cut]]
        for stream, ids, entries in (
            (streams[0], tokens[:cut], logprobs),
            (streams[1], tokens[seen:cut], logprobs[seen:]),
            (streams[2], tokens[seen:cut], logprobs),
            (streams[3], None, logprobs),
        ):
            meta = {"completion_tokens": cut, "output_token_logprobs": entries}
            stream.append(sglang(finish=finish, output_ids=ids, meta=meta))
        seen = cut
    for stream in streams:
        reader = _SGLANG.reader(an_ask(_MOST))
        pieces = [piece for event in stream if (piece := reader.event(event))]
        assert [token for piece in pieces for token in piece.tokens] == tokens
        assert [len(piece.logprobs) for piece in pieces] == [len(piece.tokens) for piece in pieces]
        assert pieces[-1].finish == "length"
