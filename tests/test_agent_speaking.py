"""From tokens to text, as they come and all at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as some

from areal_core._agents.chat_format import ChatFormat
from areal_core._agents.speaking import Speaker, read_reply
from small_tokenizer import END, SmallTokenizer, sampled

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
CALLS = [("add", '{"a": 1}')]


def fmt(**fields: Any) -> ChatFormat:
    return ChatFormat(SmallTokenizer(), **fields)


def heard(
    tokens: Iterable[int], stop: Sequence[str] = (), *, tools: bool = True, chat: ChatFormat | None = None
) -> list[str]:
    """Return what is said at each token, and then the rest."""
    speaker = Speaker(chat or fmt(), stop, tools=tools)
    pieces = [speaker.hear([token]) for token in tokens]
    rest, content, _ = speaker.end()
    assert "".join([*pieces, rest]) == (content or "")
    return [*pieces, rest]


def test_each_token_is_said_when_it_comes() -> None:
    assert heard(sampled("ab c")) == ["a", "b", "", " c", "", ""]
    assert heard(sampled("ab c"), tools=False) == ["a", "b", " ", "c", "", ""]


def test_characters_are_said_whole() -> None:
    assert heard(sampled("é😀x")) == ["", "é", "", "", "", "😀", "x", "", ""]


def test_bytes_that_become_no_character_are_said_when_that_is_certain() -> None:
    assert heard(sampled(b"a\xf0\x9f|\xc3", end=None)) == ["a", "", "", "\ufffd|", "", "\ufffd"]


def test_what_stands_before_an_unfinished_character_is_said() -> None:
    speaker = Speaker(fmt())
    assert [speaker.hear(sampled(piece, end=None)) for piece in (b"ab\xc3", b"\xa9\xc3", b"\xa8")] == [
        "ab",
        "é",
        "è",
    ]


def test_what_may_become_a_stop_string_waits() -> None:
    assert heard(sampled("aSTSTOPb"), ["STOP"]) == ["a", "", "", "ST", "", "", "", "", "", ""]
    assert heard(sampled("aaaab"), ["aab"]) == ["", "", "a", "a", "", "", ""]
    assert heard(sampled("STx"), ["STOP"])[:3] == ["", "", "STx"]
    assert heard(sampled("ST"), ["STOP"])[-1] == "ST"


@pytest.mark.parametrize(
    ("stop", "content"),
    [
        ([], "one two three"),
        (["three"], "one two "),
        (["e"], "on"),
        (["three", "two"], "one "),
        (["o three", "tw"], "one "),
        (["wo", "two three"], "one "),
        (["o"], ""),
        (["four", "three!"], "one two three"),
    ],
)
def test_the_content_ends_before_the_first_stop_string(stop: list[str], content: str) -> None:
    assert read_reply(fmt(), sampled("one two three"), stop) == (content, [])
    assert "".join(heard(sampled("one two three"), stop)) == content


def test_nothing_is_said_from_what_may_be_a_tool_call_on() -> None:
    pieces = heard(sampled(f"So: \n{CALL}\nDone."))
    assert pieces[:5] == ["S", "o", ":", "", ""]
    assert set(pieces[3:-1]) == {""}
    assert pieces[-1] == "\nDone."
    assert read_reply(fmt(), sampled(f"So: \n{CALL}\nDone.")) == ("So:\nDone.", CALLS)


def test_what_began_like_a_tool_call_is_said_when_it_is_none() -> None:
    assert heard(sampled("a <b"))[1:4] == ["", "", " <b"]
    assert heard(sampled("<tool_calm"))[9] == "<tool_calm"


def test_a_call_that_is_broken_off_is_said_in_the_end() -> None:
    cut = f"So:\n{CALL[:30]}"
    assert heard(sampled(cut, end=None))[-1] == cut.removeprefix("So:")
    assert read_reply(fmt(), sampled(cut, end=None)) == (cut, [])


def test_a_stop_string_in_a_call_breaks_it_off() -> None:
    assert read_reply(fmt(), sampled(f"So: {CALL}"), ["arguments"]) == (
        'So: <tool_call>\n{"name": "add", "',
        [],
    )
    assert read_reply(fmt(), sampled(f"So: {CALL} STOP"), ["STOP"]) == ("So:", CALLS)


@pytest.mark.parametrize(
    "options",
    [{"tools": False}, {"chat": fmt(tool_calls="none")}],
    ids=["tools not offered", "a format without"],
)
def test_where_no_tools_were_offered_calls_are_content(options: dict[str, Any]) -> None:
    text = f"So: {CALL} "
    assert heard(sampled(text, end=None), **options) == [*text, ""]
    assert read_reply(
        options.get("chat", fmt()), sampled(text), tools=options.get("tools", True)
    ) == (text, [])  # fmt: skip


class Own:
    """Finds calls by brackets, and strips what it should leave."""

    def __init__(self, opening: str) -> None:
        self.opening = opening

    def parse(self, text: str) -> tuple[str | None, tuple[tuple[str, str], ...]]:
        said, _, call = text.partition("[")
        return said.strip() or None, ((call, "{}"),)


def test_a_parser_of_ones_own_may_have_everything_wait() -> None:
    chat = fmt(tool_calls=Own(""))
    assert heard(sampled(" a [f"), chat=chat) == ["", "", "", "", "", "", "a"]
    assert read_reply(chat, sampled(" a [f")) == ("a", [("f", "{}")])


def test_what_was_said_stays_said_whatever_a_parser_makes_of_it() -> None:
    speaker = Speaker(fmt(tool_calls=Own("[")))
    assert speaker.hear(sampled(" a [f")) == " a"
    assert speaker.end() == ("", " a", [("f", "{}")])


def test_nothing_but_a_call_has_no_content() -> None:
    speaker = Speaker(fmt())
    assert speaker.hear(sampled(f"\n{CALL}")) == ""
    assert speaker.end() == ("", None, CALLS)


def test_a_reply_may_be_empty() -> None:
    assert read_reply(fmt(), [END]) == ("", [])
    speaker = Speaker(fmt())
    assert speaker.hear([]) == ""
    assert speaker.end() == ("", "", [])


class Spaced(SmallTokenizer):
    """Its tokens are words, which the text has a space before, but for the first: as SentencePiece does."""

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool) -> Any:
        words = [f"w{token}" for token in token_ids if not (token == END and skip_special_tokens)]
        return " ".join(words)


def test_a_space_that_only_the_first_token_lacks_is_said() -> None:
    chat = ChatFormat(Spaced())
    assert heard([7, 8, END, 9, END], chat=chat) == ["w7", " w8", "", " w9", "", ""]
    speaker = Speaker(chat)
    assert [speaker.hear(piece) for piece in ([END], [7, 8], [END, 9, 9], [])] == ["", "w7 w8", " w9 w9", ""]


@pytest.mark.parametrize(
    "data",
    [
        5_000 * b"word ",
        5_000 * b"\xff",
        20_000 * b"\xc3",
        4_000 * "😀".encode(),
        b"<tool_call>" + 9_000 * b"x",
    ],
    ids=["words", "no-text", "no-characters", "characters", "held"],
)
def test_tokens_are_decoded_in_linear_time(data: bytes) -> None:
    tokenizer = SmallTokenizer()
    speaker = Speaker(ChatFormat(tokenizer), ["STOP"])
    for token in (tokens := sampled(data)):
        speaker.hear([token])
    assert tokenizer.decoded < 9 * len(tokens)
    assert speaker.end()[1] == data.decode(errors="replace")


FRAGMENTS = [
    *(
        "a",
        "ab",
        "é",
        "你",
        "😀",
        " ",
        "\n",
        "\u2003",
        "\ufffd",
        "S",
        "ST",
        "STOP",
        "TOP",
        "<",
        "<tool",
        "</",
    ),
    *("<tool_call>", "</tool_call>", CALL, CALL.replace(" ", ""), "{", '"', "<|im_start|>"),
]
TEXTS = some.lists(some.sampled_from(FRAGMENTS).map(str.encode) | some.binary(max_size=3)).map(b"".join)
STOPS = some.lists(
    some.sampled_from(
        [
            "STOP",
            "ST",
            "aab",
            "ST\n\ufffd",
            "TOP",
            "b",
            "é",
            "好",
            "a ",
            "\n\n",
            "tool",
            "p<",
            "S<tool_call>{",
        ]
    )
)
CUTS = some.lists(some.integers(0, 300), max_size=40)


def pieces_of(tokens: Sequence[int], cuts: Sequence[int]) -> Iterator[Sequence[int]]:
    for begin, end in pairwise(sorted({0, *cuts, len(tokens)})):
        yield tokens[begin:end]


def check_streaming(data: bytes, stop: list[str], cuts: list[int], tools: bool, pairs: bool) -> None:
    tokenizer = SmallTokenizer()
    chat = ChatFormat(tokenizer)
    text = data.decode(errors="ignore")
    tokens = [*tokenizer.encode(text, add_special_tokens=False), END] if pairs else sampled(data)
    speaker = Speaker(chat, stop, tools=tools)
    said = "".join(map(speaker.hear, pieces_of(tokens, cuts)))
    rest, content, calls = speaker.end()
    event(f"calls: {bool(calls)}, rest: {bool(rest)}")
    assert said + rest == (content or "")
    assert (content, calls) == read_reply(chat, tokens, stop, tools=tools)


@given(TEXTS, STOPS, CUTS, some.booleans(), some.booleans())
def test_what_is_streamed_is_what_is_read(
    data: bytes, stop: list[str], cuts: list[int], tools: bool, pairs: bool
) -> None:
    check_streaming(data, stop, cuts, tools, pairs)
    check_streaming(data, stop, list(range(300)), tools, pairs)
