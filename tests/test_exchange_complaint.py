"""What of a server's error reply is told, and how long it asks to be left alone."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_core._engine.wire.complaint import MOST_BYTES, retry_after_s, shortened, words_of


def told(body: Any) -> str:
    """Return what is told of *body*, as bytes or as JSON."""
    return shortened(words_of(body if isinstance(body, bytes) else json.dumps(body).encode()))


PROMPT = list(range(1000, 33_000))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}, "too long"),
        ({"object": "error", "message": "too long", "param": None}, "too long"),
        ({"error": "too long"}, "too long"),
        ({"error": "Bad Request", "message": "too long"}, "Bad Request; too long"),
        ({"error": "too long", "message": "too long"}, "too long"),
        ({"success": False, "message": "no such file"}, "no such file"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"errors": ["one", {"message": "two"}, 3, None]}, "one; two"),
        ({"title": "Unprocessable", "status": 422, "detail": "x < 0"}, "x < 0; Unprocessable"),
        ([{"msg": "a"}, {"msg": "b"}], "a; b"),
        ("said plainly", "said plainly"),
        ({"prompt": PROMPT, "text": "secret story"}, "JSON with no message but prompt, text"),
        ({}, "JSON with no message but"),
        (7, ""),
        (b"", ""),
        (b"Internal Server Error", "Internal Server Error"),
        (b"<html>\r\n\t<h1>502</h1>\x00\x1b[31m\xff</html>", "<html> <h1>502</h1> [31m\ufffd</html>"),
        (b'{"error": {"message": "cut off', '{"error": {"message": "cut off'),
        (b'{"error": "\\ud800"}', '{"error": "\\ud800"}'),
        (b'{"error": "\xff"}', '{"error": "\ufffd"}'),
        (b"[" * 100_000, "[" * 1200 + "..."),
    ],
)
def test_the_words_of_an_error_are_told_and_nothing_else(body: Any, words: str) -> None:
    assert told(body) == words


def test_a_rejected_request_is_not_repeated() -> None:
    rejected = [
        {
            "type": "list_type",
            "loc": ["body", "input_ids", 3],
            "msg": "Input should be a valid list",
            "input": {"input_ids": PROMPT, "text": "secret story"},
            "ctx": {"given": PROMPT},
        },
        {"loc": ["body", "sampling_params"], "msg": "Field required", "input": PROMPT},
    ]
    words = told({"detail": rejected})
    assert words == "body.input_ids.3: Input should be a valid list; body.sampling_params: Field required"


@pytest.mark.parametrize(
    "rows",
    [
        str(PROMPT),
        json.dumps(PROMPT, separators=(",", ":")),
        json.dumps([-0.1 * x for x in PROMPT]),
        ",\n".join(map(str, PROMPT)),
    ],
)
def test_tokens_in_the_middle_of_words_are_not_repeated(rows: str) -> None:
    for body in (
        f"bad input {rows} at 3, 4, 5".encode(),
        json.dumps({"detail": f"bad input {rows} at 3"}).encode(),
    ):
        words = told(body)
        assert words.startswith("bad input ")
        assert "1010" not in words
        assert len(words) < 60


def test_a_few_numbers_are_words() -> None:
    assert told({"error": "1, 2, 3 and 4,5,6 are no ids"}) == "1, 2, 3 and 4,5,6 are no ids"


def test_words_are_cut_by_bytes_and_between_characters() -> None:
    assert told("é" * 600) == "é" * 600
    assert told("é" * 601) == "é" * 600 + "..."
    assert told("x" + "é" * 600) == "x" + "é" * 599 + "..."


def test_only_some_of_many_complaints_are_told() -> None:
    assert told({"detail": [{"msg": str(i)} for i in range(1000)]}) == "; ".join(map(str, range(10)))


@pytest.mark.parametrize("levels", [6, 7, 500])
def test_a_complaint_is_told_that_lies_six_levels_deep_and_no_deeper(levels: int) -> None:
    fields: Any = "deep"
    lists: Any = "deep"
    for _ in range(levels):
        fields, lists = {"error": fields}, [lists]
    assert told(fields) == ("deep" if levels == 6 else "JSON with no message but error")
    assert told(lists) == ("deep" if levels == 6 else "")


def test_a_body_that_is_too_large_is_not_told() -> None:
    assert told(b"x" * (4 * 2**20 + 1)) == "more than 4194304 bytes, which were not read"
    assert told(b"x" * 4 * 2**20).startswith("xxx")


def test_only_the_beginning_of_a_long_text_is_told() -> None:
    assert told(b" " * (2**16 - 1) + b"xy") == "x"


@pytest.mark.parametrize("piece", ["1,", "1 ", "1, ", "-1", "1.", "1e+", "9", " ", ",", "\t", '"', "[", "{"])
def test_no_text_takes_long_to_shorten(piece: str) -> None:
    body = (piece * MOST_BYTES)[:MOST_BYTES].encode()

    def taken_s() -> float:
        began = time.thread_time()
        told(body)
        told(b'{"error": ' + json.dumps(body.decode())[:-100].encode() + b'"}')
        return time.thread_time() - began

    assert any(taken_s() < 1 for _ in range(3))  # a machine that is busy takes longer, but not every time


@given(st.binary() | st.text().map(str.encode))
def test_any_body_is_told_in_one_line_of_bounded_length(body: bytes) -> None:
    words = told(body)
    assert len(words.encode()) <= 1203
    assert words.isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["error", "message", "detail", "loc", "msg", "x"]), inner)
    ),
)


@given(json_values)
def test_any_json_is_told_in_one_line_of_bounded_length(value: Any) -> None:
    words = told(value)
    assert len(words.encode()) <= 1203
    assert words.isprintable()


# --- how long it asks to be left alone

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        (" 0 ", 0.0),
        ("1.5", 1.5),
        ("60", 60.0),
        ("61", 60.0),
        ("7200", 60.0),
        ("9" * 5000, 60.0),
        (format_datetime(NOW + timedelta(seconds=30), usegmt=True), 30.0),
        (format_datetime(NOW + timedelta(days=30), usegmt=True), 60.0),
        (format_datetime(NOW - timedelta(days=30), usegmt=True), 0.0),
        ("Tue, 03 Nov 2026 13:00:20 +0100", 20.0),
        ("Tue, 03 Nov 2026 12:00:20 -0000", 20.0),
        ("", None),
        ("-1", None),
        ("1e3", None),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("٣", None),
        ("1,2", None),
        ("Tue, 99 Nov 2026 12:00:00 GMT", None),
        ("Tue, 03 Nov 99999999999999999999 12:00:00 GMT", None),
        ("Tue, 03 Nov 2026 12:00:00 +99999999", None),
        ("Tue, 03 Nov , 12:00:00 GMT", None),
        ("\x00", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_servers_clock(value: str, seconds: float | None) -> None:
    assert retry_after_s({"Retry-After": value, "Date": format_datetime(NOW, usegmt=True)}) == seconds


def test_a_date_without_a_zone_is_universal_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        headers = {
            "Retry-After": "Tue, 03 Nov 2026 12:00:20 -0000",
            "Date": format_datetime(NOW, usegmt=True),
        }
        assert retry_after_s(headers) == 20
    finally:
        monkeypatch.undo()
        time.tzset()


def test_without_a_clock_of_the_server_ours_is_used() -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    for headers in ({"Retry-After": until}, {"Retry-After": until, "Date": "no date"}):
        seconds = retry_after_s(headers)
        assert seconds is not None
        assert 40 < seconds <= 50
    assert retry_after_s({}) is None


@given(st.text())
def test_any_value_asks_for_no_time_or_for_a_bounded_one(value: str) -> None:
    seconds = retry_after_s({"Retry-After": value, "Date": value})
    assert seconds is None or 0 <= seconds <= 60
