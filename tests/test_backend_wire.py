from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from areal_core._engine.backend import ReplyError
from areal_core._engine.backends import backend_named
from areal_core._engine.backends._growing import Growing
from areal_core._engine.wire.decoding import (
    FinishType,
    Logprob,
    decode,
    encode,
    failure,
    integer_label,
    json_or_text,
    merge,
)


class _Thing(msgspec.Struct):
    count: int
    note: str | None = None


_DECODER = msgspec.json.Decoder(_Thing)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"", "truncated", id="nothing"),
        pytest.param(b'{"count": 1', "truncated", id="cut-off"),
        pytest.param(b"<html>", "malformed", id="no-json"),
        pytest.param(b"[]", "Expected `object`", id="another-type"),
        pytest.param(b"{}", "missing required field `count`", id="nothing-in-it"),
        pytest.param(b'{"count": true}', r"got `bool` - at `\$.count`", id="bool-as-int"),
        pytest.param(b'{"count": 1.5}', r"`\$.count`", id="float-as-int"),
        pytest.param(b'{"count": NaN}', "malformed", id="nan"),
        pytest.param(b'{"count": 1, "note": "\xff"}', "UnicodeDecodeError", id="not-utf8"),
        pytest.param(b'{"count": 1, "x": ' + b"[" * 100_000, "RecursionError", id="deep"),
    ],
)
def test_what_is_not_of_the_type_is_a_reply_error_that_names_the_place(body: bytes, words: str) -> None:
    with pytest.raises(ReplyError, match=words) as caught:
        decode(_DECODER, body)
    assert caught.value.status is None
    with pytest.raises(ReplyError, match="in field: "):
        decode(_DECODER, body, "field")


def test_fields_that_are_not_known_are_passed_over() -> None:
    assert decode(_DECODER, b'{"new": {"a": [1]}, "count": 3}') == _Thing(3)


@pytest.mark.parametrize(
    ("kind", "value"), [(Logprob, -9998.5), (Logprob, 0.01), (FinishType, "x"), (FinishType, "x" * 100)]
)
def test_what_a_type_just_allows_is_read(kind: Any, value: object) -> None:
    assert decode(msgspec.json.Decoder(kind), encode(value)) == value


@pytest.mark.parametrize(
    ("body", "value"),
    [
        pytest.param(b'{"a": [1]}', {"a": [1]}, id="json"),
        pytest.param(b"", "", id="nothing"),
        pytest.param(b"fine\xff", "fine\ufffd", id="text"),
        pytest.param(b'"\xff"', '"\ufffd"', id="not-utf8"),
        pytest.param(b"[" * 100_000, "[" * 100_000, id="deep"),
    ],
)
def test_an_answer_is_json_or_else_text(body: bytes, value: object) -> None:
    assert json_or_text(body) == value


def test_the_text_of_a_reply_error_is_short() -> None:
    long = msgspec.json.Decoder(msgspec.defstruct("S", [("x" * 9_000, int)]))
    with pytest.raises(ReplyError) as caught:
        decode(long, b"{}")
    assert len(str(caught.value)) == 500
    assert len(str(failure("x" * 9_000))) == 500
    assert len(str(failure({"message": "x" * 9_000}))) == 500


def test_what_json_has_no_words_for_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        encode({"a": object()})


def test_extra_fields_go_over_those_before_them_and_mappings_into_mappings() -> None:
    body: dict[str, Any] = {"a": 1, "params": {"x": 1, "y": 2}, "b": {"z": 1}}
    params = body["params"]
    first = {"a": 2, "params": {"y": 3, "w": {"deep": 1}}, "c": {"d": 4}}
    merged = merge(body, first, {"a": 3, "b": None, "params": {"w": 5}, "c": {"e": 6}})
    assert merged == {"a": 3, "params": {"x": 1, "y": 3, "w": 5}, "b": None, "c": {"d": 4, "e": 6}}
    assert params == {"x": 1, "y": 2}
    assert first == {"a": 2, "params": {"y": 3, "w": {"deep": 1}}, "c": {"d": 4}}


@pytest.mark.parametrize(
    ("label", "version"),
    [
        ("4", 4),
        (4, 4),
        (0, 0),
        ("007", 7),
        ("7".zfill(19), 7),
        ("7".zfill(20), None),
        (str(2**63 - 1), 2**63 - 1),
        (2**63 - 1, 2**63 - 1),
        (2**63, None),
        (str(2**63), None),
        ("9" * 5_000, None),
        (-1, None),
        ("-1", None),
        ("+1", None),
        (" 1", None),
        ("1_0", None),
        ("٣", None),
        ("²", None),
        ("", None),
        ("default", None),
        ("4.0", None),
        (4.0, None),
        (True, None),
        (None, None),
    ],
)
def test_only_a_plain_integer_is_a_label(label: object, version: int | None) -> None:
    assert integer_label(label) == version


@pytest.mark.parametrize(
    ("error", "text", "status"),
    [
        ({"message": "too long", "code": 400}, "too long", 400),
        ({"message": "full", "code": 503, "type": "x"}, "full", 503),
        ({"message": "m", "code": "context_length_exceeded"}, "m", None),
        ({"message": "m", "code": 599}, "m", 599),
        ({"message": "m", "code": 200}, "m", None),
        ({"message": "m", "code": 399}, "m", None),
        ({"message": "m", "code": 600}, "m", None),
        ({"message": "m", "code": 10**30}, "m", None),
        ({"message": "m", "code": None}, "m", None),
        ({"message": "m"}, "m", None),
        ({"reason": "r"}, "{'reason': 'r'}", None),
        ("words", "words", None),
        ([1], "[1]", None),
    ],
)
def test_an_error_says_what_the_server_said_and_its_status(
    error: object, text: str, status: int | None
) -> None:
    said = failure(error)
    assert (str(said), said.status) == (f"the server says: {text}", status)


@pytest.mark.parametrize("name", ["openai", "sglang", "vllm"])
def test_a_backend_is_found_by_its_name(name: str) -> None:
    assert backend_named(name).name == name


@pytest.mark.parametrize("name", ["tgi", "", "_tally", "SGLang"])
def test_a_name_of_no_backend_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^backend='{name}' does not exist; there are openai, sglang, vllm$"
    ):
        backend_named(name)


@pytest.mark.parametrize(
    "lists",
    [
        pytest.param([[], [1], [1, 2], [1, 2, 3, 4]], id="grows"),
        pytest.param([[1], [12], [12, 3]], id="last-item-looks-longer"),
        pytest.param([[1], [2], [3, 4], [5]], id="only-what-is-new"),
        pytest.param([[5], [5, 6], [5, 6]], id="stays"),
        pytest.param([[1, 2, 3], [1, 2], [1, 2, 3]], id="shrinks"),
        pytest.param([[1, 2], [], [1]], id="empties"),
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (" , ", ": ")])
def test_a_growing_list_is_read_as_any_list(lists: list[list[int]], separators: tuple[str, str]) -> None:
    growing = Growing(msgspec.json.Decoder(list[int]), "$.x")
    for items in lists:
        assert growing.read(json.dumps(items, separators=separators).encode()) == items


def test_a_growing_list_decodes_what_it_knows_only_once() -> None:
    class Counting:
        sizes: list[int]

        def __init__(self) -> None:
            self.sizes = []
            self._decoder = msgspec.json.Decoder(list[int])

        def decode(self, body: bytes) -> list[int]:
            self.sizes.append(len(body))
            return self._decoder.decode(body)

    counting: Any = Counting()
    growing = Growing[int](counting, "$.x")
    for count in (1_000, 1_001, 1_003):
        assert growing.read(encode(list(range(count)))) == list(range(count))
    assert counting.sizes[1:] == [len("[1000]"), len("[1001,1002]")]


def test_a_wrong_item_at_the_end_of_a_growing_list_is_refused() -> None:
    growing = Growing(msgspec.json.Decoder(list[int]), "$.x")
    growing.read(b"[1,2]")
    with pytest.raises(ReplyError, match=r"in \$\.x: ValidationError: Expected `int`"):
        growing.read(b'[1,2,"3"]')
