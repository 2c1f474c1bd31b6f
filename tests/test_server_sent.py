"""Server-sent events: read as the HTML standard says, cut anywhere, in bounded memory and linear time."""

from __future__ import annotations

import re
import time
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_core._engine.backend import ReplyError
from areal_core._engine.wire.server_sent import EventParser


def read(stream: bytes, most_bytes: int = 1000) -> list[bytes]:
    return EventParser(most_bytes).feed(stream)


def read_in_pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    parser = EventParser(1000)
    borders = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    pieces = [stream[start:end] for start, end in pairwise(borders)]
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: one\n\ndata: two\n\n", [b"one", b"two"]),
        (b"data: one\r\rdata: two\r\r", [b"one", b"two"]),
        (b"data: one\r\n\r\ndata: two\r\n\r\n", [b"one", b"two"]),
        (b"data: one\n\r\ndata: two\r\n\r", [b"one", b"two"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a \n\n", [b" a "]),
        (b"data: a: b\n\n", [b"a: b"]),
        (b"data\n\n", [b""]),
        (b"data:\ndata\n\n", [b"\n"]),
        (b"data: a\r\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
        (b"\n\xef\xbb\xbfdata: a\n\n", []),
        (b": ping\n\ndata: a\n: ping\n\n", [b"a"]),
        (b"event: x\nid: 7\nretry: 10\ndata: a\n\n", [b"a"]),
        (b"event: x\n\n", []),
        (b"Data: a\n data: b\ndata : c\n\n", []),
        (b"\n\n\n\n", []),
        (
            b'data: {"x": "\xc3\xa9\x0b\x0c\x1c\xe2\x80\xa8"}\n\n',
            [b'{"x": "\xc3\xa9\x0b\x0c\x1c\xe2\x80\xa8"}'],
        ),
        (b"data: \xff\n\n", [b"\xff"]),
        (b"data: a\n\ndata: [DONE]\n\n", [b"a", b"[DONE]"]),
        (b"data: a\n\ndata: cut off", [b"a"]),
        (b"data: a\n\ndata: cut off\n", [b"a"]),
        (b"", []),
    ],
)
def test_streams_are_read_as_the_standard_says(stream: bytes, events: list[bytes]) -> None:
    assert read(stream) == events
    assert read_in_pieces(stream, list(range(len(stream)))) == events


def test_a_line_feed_after_a_return_ends_no_line_of_its_own() -> None:
    parser = EventParser(1000)
    assert parser.feed(b"data: a\r") == []
    assert parser.feed(b"\ndata: b\n\n") == [b"a\nb"]


def as_the_standard_says(stream: bytes) -> list[bytes]:
    """Read a whole stream in the words of the standard, in its order."""
    events: list[bytes] = []
    data = b""
    for line in re.findall(rb"([^\r\n]*)(?:\r\n|\r|\n)", stream.removeprefix(b"\xef\xbb\xbf")):
        if line == b"":
            if data != b"":
                events.append(data.removesuffix(b"\n"))
            data = b""
        elif line.startswith(b":"):
            continue
        else:
            field, _, value = line.partition(b":")
            if field == b"data":
                data += value.removeprefix(b" ") + b"\n"
    return events


PARTS = [
    b"data",
    b"data: ",
    b"data:",
    b"x",
    b" ",
    b":",
    b"\r",
    b"\n",
    b"\r\n",
    b"\n\n",
    b"\xef\xbb\xbf",
    b"\x85",
]


@given(
    st.lists(st.sampled_from(PARTS), max_size=40).map(b"".join), st.lists(st.integers(0, 500), max_size=20)
)
def test_it_makes_no_difference_where_a_stream_is_cut(stream: bytes, cuts: list[int]) -> None:
    assert read(stream) == read_in_pieces(stream, cuts) == as_the_standard_says(stream)


def test_an_event_may_be_as_large_as_the_bound_and_no_larger() -> None:
    largest = b"x" * 100
    for stream in (b"\xef\xbb\xbfdata: " + largest, b"data:" + b"x" * 50 + b"\ndata: " + b"x" * 49):
        for cuts in ([], list(range(len(stream)))):
            parser = EventParser(100)
            borders = [*cuts, len(stream)] if cuts else [0, len(stream)]
            for start, end in pairwise(borders):
                assert parser.feed(stream[start:end]) == []
            assert [len(event) for event in parser.feed(b"\n\n")] == [100]
        with pytest.raises(ReplyError, match="an event of the stream has more than 99 bytes"):
            EventParser(99).feed(stream + b"\n\n")


@pytest.mark.parametrize("line", [b"data: x\n", b"data\n"])
def test_an_event_of_lines_without_end_is_refused(line: bytes) -> None:
    parser = EventParser(1000)
    for _ in range(500):
        parser.feed(line)
    with pytest.raises(ReplyError):
        parser.feed(line * 502)


def feed_until_refused(parser: EventParser, piece: bytes) -> int:
    """Return how many bytes *parser* has taken by then."""
    for times in range(2**10):
        try:
            parser.feed(piece)
        except ReplyError:
            return times * len(piece)
    raise AssertionError("it takes everything")


@pytest.mark.parametrize("beginning", [b"data: ", b": ", b"", b"event: "])
def test_a_line_without_end_is_refused_before_it_fills_the_memory(beginning: bytes) -> None:
    parser = EventParser(2**20)
    parser.feed(beginning)
    tracemalloc.start()
    try:
        taken = feed_until_refused(parser, b"x" * 2**16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 2**20 - 2**16 <= taken <= 2**20 + 2**16
    assert peak < 3 * 2**20


def test_comments_and_events_may_go_on_for_ever() -> None:
    parser = EventParser(100)
    for _ in range(1000):
        assert parser.feed(b": ping\n\nid: 7\n\n" * 10 + b"data: a\n\n") == [b"a"]


def test_an_event_that_comes_a_byte_at_a_time_takes_linear_time() -> None:
    parser = EventParser(2**20)
    began = time.process_time()
    for _ in range(2**18):
        parser.feed(b"x")
    assert time.process_time() - began < 1.5
