"""From text to tool calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from areal_core._agents.tool_calls import ToolCallParser, parser_named

HERMES = parser_named("hermes")
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
NOW = '<tool_call>{"name":"now","arguments":{}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("", "", []),
        (" no call \n", " no call \n", []),
        (ADD, None, [("add", '{"a": 1}')]),
        (f" \n{ADD}\n", None, [("add", '{"a": 1}')]),
        (f"\nWait. \n{ADD}", "\nWait.", [("add", '{"a": 1}')]),
        (f"One.\n{ADD}\n two \n{NOW}\n\n{NOW}\nthree\n", "One.\ntwo\nthree",
         [("add", '{"a": 1}'), ("now", "{}"), ("now", "{}")]),
        (ADD + NOW, None, [("add", '{"a": 1}'), ("now", "{}")]),
    ],
)  # fmt: skip
def test_calls_are_taken_out_of_what_is_said(text: str, content: str | None, calls: list[Any]) -> None:
    assert HERMES.parse(text) == (content, calls)


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"a":1,   "b" : [ 1.50, 1e3 ]}', '{"a":1,   "b" : [ 1.50, 1e3 ]}'),
        ('{"b":"\\u00e9é","a":"\\n"}', '{"b":"\\u00e9é","a":"\\n"}'),
        ('{\n  "a": 1\n}', '{\n  "a": 1\n}'),
        ('{"html": "</tool_call> <tool_call>"}', '{"html": "</tool_call> <tool_call>"}'),
        ('"{\\"a\\": 1}"', '{"a": 1}'),
        ('"not json"', "not json"),
        ('""', ""),
    ],
)
def test_arguments_are_left_as_the_model_wrote_them(written: str, arguments: str) -> None:
    text = f'<tool_call> {{"id": 4, "arguments": {written} , "name": "run"}} \n </tool_call>'
    assert HERMES.parse(text) == (None, [("run", arguments)])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>add(1)</tool_call>",
        ADD.removesuffix(">"),
        ADD.replace("}}", "}"),
        ADD.replace("}}", "}}}"),
        ADD.replace("</tool_call>", "and </tool_call>"),
        '<tool_call>{"name": "add"}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "add", "arguments": null}</tool_call>',
        '<tool_call>{"name": "add", "arguments": NaN}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": "\n"}}</tool_call>',
        '<tool_call>["add", {}]</tool_call>',
        '<tool_call>"add"</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": ' + 100_000 * "[" + "</tool_call>",
        '<tool_call>{"name": "add", "arguments": {"a": ' + 9_000 * "7" + "}}</tool_call>",
        'call {"name": "add", "arguments": {}}</tool_call>',
    ],
    ids=range(21),
)
def test_what_is_no_well_formed_call_is_content(text: str) -> None:
    assert HERMES.parse(f"Well, {text} ") == (f"Well, {text} ", [])
    beside = HERMES.parse(f"{NOW} and {text} ")
    assert beside == (f"and {text}".strip(), [("now", "{}")])


def test_a_call_behind_one_that_was_broken_off_is_found() -> None:
    broken = '<tool_call>{"name": "add", '
    assert HERMES.parse(f"So: {broken}\n{NOW}") == (f"So: {broken.strip()}", [("now", "{}")])


PIECES = [
    "<tool_call>",
    "</tool_call>",
    '{"name": "f", "arguments": ',
    "{}",
    "}",
    '"',
    "\\",
    "[",
    " ",
    "é",
    "\n",
]


@given(some.lists(some.sampled_from(PIECES)).map("".join))
def test_nothing_is_raised_and_what_is_not_called_is_said(text: str) -> None:
    content, calls = HERMES.parse(text)
    assert {name for name, _ in calls} <= {"f"}
    if not calls:
        assert content == text
    else:
        assert content is None or content.strip()
        assert (content or "").startswith(text[: text.index("<tool_call>")].rstrip())


def test_calls_of_any_arguments_are_read_back() -> None:
    @given(some.dictionaries(some.text(), some.text() | some.integers() | some.none()), some.text(min_size=1))
    def check(arguments: dict[str, Any], name: str) -> None:
        written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        text = f"<tool_call>\n{written}\n</tool_call>"
        assert HERMES.parse(text + text) == (None, 2 * [(name, json.dumps(arguments, ensure_ascii=False))])

    check()


def test_models_without_tools_only_say_things() -> None:
    parser = parser_named("none")
    assert parser.opening is None
    assert parser.parse(ADD) == (ADD, [])


class Own:
    def __init__(self, opening: Any = "@") -> None:
        self.opening = opening

    def parse(self, text: str) -> tuple[str | None, list[tuple[str, str]]]:
        return text, []


@pytest.mark.parametrize("opening", ["@", "", None])
def test_a_parser_of_ones_own_is_taken(opening: str | None) -> None:
    own: ToolCallParser = Own(opening)
    assert parser_named(own) is own


NO_PARSER = "which is no parser; give 'hermes', 'none', or an object with opening (a text) and parse(text)"


@pytest.mark.parametrize(
    ("parser", "kind", "says"),
    [
        ("llama", ValueError, "tool_calls='llama' is none of 'hermes', 'none'; give one"),
        (None, TypeError, f"tool_calls is a NoneType, {NO_PARSER}"),
        (Own(7), TypeError, f"tool_calls is a Own, {NO_PARSER}"),
    ],
    ids=["unknown", "none", "no-text"],
)  # fmt: skip
def test_what_is_no_parser_is_refused(parser: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind) as refused:
        parser_named(parser)
    assert str(refused.value) == says
